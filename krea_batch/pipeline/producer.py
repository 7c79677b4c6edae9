"""Read jobs from an iterable, in order, and start those that the ledger does not know yet.

The source is read only as fast as slots become free and submits are sent, so a file of any length needs only the
memory of a few batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Protocol, runtime_checkable

from krea_batch.jobs import Job
from krea_batch.ledger import LedgerStore, check_new_jobs
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob, build_in_flight_job, require_same_request

BATCH_JOBS = 256  # chosen: one query of the ledger for many jobs; small against the memory of a run


@runtime_checkable
class Checkpointed(Protocol):
    """A source of jobs that can resume: it knows how far it was read, and skips what an earlier checkpoint covers.

    `skipped` is the number of jobs left out at the start. `checkpoint` returns the latest checkpoint and how many
    jobs the iteration had yielded before it, or None if there is none.
    """

    @property
    def skipped(self) -> int: ...

    def checkpoint(self) -> tuple[int, bytes] | None: ...


class Producer:
    """Starts every job of a source that the ledger does not know.

    `wait_for_capacity` is awaited before each job. `next_stage` takes a job that has a slot of the in-flight limit.
    """

    def __init__(
        self,
        run: RunContext,
        wait_for_capacity: Callable[[], Awaitable[None]],
        next_stage: Callable[[InFlightJob], None],
    ) -> None:
        self._run = run
        self._wait_for_capacity = wait_for_capacity
        self._next_stage = next_stage
        self._read = 0
        # Jobs that may not be in the ledger yet, each with the number of jobs read before it.
        self._unrecorded: deque[tuple[int, InFlightJob]] = deque()
        # Checkpoints that wait until every job before them is in the ledger.
        self._checkpoints: deque[tuple[int, bytes]] = deque()
        self._latest: tuple[int, bytes] | None = None

    async def work(self, jobs: Iterable[Job]) -> None:
        """Start all jobs, or as many as possible before the run stops.

        Raises JobError if the request of a known job has changed, and whatever reading `jobs` raises.
        """
        remaining = iter(jobs)
        source = jobs if isinstance(jobs, Checkpointed) else None
        if source:
            self._run.stats.jobs_read += source.skipped
            self._run.stats.skipped += source.skipped
        while not self._run.stopped and (batch := list(islice(remaining, BATCH_JOBS))):
            await self._start_batch(batch)
            if source and (checkpoint := source.checkpoint()) and checkpoint != self._latest:
                self._latest = checkpoint
                self._checkpoints.append(checkpoint)
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Record the latest checkpoint, if there is a new one before which every job is in the ledger."""
        while self._unrecorded and self._unrecorded[0][1].job_no:
            self._unrecorded.popleft()
        recorded = self._unrecorded[0][0] if self._unrecorded else self._read
        latest = None
        while self._checkpoints and self._checkpoints[0][0] <= recorded:
            latest = self._checkpoints.popleft()[1]
        if latest:
            self._run.record_later(LedgerStore.save_checkpoint, latest)

    async def _start_batch(self, batch: list[Job]) -> None:
        known = await self._run.record(LedgerStore.fingerprints, [job.id for job in batch])
        new_ids = [job.id for job in batch if job.id not in known]
        await check_new_jobs(self._run.record, self._run.settings.out, new_ids)
        self._run.stats.jobs_read += len(batch)
        for requested in batch:
            job = build_in_flight_job(requested)
            if job.id in known or job.id in self._run.in_flight_fingerprints:
                require_same_request(job, known.get(job.id) or self._run.in_flight_fingerprints[job.id])
                self._run.stats.skipped += 1
                if job.id not in known:  # A caller has just submitted it, and it may not be in the ledger yet.
                    self._unrecorded.append((self._read, job))
                self._read += 1
                continue
            await self._wait_for_capacity()
            await self._run.in_flight_limit.acquire()
            if self._run.stopped:
                self._run.in_flight_limit.release()
                return
            known[job.id] = job.fingerprint
            self._unrecorded.append((self._read, job))
            self._read += 1
            self._next_stage(job)
