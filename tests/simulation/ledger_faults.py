"""Faults of the ledger: another program locks it for a while, or from some moment on it takes no more writes."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from krea_batch.ledger import waiting
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.pipeline import executor
from krea_batch.storage import spill
from tests.simulation.process import START_S, SimulatedLoop, sleep_in_thread

PATIENCE_S = waiting.MAX_WAIT_S
PAUSE_S = 5.0  # chosen: instead of 50 ms, so that a lock of twenty minutes takes few steps


class LedgerFaults:
    """The faults of the ledger in one run, mostly none. `share` of the runs have some.

    `kind` is empty without a fault. `has_failed` says that the ledger is lost to the run, which ends early.
    """

    def __init__(self, random: Random, share: float) -> None:
        kind = random.choice(["locked", "locked for long", "full", "full, also for the spill file", "unclear commit"])
        lasts_s = {"locked": random.choice([2.0, 30.0, 600.0]), "locked for long": PATIENCE_S + 60.0}
        self.kind = kind if random.random() < share else ""
        self._starts_s = START_S + random.choice([0.0, 1.0, 10.0, 60.0]) * random.random()
        self._ends_s = self._starts_s + lasts_s.get(kind, math.inf)
        self.has_failed = False

    @contextmanager
    def injected(self, loop: SimulatedLoop, on_failure: Callable[[], None]) -> Iterator[None]:
        """Inject the faults into what runs on `loop`. `on_failure` is called when the ledger fails."""
        if not self.kind:
            yield
            return
        attempt = SqliteLedger._attempt

        def faulty_attempt(store: SqliteLedger, operation: Callable[[SqliteLedger], Any]) -> Any:
            now_s = loop.time()
            if not self._starts_s <= now_s < self._ends_s:
                return attempt(store, operation)
            if self.kind.startswith("locked"):
                # The first to wait gives up soon; from now on the run may end at any moment.
                if now_s >= self._starts_s + PATIENCE_S - PAUSE_S:
                    self._fail(on_failure)
                raise _sqlite_error("database is locked", sqlite3.SQLITE_BUSY, "SQLITE_BUSY")
            if self.kind == "unclear commit" and not self.has_failed:  # the disk reports an error after the write
                attempt(store, operation)
            self._fail(on_failure)
            raise _sqlite_error("database or disk is full", sqlite3.SQLITE_FULL, "SQLITE_FULL")

        def write_no_spill(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        loop.runs_threads = self.kind.startswith("locked")
        write_spill = write_no_spill if "spill" in self.kind else spill.write_spill
        with (
            patch.object(SqliteLedger, "_attempt", faulty_attempt),
            patch.object(waiting, "time", SimpleNamespace(monotonic=loop.time, sleep=sleep_in_thread)),
            patch.object(waiting, "PAUSE_S", PAUSE_S),
            patch.object(executor, "write_spill", write_spill),
        ):
            yield

    def _fail(self, on_failure: Callable[[], None]) -> None:
        self.has_failed = True
        on_failure()


def _sqlite_error(message: str, code: int, name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode, error.sqlite_errorname = code, name
    return error
