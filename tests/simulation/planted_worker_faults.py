"""Deliberate bugs of workers that share a run directory, each of which the simulation must find.

They are listed in `PLANTED_WORKER_FAULTS` as those of `planted_faults` are.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from krea_batch.engine import open_run
from krea_batch.engine.open_run import OpenRun
from krea_batch.ledger import LedgerWriter, adoption, live_runs
from krea_batch.ledger.protocol import Ledger
from krea_batch.ledger.rows import Reservation
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.pipeline.coordinator import WorkerCoordinator
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules.lease import FailureDetector, Lease
from krea_batch.storage import process_lock
from krea_batch.storage.process_lock import ProcessLock
from krea_batch.storage.spill import SpilledId
from tests.simulation.planted_faults import PlantedFault

# ---- leases and fences -----------------------------------------------------------------------------------


def send_without_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is not checked before a POST is sent."""
    monkeypatch.setattr(LedgerWriter, "may_send", lambda _: True)


def check_the_lease_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is checked before the connection is opened, not at the last moment."""
    may_send = LedgerWriter.may_send
    is_early = True

    def may_send_once(self: LedgerWriter) -> bool:
        nonlocal is_early
        was_early, is_early = is_early, not is_early
        return not was_early or may_send(self)

    monkeypatch.setattr(LedgerWriter, "may_send", may_send_once)


def share_a_lease_between_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run renews the lease of an earlier one."""
    lease = Lease()
    monkeypatch.setattr(open_run, "Lease", lambda: lease)


def renew_the_lease_at_the_end_of_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease counts from when a run learns of its commit, which it may do long after it."""
    renew = Lease.renew
    monkeypatch.setattr(Lease, "renew", lambda self, _: renew(self, asyncio.get_running_loop().time()))


def fence_by_a_stale_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is fenced although it has written something since it was last looked at."""
    fence = SqliteLedger.fence

    def fence_anyway(self: SqliteLedger, run_no: int, _: int) -> bool:
        (beat,) = self._sql.execute("SELECT beat FROM runs WHERE run_no = ?", (run_no,)).fetchone()
        return fence(self, run_no, beat)

    monkeypatch.setattr(SqliteLedger, "fence", fence_anyway)


def count_while_standing_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stalled takes the others for dead, which it has not watched in the meantime."""
    find_dead = FailureDetector.find_dead

    def find_dead_at_once(
        self: FailureDetector, now_s: float, beats: dict[int, int], ended: Collection[int]
    ) -> list[int]:
        self._looked_s = now_s
        return find_dead(self, now_s, beats, ended)

    monkeypatch.setattr(FailureDetector, "find_dead", find_dead_at_once)


def take_a_missing_lock_for_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is taken for dead because the file of its lock is missing."""

    def is_missing_or_released(name: str) -> bool:
        folder = Path(tempfile.gettempdir()) / f"krea-batch-{os.geteuid()}"
        return process_lock.is_released(name) or not any(folder.glob(f"*{name}*"))

    monkeypatch.setattr(live_runs, "is_released", is_missing_or_released)


def release_the_lock_at_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped or aborted releases its lock, while POSTs of it are pending or about to be sent."""
    init, stop_claiming = OpenRun.__init__, WorkerCoordinator.stop_claiming
    locks: dict[WorkerCoordinator, ProcessLock] = {}

    def init_with_lock(self: OpenRun, *args: Any) -> None:
        init(self, *args)
        assert self.pipeline.coordinator
        locks[self.pipeline.coordinator] = self._process_lock

    def stop_claiming_and_release(self: WorkerCoordinator) -> None:
        locks[self].release()
        stop_claiming(self)

    monkeypatch.setattr(OpenRun, "__init__", init_with_lock)
    monkeypatch.setattr(WorkerCoordinator, "stop_claiming", stop_claiming_and_release)


# ---- jobs of other runs ----------------------------------------------------------------------------------


def submit_the_jobs_of_dead_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose POST was pending when its run was fenced is submitted again."""

    def requeue(self: SqliteLedger) -> None:
        self._sql.execute(
            "UPDATE jobs SET state = 'pending' WHERE state = 'submitting'"
            " AND job_no IN (SELECT job_no FROM submissions JOIN runs USING (run_no)"
            " WHERE result IS NULL AND (fenced OR ended_at IS NOT NULL))"
        )
        self._sql.execute(
            "UPDATE submissions SET result = 'ambiguous' WHERE result IS NULL"
            " AND run_no IN (SELECT run_no FROM runs WHERE fenced OR ended_at IS NOT NULL)"
        )

    monkeypatch.setattr(SqliteLedger, "_mark_in_flight_ambiguous", requeue)


def leave_adopted_jobs_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run adopts an ambiguous job because of a callback, and any run may claim it as well."""
    adopt = SqliteLedger.adopt

    def adopt_for_anyone(self: SqliteLedger, job_no: int, request_id: str, at: float) -> bool:
        run_no, self._run_no = self._run_no, None
        try:
            return adopt(self, job_no, request_id, at)
        finally:
            self._run_no = run_no

    monkeypatch.setattr(SqliteLedger, "adopt", adopt_for_anyone)


def drop_late_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fenced run learns of its own POSTs is not recorded."""

    async def drop(*_: Any) -> None:
        pass

    monkeypatch.setattr(TransitionExecutor, "record_late", drop)


def cancel_pending_posts_at_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The POSTs of a fenced run are cancelled with its stages."""
    cancel_all = TaskPool.cancel_all

    def cancel_tasks(self: TaskPool) -> None:
        cancel_all(self)
        for task in self._tasks:
            task.cancel()

    monkeypatch.setattr(TaskPool, "cancel_all", cancel_tasks)


def refuse_a_known_request_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request_id of unrecorded.jsonl is refused if the ledger has it, because its commit was unclear."""
    adopt = adoption._adopt

    def adopt_new(ledger: Ledger, spilled: SpilledId) -> bool:
        return ledger.submission_of(spilled.request_id) is None and adopt(ledger, spilled)

    monkeypatch.setattr(adoption, "_adopt", adopt_new)


# ---- charges ---------------------------------------------------------------------------------------------


def keep_the_charges_of_dead_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run had reserved when it ended or was fenced is not given back, and the others wait for it."""
    reserve_charges = SqliteLedger.reserve_charges

    def reserve(self: SqliteLedger, count: int, max_charges: int, *, count_server_errors: bool) -> Reservation:
        (kept,) = self._sql.execute(
            "SELECT coalesce(sum(reserved), 0) FROM runs WHERE fenced OR ended_at IS NOT NULL"
        ).fetchone()
        is_exhausted = reserve_charges(self, 0, max_charges, count_server_errors=count_server_errors).exhausted
        granted = reserve_charges(self, count, max_charges - kept, count_server_errors=count_server_errors).granted
        return Reservation(granted, exhausted=is_exhausted)

    monkeypatch.setattr(SqliteLedger, "reserve_charges", reserve)


def limit_charges_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run may make as many charges as all together."""

    def reserve(self: SqliteLedger, count: int, max_charges: int, *, count_server_errors: bool) -> Reservation:
        (charged,) = self._sql.execute("SELECT charged FROM runs WHERE run_no = ?", (self._run_no,)).fetchone()
        return Reservation(max(0, min(count, max_charges - charged)), exhausted=charged >= max_charges)

    monkeypatch.setattr(SqliteLedger, "reserve_charges", reserve)


PLANTED_WORKER_FAULTS = [
    PlantedFault(send_without_a_lease, "which no longer has the job", first=9),
    PlantedFault(check_the_lease_too_early, "which no longer has the job", first=21),
    PlantedFault(share_a_lease_between_lives, "which no longer has the job", first=9),
    PlantedFault(renew_the_lease_at_the_end_of_a_commit, "which no longer has the job", first=9),
    PlantedFault(fence_by_a_stale_beat, "was fenced after only", first=15),
    PlantedFault(count_while_standing_still, "was fenced after only", first=1),
    PlantedFault(take_a_missing_lock_for_an_end, "was fenced after only", first=2),
    PlantedFault(release_the_lock_at_a_stop, "was fenced after only", first=8),
    PlantedFault(submit_the_jobs_of_dead_runs_again, "was charged 2 times", first=24),
    PlantedFault(leave_adopted_jobs_free, "is not accepted", first=25),
    PlantedFault(drop_late_results, "was not used", first=57),
    PlantedFault(cancel_pending_posts_at_the_fence, "was given up after", first=6),
    PlantedFault(refuse_a_known_request_id, "was not adopted", first=3),
    PlantedFault(keep_the_charges_of_dead_runs, "does not end", first=4),
    PlantedFault(limit_charges_of_each_run, "exceed the limit", first=1),
]
