"""`krea-batch watch` shows a run of another process; the checks whether a run is active."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from krea_batch.storage.run_dir import RunDir, is_locked
from tests.processes import (
    COMMAND,
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    clean_environment,
    run_command,
    start_command,
    write_jobs,
)


@pytest.mark.slow
class TestWatch:
    def start_run(self, gateway: RunningSimulator, folder: Path) -> subprocess.Popen[str]:
        """Start a run of 60 jobs, and return its process once its directory is locked and the jobs are counted."""
        options = ("--out", "out", "--gateway", gateway.gateway_url, "--rate", "200/s", "--poll-interval", "0.1")
        run = start_command("run", "jobs.jsonl", *options, cwd=folder)
        assert run.stderr is not None
        assert "0/60" in run.stderr.readline()
        return run

    def test_until_the_run_ends(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """The command prints how many jobs are done, ends when the run ends, and has the exit code of the run."""
        write_jobs(tmp_path / "jobs.jsonl", 60)
        gateway = simulate("--tiny", "--latency", "fixed:0.1", "--fault", "submit-503=1")
        run = self.start_run(gateway, tmp_path)
        watching = start_command("watch", "out", cwd=tmp_path)
        assert watching.stderr is not None
        first_line = watching.stderr.readline()
        gateway.admin_request("/settings", {"faults": {}})
        output, stderr = watching.communicate(timeout=PROCESS_TIMEOUT_S)
        run.communicate(timeout=PROCESS_TIMEOUT_S)
        assert run.returncode == 0
        assert watching.returncode == 0, stderr
        counts = [int(count) for count in re.findall(r"^(\d+)/60 done", first_line + stderr, re.MULTILINE)]
        assert counts == sorted(counts)
        assert counts[0] == 0
        assert counts[-1] == 60
        assert "60 stored" in output

    def test_ctrl_c_detaches(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Ctrl-C ends the display and prints that the run continues, which it does."""
        write_jobs(tmp_path / "jobs.jsonl", 60)
        gateway = simulate("--tiny", "--latency", "fixed:0.1", "--fault", "submit-503=1")
        run = self.start_run(gateway, tmp_path)
        watching = start_command("watch", "out", cwd=tmp_path)
        assert watching.stderr is not None
        watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        _, stderr = watching.communicate(timeout=PROCESS_TIMEOUT_S)
        assert watching.returncode == 0
        assert stderr.endswith("Detached; the run continues.\n")
        assert run.poll() is None
        gateway.admin_request("/settings", {"faults": {}})
        run.communicate(timeout=PROCESS_TIMEOUT_S)
        assert run.returncode == 0

    def test_a_run_that_failed(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """A run without a process is shown once, with its failed jobs, and the exit code is 1."""
        write_jobs(tmp_path / "jobs.jsonl", 3)
        gateway = simulate("--tiny", "--latency", "fixed:0", "--fault", "job-failed=1").gateway_url
        run_command("run", "jobs.jsonl", "--out", "out", "--gateway", gateway, "--poll-interval", "0.1", cwd=tmp_path)
        done = run_command("watch", "out", cwd=tmp_path)
        assert done.returncode == 1
        assert "no process is working on it" in done.stdout
        assert "3 failed at the gateway" in done.stdout

    def test_in_a_terminal(self, tmp_path: Path) -> None:
        """In a terminal the live display has the bars of the stages."""
        write_jobs(tmp_path / "jobs.jsonl", 2)
        run_command(
            "run", "jobs.jsonl", "--out", "out", "--simulate", "--time-scale=100", "--poll-interval=0.1", cwd=tmp_path
        )
        terminal, child_terminal = pty.openpty()
        done = subprocess.run(
            [*COMMAND, "watch", "out"],
            cwd=tmp_path,
            env=clean_environment(TERM="xterm"),
            stderr=child_terminal,
            timeout=PROCESS_TIMEOUT_S,
        )
        os.close(child_terminal)
        shown = os.read(terminal, 100_000).decode()
        os.close(terminal)
        assert done.returncode == 0
        for text in ("submitted", "completed", "2/2", "2 stored"):
            assert text in shown


def test_watch_without_a_run(tmp_path: Path) -> None:
    """A directory without a run is refused, with exit code 2."""
    done = run_command("watch", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "not a run directory" in done.stderr


def test_status_checks_do_not_block_a_run(tmp_path: Path) -> None:
    """While three threads check the status a thousand times per second, a run can lock its directory and is found."""
    assert not is_locked(tmp_path / "nowhere")
    finished = threading.Event()

    def check_status() -> None:
        while not finished.wait(0.001):
            is_locked(tmp_path)

    checking_threads = [threading.Thread(target=check_status) for _ in range(3)]
    for thread in checking_threads:
        thread.start()
    try:
        for _ in range(200):
            run_dir = RunDir(tmp_path)
            run_dir.lock()
            assert is_locked(tmp_path)
            run_dir.unlock()
    finally:
        finished.set()
        for thread in checking_threads:
            thread.join()
    assert not is_locked(tmp_path)


def test_a_status_check_is_not_a_run(tmp_path: Path) -> None:
    """Two simultaneous status checks do not count each other as a run."""
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)  # as a status check does
    try:
        assert not is_locked(tmp_path)
    finally:
        os.close(fd)
