"""A PostgreSQL server of the tests, in a temporary folder, reached through a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.processes import PROCESS_TIMEOUT_S

USER = "postgres"
MISSING = "PostgreSQL or psycopg is not installed, so no test of the ledger in PostgreSQL runs"


def find_programs() -> Path | None:
    """Return the folder of initdb and pg_ctl; None if PostgreSQL is not installed."""
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


class PostgresServer:
    """A server that keeps its commits, as one for a ledger must. It ends with `stop`.

    With `network`, clients with addresses in it reach the server by TCP at `port`.
    """

    def __init__(self, programs: Path, network: str = "", port: int = 5432) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="krea-pg-"))  # short: the path of a socket has at most 107 bytes
        self._data = self.folder / "data"
        if os.geteuid() == 0:  # The server refuses to run as root.
            shutil.chown(self.folder, USER)
        self._run("initdb", "--auth=trust", "--encoding=UTF8", "--no-sync", f"--username={USER}")
        self.port = port
        if network:
            with (self._data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {network} trust\n")
        addresses = "*" if network else ""
        options = f"-c listen_addresses='{addresses}' -c port={port} -c unix_socket_directories={self.folder}"
        (self.folder / "options").write_text(options)
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={self.folder}&port={self.port}"

    def start(self) -> None:
        options = (self.folder / "options").read_text()
        self._run("pg_ctl", "start", "--wait", "--silent", f"--log={self.folder}/log", f"--options={options}")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}")

    def restart(self, mode: str = "immediate") -> None:
        """End the server, by default as a crash would, and start it again."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        self._run("pg_ctl", "reload", "--silent")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), f"--pgdata={self._data}", *arguments]
        import pwd  # not on Windows

        user = USER if os.geteuid() == 0 else None
        with (self.folder / f"{program}.txt").open(
            "w"
        ) as output:  # a pipe would stay open as long as the server runs
            subprocess.run(
                command,
                check=True,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                cwd="/",
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PROCESS_TIMEOUT_S,
            )


@cache
def _started() -> PostgresServer | None:
    programs = find_programs() if find_spec("psycopg") else None
    return PostgresServer(programs) if programs else None


def shared_server() -> PostgresServer:
    """Return the server of this process; start it if it does not run. Skips the test where that is not possible."""
    server = _started()
    if server is None:
        pytest.skip(MISSING)
    return server


def remove_shared_server() -> None:
    if _started.cache_info().currsize and (server := _started()):
        server.remove()
    _started.cache_clear()
