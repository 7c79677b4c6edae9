"""The queue of jobs that callers submit, round robin over their tenants.

The next tenant is chosen as late as possible: when a slot is free and few jobs wait at the submitter. Jobs at the
submitter are served in order, whatever their tenants are, so only a few may wait there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.rules.round_robin import RoundRobinQueue


class AdmissionQueue:
    """Holds jobs until they get a slot of the in-flight limit.

    `wait_for_capacity` waits until the submitter can take more jobs. `next_stage` takes a job that has its slot.
    `on_deferred` takes a job that was not admitted because the run stops.
    """

    def __init__(
        self,
        run: RunContext,
        wait_for_capacity: Callable[[], Awaitable[None]],
        next_stage: Callable[[InFlightJob], None],
        on_deferred: Callable[[InFlightJob], None],
    ) -> None:
        self._run = run
        self._wait_for_capacity = wait_for_capacity
        self._next_stage = next_stage
        self._on_deferred = on_deferred
        self._waiting: RoundRobinQueue[InFlightJob] = RoundRobinQueue()
        self._not_empty = asyncio.Event()
        run.on_stopping(self._stop)

    def put(self, job: InFlightJob) -> None:
        """Queue a job behind the jobs of the same tenant."""
        if self._run.stopped:
            self._on_deferred(job)
            return
        self._waiting.put(job.tenant, job)
        self._run.stats.jobs_queued += 1
        self._not_empty.set()

    async def work(self) -> None:
        """Admit jobs, forever."""
        while True:
            await self._not_empty.wait()
            await self._wait_for_capacity()
            await self._run.in_flight_limit.acquire()
            if not self._waiting:  # The run has stopped in the meantime.
                self._run.in_flight_limit.release()
                continue
            job = self._waiting.pop()
            self._update_count()
            self._next_stage(job)

    def _update_count(self) -> None:
        self._run.stats.jobs_queued = len(self._waiting)
        if not self._waiting:
            self._not_empty.clear()

    def _stop(self) -> None:
        deferred = list(self._waiting.drain())
        self._update_count()
        for job in deferred:
            self._on_deferred(job)
