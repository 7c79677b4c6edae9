"""Tells whether any process works on a run, on this machine or, if the ledger is in a database, on another one.

The lock of the run directory says it for the processes of this machine that share the directory. Others have a
directory of their own and share a ledger in a database. If their machine is this one, their process locks show
whether they have ended. If it is another one, only their beats do: a process that was killed seems to be alive for
LEASE_S.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from krea_batch.ledger.opening import is_in_database
from krea_batch.ledger.protocol import Ledger, LedgerReader
from krea_batch.ledger.rows import LiveRun
from krea_batch.rules.lease import LOOK_INTERVAL_S, FailureDetector
from krea_batch.storage.process_lock import is_released, remove_lock_file
from krea_batch.storage.run_dir import is_locked


class RunObserver:
    """Says at every look whether any process works on a run."""

    def __init__(self, out: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._detector = FailureDetector()

    def is_running(self, ledger: LedgerReader) -> bool:
        """Call it before the jobs are read, so that what the end of a run writes is seen."""
        if is_locked(self._out):
            return True
        if not is_in_database(self._out):
            return False
        runs = _live_runs(ledger)
        return len(runs) > len(self._detector.find_dead(self._clock(), beats_of(runs), ended_runs(runs)))


def beats_of(runs: Iterable[LiveRun]) -> dict[int, int]:
    """Return the beat of each run, by its number."""
    return {run.run_no: run.beat for run in runs}


def ended_runs(runs: Iterable[LiveRun]) -> set[int]:
    """Return the numbers of those runs that are known to have ended on this machine. Blocks for an instant."""
    return {run.run_no for run in runs if is_released(run.process_lock)}


def fence_dead_runs(ledger: Ledger) -> bool:
    """Wait until each live run has written something or is fenced. Return whether a run is alive. Blocks.

    It takes up to BEAT_INTERVAL_S, or LEASE_S if the process of a run was killed on another machine.
    """
    detector = FailureDetector()
    runs = _live_runs(ledger)
    first = beats_of(runs)
    while True:
        ended = ended_runs(runs)
        still = [run for run in runs if run.run_no in ended or first.get(run.run_no) == run.beat]
        if not still:
            return bool(runs)
        dead = detector.find_dead(time.monotonic(), beats_of(still), ended)
        for run in still:
            if run.run_no in dead and ledger.transaction(partial(Ledger.fence, run_no=run.run_no, beat=run.beat)):
                remove_lock_file(run.process_lock)
        if not dead:
            time.sleep(LOOK_INTERVAL_S)
        runs = _live_runs(ledger)


def fence_killed_runs(ledger: Ledger) -> None:
    """Fence all runs that have not ended. Only for a process that has the run directory alone. Blocks."""
    runs = _live_runs(ledger)
    ledger.transaction(Ledger.fence_others)
    for run in runs:
        remove_lock_file(run.process_lock)


def _live_runs(ledger: LedgerReader) -> list[LiveRun]:
    (runs,) = ledger.read(LedgerReader.live_runs)
    return list(runs)
