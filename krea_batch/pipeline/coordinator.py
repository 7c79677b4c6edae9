"""Several runs on one run directory: heartbeats, taking over the jobs of dead runs, and claiming free jobs.

Each run is a worker with jobs of its own. The coordinator of a run writes at least every BEAT_INTERVAL_S, looks for
other runs that were killed or stall, fences them, and claims jobs that no run has. Jobs that were sent already
are claimed immediately. Pending ones are claimed only as far as this run will submit them soon, so that the others
get their share.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import NamedTuple

import anyio

from krea_batch.jobs import State
from krea_batch.ledger import MAX_TRANSACTION_ROWS, Ledger, LiveRun, OpenJob, beats_of, ended_runs
from krea_batch.pipeline.charge_budget import SharedChargeBudget
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.shared_rate_limiter import SharedRateLimiter
from krea_batch.pipeline.waiters import WaiterRegistry
from krea_batch.rules.lease import LOOK_INTERVAL_S, FailureDetector
from krea_batch.storage.process_lock import remove_lock_file

log = logging.getLogger("krea_batch")

MAX_FREE_JOBS = 1000  # chosen: as the submitter's queue; a producer waits while so many jobs are free
MIN_QUEUED = 16  # chosen: jobs that a run claims ahead at a low rate
QUEUED_S = 1.0  # chosen: for how long a run has jobs to submit until it looks again

Request = tuple[bytes, bytes, bytes]  # as `Ledger.request_of` returns it
_SENT = (State.ACCEPTED, State.FINISHED)


class WorkerCoordinator:
    """The part of a run that knows of the other runs. `resume` takes a claimed job; `waiting` counts queued ones."""

    def __init__(
        self,
        run: RunContext,
        waiters: WaiterRegistry,
        budget: SharedChargeBudget,
        resume: Callable[[OpenJob, Request | None], None],
        waiting: Callable[[], int],
    ) -> None:
        self._run = run
        self._waiters = waiters
        self._budget = budget
        self._resume = resume
        self._waiting = waiting
        self._detector = FailureDetector()
        self._wake = asyncio.Event()
        self._claims = True

    async def work(self) -> None:
        """Look every LOOK_INTERVAL_S, or as soon as there are jobs to claim, forever."""
        while True:
            self._wake.clear()
            await self.look()
            with anyio.move_on_after(LOOK_INTERVAL_S):
                await self._wake.wait()

    async def look(self) -> None:
        """Look once at the other runs, claim free jobs, and learn about jobs of other runs that callers wait for."""
        seen = await self._run.record(_look, self._claimable())
        await self._fence_dead(seen)
        for job, request in seen.claimed:
            self._resume(job, request)
        if ids := self._waiters.foreign_ids():
            self._waiters.on_foreign_jobs(await self._run.record(Ledger.find_jobs, ids))
        if not self._waiting():
            await self._budget.give_back()

    async def _fence_dead(self, seen: _Seen) -> None:
        """Fence the other runs that were killed or stall. Their jobs are claimed by the next look, now."""
        others = [run for run in seen.runs if run.run_no != self._run.run_no]
        dead = self._detector.find_dead(self._run.ledger.now_s(), beats_of(others), seen.ended)
        for run in others:
            if run.run_no in dead and await self._run.record(Ledger.fence, run.run_no, run.beat):
                remove_lock_file(run.process_lock)
                if isinstance(self._run.rate_limiter, SharedRateLimiter):
                    self._run.rate_limiter.restart()
                self._wake.set()
                log.warning("! worker stalled or was killed, taking over its jobs worker=%s", run.worker)

    def stop_claiming(self) -> None:
        """Claim no more jobs, because this run is about to end."""
        self._claims = False

    # ---- for producers -----------------------------------------------------------------------------------

    async def enqueue(self, jobs: Collection[InFlightJob]) -> list[InFlightJob]:
        """Record new jobs, for any run to claim. Return those that another run has recorded in the meantime."""
        while not self._run.stopped and await self._run.record(Ledger.has_free_jobs, MAX_FREE_JOBS):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_INTERVAL_S)
        is_new = await self._run.record(_enqueue_all, jobs)
        self._wake.set()
        return [job for job, new in zip(jobs, is_new, strict=True) if not new]

    async def wait_none_open(self) -> None:
        """Wait until no run has a job to submit or to complete, or this run is stopped."""
        while not self._run.stopped and await self._run.record(Ledger.has_unfinished_jobs):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _claimable(self) -> int | None:
        """Return how many pending jobs to claim; None if not even jobs that were sent are to be claimed."""
        if self._run.stopped or not self._claims:
            return None
        queued = max(MIN_QUEUED, self._run.rate_limiter.controller.pace_per_s * QUEUED_S)
        limit = self._run.in_flight_limit
        return max(0, min(round(queued) - self._waiting(), limit.limit - limit.in_use, MAX_TRANSACTION_ROWS))


class _Seen(NamedTuple):
    """What one look has found. `ended` has the runs whose locks are released. Pending jobs have their requests."""

    runs: list[LiveRun]
    ended: set[int]
    claimed: list[tuple[OpenJob, Request | None]]


def _look(ledger: Ledger, claimable: int | None) -> _Seen:
    claimed: list[tuple[OpenJob, Request | None]] = []
    if claimable is not None:
        claimed += [(job, None) for job in ledger.claim_jobs(_SENT, MAX_TRANSACTION_ROWS)]
        pending = ledger.claim_jobs((State.PENDING,), claimable)
        requests = ledger.requests_of([job.job_no for job in pending])
        claimed += [(job, requests[job.job_no]) for job in pending]
    runs = ledger.live_runs()
    return _Seen(runs, ended_runs(runs), claimed)


def _enqueue_all(ledger: Ledger, jobs: Collection[InFlightJob]) -> list[bool]:
    return ledger.enqueue_many([job.as_new for job in jobs], free=True)
