"""Run the command as a real process against a simulator, and read the results."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from krea_batch.cli.commands.simulate import simulate, simulator_settings
from krea_batch.storage.operating_system import STOP_SIGNALS
from krea_batch.testing import SimulatorThread

COMMAND = [sys.executable, "-m", "krea_batch"]
FAST_SIMULATION = ("--simulate", "--time-scale=1000", "--poll-interval=0.1")  # a few jobs end within a second
PROCESS_TIMEOUT_S = 600.0  # chosen: ends a test that hangs, and no other on a machine that is busy with other work
MEMORY = "/dev/shm"  # noqa: S108 - a file system in memory, on Linux
MIN_MEMORY_BYTES = 2 << 30  # chosen: twice what all tests leave behind


def has_room_in_memory() -> bool:
    """Return whether the temporary files of all tests fit into MEMORY, and programs can be started from there."""
    try:
        file_system = os.statvfs(MEMORY)
    except OSError:
        return False
    free_bytes = file_system.f_bavail * file_system.f_frsize
    return free_bytes >= MIN_MEMORY_BYTES and not file_system.f_flag & (os.ST_NOEXEC | os.ST_RDONLY)


def let_children_be_interrupted() -> None:
    """Make the signals that stop a run reach child processes, even if this process was started to ignore them.

    A shell starts background jobs with SIGINT ignored, and nohup with SIGHUP ignored. A process passes that on to its
    children: a test that interrupts a child would wait forever. A handler is not passed on, so children start with
    the default action. It does nothing here, so this process still ignores the signal.
    """
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


class RunningSimulator:
    """A simulator that answers at `gateway_url`, and tells its accounting at `admin_url`."""

    gateway_url: str
    cdn_url: str
    admin_url: str

    def admin_request(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET an admin URL, or POST `body` to it."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.admin_url.rstrip("/") + path, data=data)  # noqa: S310 - loopback
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=PROCESS_TIMEOUT_S) as response:  # noqa: S310 - loopback
            parsed: dict[str, Any] = json.load(response)
        return parsed

    def accepted(self) -> int:
        """Return how many POSTs it has accepted."""
        count: int = self.admin_request("/totals")["accepted"]
        return count

    def close(self) -> None:
        """Stop it. Stopping twice has no effect."""
        raise NotImplementedError


class ThreadedSimulator(RunningSimulator):
    """A simulator with these options of `krea-batch simulate`, in a thread of this process.

    Tests start many of them, and a process would take 0.4 s of processor time to start.
    """

    def __init__(self, *options: str) -> None:
        with simulate.make_context("simulate", ["--port=0", *options]) as context:
            del context.params["as_json"]
            self._thread = SimulatorThread(simulator_settings(**context.params))
        self.gateway_url, self.cdn_url = self._thread.gateway_url, self._thread.cdn_url
        self.admin_url = self._thread.admin_url

    def close(self) -> None:
        self._thread.close()


class SimulatorProcess(RunningSimulator):
    """A simulator in its own process, for benchmarks."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "simulate", "--port", "0", "--json", *options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        urls = json.loads(self.process.stdout.readline())
        self.gateway_url, self.admin_url = urls["gateway_url"], urls["admin_url"]
        self.cdn_url = urls["cdn_url"]

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=PROCESS_TIMEOUT_S)


StartSimulator = Callable[..., RunningSimulator]
"""The fixture `simulate`: start a simulator with these options."""


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without the variables of krea-batch, and with `variables`.

    Without others, no certificates are trusted: to load those of the machine, which aiohttp does twice, is a seventh
    of the processor time of a short run.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KREA_BATCH_", "PIXAZO_"))}
    return inherited | {"SSL_CERT_FILE": os.devnull} | variables


def without_package(folder: Path, package: str) -> Path:
    """Return a directory for PYTHONPATH with which a package seems not to be installed."""
    (folder / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None\n")
    return folder


def run_command(
    *arguments: str | Path, cwd: Path, stdin: bytes | None = None, key: str = "test-key", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command and wait until it ends."""
    if key:
        env["PIXAZO_API_KEY"] = key
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(**env),
        input=None if stdin is None else stdin.decode("latin-1"),
        encoding="latin-1" if stdin is not None else "utf-8",
        capture_output=True,
        timeout=PROCESS_TIMEOUT_S,
    )


def start_command(*arguments: str | Path, cwd: Path, key: str = "test-key") -> subprocess.Popen[str]:
    """Start the command and return its process."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(PIXAZO_API_KEY=key),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def exit_code(process: subprocess.Popen[str]) -> int:
    """Return the exit code of a process, once it has ended."""
    process.communicate(timeout=PROCESS_TIMEOUT_S)
    return process.returncode


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until a condition holds. The process that will make it true must not end before that."""
    deadline_s = time.monotonic() + PROCESS_TIMEOUT_S
    while not condition():
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline_s, "the condition does not become true"
        time.sleep(0.01)


def write_jobs(path: Path, count: int, **fields: Any) -> Path:
    """Write a job file of `count` jobs with the prompts `image 0`, `image 1`, …"""
    lines = [json.dumps({"prompt": f"image {n}", **fields}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def result_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of results.jsonl."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def answer_in_terminal(answer: str, *arguments: str | Path, cwd: Path, key: str = "test-key") -> int:
    """Run the command with a terminal as its input, answer its question, and return the exit code."""
    import pty  # not on Windows

    terminal, child_terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(**({"PIXAZO_API_KEY": key} if key else {})),
        stdin=child_terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(terminal, answer.encode())
    process.communicate(timeout=PROCESS_TIMEOUT_S)
    os.close(terminal)
    os.close(child_terminal)
    return process.returncode


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve requests with `handler` in a thread, and yield the URL of the server."""
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_in_terminal(command: list[str], cwd: Path) -> tuple[int, str]:
    """Run a command in a new terminal. Returns its exit code and all output of the terminal."""
    import pty  # not on Windows

    terminal, child_terminal = pty.openpty()
    process = subprocess.Popen(
        command, cwd=cwd, stdin=child_terminal, stdout=child_terminal, stderr=child_terminal,
        env=clean_environment(PIXAZO_API_KEY="k", TERM="xterm-256color", COLUMNS="100"),
    )  # fmt: skip
    os.close(child_terminal)
    output: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                return  # the terminal closes when the last process in it ends
            if not data:
                return
            output.append(data)

    reader_thread = threading.Thread(target=read)
    reader_thread.start()
    code = process.wait(timeout=PROCESS_TIMEOUT_S)
    reader_thread.join(timeout=PROCESS_TIMEOUT_S)
    os.close(terminal)
    return code, b"".join(output).decode("utf-8", "replace")
