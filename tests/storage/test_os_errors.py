"""Errors of the operating system lead to advice that fits them."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from krea_batch.ledger.sqlite.database import next_step_of
from krea_batch.storage.os_errors import is_out_of_files, next_step
from tests.processes import clean_environment

ADVICE = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EMFILE: "limit of open files",
    errno.ENFILE: "limit of open files",
    errno.EACCES: "permissions",
    errno.EROFS: "writable",
    errno.EIO: "check the directory and the disk",
}


@pytest.mark.parametrize("code", ADVICE, ids=errno.errorcode.get)
def test_the_advice_fits_the_error(code: int) -> None:
    """Only a full disk is answered with free space, and only a limit of files with that limit."""
    error = OSError(code, os.strerror(code))
    assert ADVICE[code] in next_step(error)
    assert next_step_of(error) == next_step(error)
    assert is_out_of_files(error) == (code in (errno.EMFILE, errno.ENFILE))


def test_the_advice_for_the_ledger(tmp_path: Path) -> None:
    """A full ledger, a locked one, a read-only one and a foreign file lead to different advice."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as ledger:
        ledger.execute("CREATE TABLE t (x)")
        ledger.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as full:
            ledger.execute("INSERT INTO t VALUES (zeroblob(100000))")
        assert next_step_of(full.value) == "free some disk space"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError) as busy:
                ledger.execute("INSERT INTO t VALUES (1)")
        assert "other program" in next_step_of(busy.value)
    (tmp_path / "foreign").write_bytes(b"mine" * 1000)
    with closing(sqlite3.connect(tmp_path / "foreign")) as foreign, pytest.raises(sqlite3.DatabaseError) as corrupt:
        foreign.execute("SELECT 1 FROM t")
    assert "copy" in next_step_of(corrupt.value)
    with (
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as reader,
        pytest.raises(sqlite3.OperationalError) as read_only,
    ):
        reader.execute("INSERT INTO t VALUES (1)")
    assert "permissions" in next_step_of(read_only.value)
    assert next_step_of(sqlite3.ProgrammingError("closed")) == "check the disk"


LIMIT_SCRIPT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
if sys.argv[3] == "command":
    from krea_batch.cli.app import main
    sys.argv[1:] = ["--version"]
    try:
        main()
    except SystemExit:
        pass
else:
    import krea_batch, krea_batch.engine.engine
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("user", "soft", "hard", "expected"),
    [("command", 100, 2000, 2000), ("command", 1500, 1500, 1500), ("library", 100, 2000, 100)],
)
def test_the_command_raises_the_limit(user: str, soft: int, hard: int, expected: int) -> None:
    """The command raises its soft limit of open files to the hard limit; importing the library does not."""
    done = subprocess.run(
        [sys.executable, "-c", LIMIT_SCRIPT, str(soft), str(hard), user],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert done.stdout.splitlines()[-1] == f"{expected} {hard}", done.stderr


def test_a_machine_that_refuses_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system refuses the first limit, a lower one is tried, and a refusal of both is no error."""
    from krea_batch.storage.operating_system import MAX_OPEN_FILES, raise_open_files_limit

    tried: list[int] = []

    def refuse(_: int, limits: tuple[int, int]) -> None:
        tried.append(limits[0])
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_open_files_limit()
    assert tried == list(MAX_OPEN_FILES)
