"""Jobs come in from an iterable, in order; those that are not on record yet go out as flights.

Newcomers: the source is read only as fast as slots become free and submits go, so a file of any length needs the
memory of a few batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Protocol, runtime_checkable

from krea_batch.jobs import Job
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob, build_in_flight_job, require_same_request

BATCH_JOBS = 256  # chosen: one question to the ledger for many jobs; small against the memory of a run


@runtime_checkable
class Checkpointed(Protocol):
    """A source of jobs that knows how far it was read, so that the next run need not look at all of them again.

    `passed` jobs are left out, since an earlier mark covers them; `mark` gives the latest one, and how many jobs the
    iteration had given by then.
    """

    @property
    def skipped(self) -> int: ...

    def checkpoint(self) -> tuple[int, bytes] | None: ...


class Producer:
    """Feeds `out` with a flight for each job that the ledger does not know, each after `room` has been awaited."""

    def __init__(
        self,
        run: RunContext,
        wait_for_capacity: Callable[[], Awaitable[None]],
        next_stage: Callable[[InFlightJob], None],
    ) -> None:
        self._run = run
        self._has_capacity = wait_for_capacity
        self._out = next_stage
        self._given = 0
        self._unrecorded: deque[tuple[int, InFlightJob]] = deque()  # with how many jobs were given before
        self._checkpoints: deque[tuple[int, bytes]] = deque()  # that wait for jobs before them to be on record
        self._latest: tuple[int, bytes] | None = None

    async def work(self, jobs: Iterable[Job]) -> None:
        """Feed all jobs, or as many as go before the run stops. Raises JobError for a job that has changed."""
        remaining = iter(jobs)
        source = jobs if isinstance(jobs, Checkpointed) else None
        if source:
            self._run.stats.jobs_read += source.skipped
            self._run.stats.skipped += source.skipped
        while not self._run.stopped and (batch := list(islice(remaining, BATCH_JOBS))):
            await self._feed(batch)
            if source and (mark := source.checkpoint()) and mark != self._latest:
                self._latest = mark
                self._checkpoints.append(mark)
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Note the latest mark of the source before which all jobs are on record."""
        while self._unrecorded and self._unrecorded[0][1].job_no:
            self._unrecorded.popleft()
        recorded = self._unrecorded[0][0] if self._unrecorded else self._given
        kept = None
        while self._checkpoints and self._checkpoints[0][0] <= recorded:
            kept = self._checkpoints.popleft()[1]
        if kept:
            self._run.record_later(LedgerStore.save_checkpoint, kept)

    async def _feed(self, batch: list[Job]) -> None:
        known = await self._run.record(LedgerStore.fingerprints, [job.id for job in batch])
        self._run.stats.jobs_read += len(batch)
        for job in batch:
            flight = build_in_flight_job(job)
            if job.id in known or job.id in self._run.in_flight_fingerprints:
                require_same_request(flight, known.get(job.id) or self._run.in_flight_fingerprints[job.id])
                self._run.stats.skipped += 1
                if job.id not in known:  # somebody else has just submitted it, and it may not be on record yet
                    self._unrecorded.append((self._given, flight))
                self._given += 1
                continue
            await self._has_capacity()
            await self._run.in_flight_limit.acquire()
            if self._run.stopped:
                self._run.in_flight_limit.release()
                return
            known[job.id] = flight.fingerprint
            self._unrecorded.append((self._given, flight))
            self._given += 1
            self._out(flight)
