"""A process and all its descendants: their processor time, and their end by SIGKILL."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress

import psutil

KILL_TIMEOUT_S = 10.0  # chosen: a killed process ends within milliseconds, unless the machine is overloaded


class ProcessTree:
    """Counts the processor time of a child process and its descendants. Each call of `sample` brings it up to date.

    The time that a descendant uses after the last sample before its end is not counted.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._root = psutil.Process(process.pid)
        self._cpu_s: dict[psutil.Process, float] = {}

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu_s.values())

    def sample(self) -> bool:
        """Read the processor times. Returns whether the process has ended.

        A process that has ended keeps its time until it is waited for, so it is waited for afterwards.
        """
        for process in self._processes():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self._cpu_s[process] = times.user + times.system
        return self.process.poll() is not None

    def kill(self) -> None:
        """Kill the process and its descendants with SIGKILL, all of them, as when their container is killed."""
        self.sample()
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        deadline_s = time.monotonic() + KILL_TIMEOUT_S
        while any(map(_is_running, processes)) and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []


def _is_running(process: psutil.Process) -> bool:
    """Return whether a process has not ended. One whose parent does not wait for it stays as a zombie."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
