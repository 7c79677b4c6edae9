"""Several processes of one run, which are killed, stopped and cut off while they work."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

from krea_batch.rules.lease import LEASE_S
from tests.crash.crash_scenario import CrashScenario
from tests.processes import PROCESS_TIMEOUT_S


class Worker:
    """One of several processes of a run, which is started again whenever it has ended too early.

    `wrapper` is a command that runs it elsewhere, such as in a network of its own.
    """

    def __init__(self, scenario: CrashScenario, *wrapper: str) -> None:
        self.scenario = scenario
        self._wrapper = wrapper
        self._process = scenario.start(*wrapper)
        self._undo_at_s = 0.0
        self._undo: Callable[[], None] | None = None
        self.exit_codes: list[int] = []

    @property
    def is_disturbed(self) -> bool:
        """Whether a fault lasts that will be undone."""
        return self._undo is not None

    def kill(self) -> None:
        self._process.kill()
        self._restart(self._process.wait(PROCESS_TIMEOUT_S))

    def stop(self, duration_s: float) -> None:
        """Let the process stall, as a suspended machine does."""
        self._process.send_signal(signal.SIGSTOP)
        process = self._process
        self.disturb(lambda: process.send_signal(signal.SIGCONT), duration_s)

    def disturb(self, undo: Callable[[], None], duration_s: float) -> None:
        """Call `undo` after this time."""
        self._undo, self._undo_at_s = undo, time.monotonic() + duration_s

    def step(self) -> bool:
        """Undo a fault whose time has come. Return whether the process has ended because the run has."""
        if self._undo:
            if time.monotonic() >= self._undo_at_s:
                self._undo()
                self._undo = None
            return False
        code = self._process.poll()
        if code is None:
            return False
        if self.scenario.has_ended(code):
            return True
        self._restart(code)
        return False

    def end(self) -> None:
        """Kill the process for good."""
        if self._undo:
            self._undo()
        self._process.kill()
        self._process.wait(PROCESS_TIMEOUT_S)

    def _restart(self, code: int) -> None:
        self.exit_codes.append(code)
        self._process = self.scenario.start(*self._wrapper)


Fault = Callable[[Worker, Random], None]
"""Does something to a worker, or to what it uses."""


def kill(worker: Worker, _: Random) -> None:
    worker.kill()


def stop(worker: Worker, random: Random) -> None:
    """Stop a process for 0.3 to 3 leases."""
    worker.stop(duration_s(random))


def duration_s(random: Random) -> float:
    """Return how long a fault lasts that does not end by itself."""
    return random.uniform(0.3, 3.0) * LEASE_S


def run_with_faults(
    workers: Sequence[Worker], random: Random, kinds: Mapping[str, Fault], counts: Mapping[str, int]
) -> Counter[str]:
    """Run several workers to the end, with faults every few seconds. Return how many of each kind there were."""
    faults = [name for name, count in counts.items() for _ in range(count)]
    random.shuffle(faults)
    done = Counter[str]()
    try:
        next_fault_s = time.monotonic() + random.uniform(1.0, 3.0)
        while sum(worker.step() for worker in workers) < len(workers):
            time.sleep(0.05)
            if not faults or time.monotonic() < next_fault_s:
                continue
            next_fault_s = time.monotonic() + random.uniform(0.5, 3.0)
            undisturbed = [each for each in workers if not each.is_disturbed]
            if undisturbed:
                name = faults.pop()
                kinds[name](random.choice(undisturbed), random)
                done[name] += 1
    finally:
        for worker in workers:
            worker.end()
    return done
