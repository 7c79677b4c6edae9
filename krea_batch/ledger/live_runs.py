"""Tells whether any process works on a run, on this machine or, if the ledger is in a database, on another one.

The lock of the run directory says it for the processes of this machine. Those of other machines are known by their
beats only, so a process that was killed seems to be alive for LEASE_S.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from krea_batch.ledger.opening import is_in_database
from krea_batch.ledger.protocol import Ledger, LedgerReader
from krea_batch.rules.lease import LOOK_INTERVAL_S, FailureDetector
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
        beats = _beats(ledger)
        return len(beats) > len(self._detector.find_dead(self._clock(), beats))


def fence_dead_runs(ledger: Ledger) -> bool:
    """Wait until each live run has written something or is fenced. Return whether a run is alive. Blocks.

    It takes up to BEAT_INTERVAL_S, or LEASE_S if the process of a run was killed.
    """
    detector = FailureDetector()
    first = beats = _beats(ledger)
    while still := {run_no: beat for run_no, beat in beats.items() if first.get(run_no) == beat}:
        for run_no in detector.find_dead(time.monotonic(), still):
            ledger.transaction(partial(Ledger.fence, run_no=run_no, beat=still[run_no]))
        time.sleep(LOOK_INTERVAL_S)
        beats = _beats(ledger)
    return bool(beats)


def _beats(ledger: LedgerReader) -> dict[int, int]:
    (runs,) = ledger.read(LedgerReader.live_runs)
    return {each.run_no: each.beat for each in runs}
