"""Read jobs from an iterable, in order, and start those that the ledger does not know yet.

The source is read only as fast as slots become free and submits are sent, so a file of any length needs only the
memory of a few batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Protocol, runtime_checkable

from krea_batch.errors import JobError
from krea_batch.jobs import Job
from krea_batch.ledger import Ledger
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob, require_same_request

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
    """Starts every job of one source that the ledger does not know.

    `build` returns the in-flight job of a job, or raises JobError. `wait_for_capacity` is awaited before each job.
    `next_stage` takes a job that has a slot of the in-flight limit, `on_left` one that was read and is not started.
    With `enqueue`, jobs are recorded instead, for any run to start; it returns those that other runs have recorded.
    """

    def __init__(
        self,
        run: RunContext,
        build: Callable[[Job], Awaitable[InFlightJob]],
        wait_for_capacity: Callable[[], Awaitable[None]],
        next_stage: Callable[[InFlightJob], None],
        on_left: Callable[[InFlightJob], None],
        enqueue: Callable[[list[InFlightJob]], Awaitable[list[InFlightJob]]] | None = None,
    ) -> None:
        self._run = run
        self._build = build
        self._wait_for_capacity = wait_for_capacity
        self._next_stage = next_stage
        self._on_left = on_left
        self._enqueue = enqueue
        self._read = 0
        # Jobs that may not be in the ledger yet, each with the number of jobs read before it.
        self._unrecorded: deque[tuple[int, InFlightJob]] = deque()
        # Checkpoints that wait until every job before them is in the ledger.
        self._checkpoints: deque[tuple[int, bytes]] = deque()
        self._latest: tuple[int, bytes] | None = None
        # Jobs that other callers are starting, and that were not in the ledger at the last look-up.
        self._of_others: list[InFlightJob] = []

    async def work(self, jobs: Iterable[Job]) -> None:
        """Start all jobs, or as many as possible before the run stops.

        Raises JobError if the request of a known job has changed or a local image cannot be used, and what reading
        `jobs` raises.
        """
        remaining = iter(jobs)
        source = jobs if isinstance(jobs, Checkpointed) else None
        if source:
            self._run.stats.jobs_read += source.skipped
            self._run.stats.skipped += source.skipped
        while not self._run.stopped and (batch := list(islice(remaining, BATCH_JOBS))):
            self._run.stats.jobs_read += len(batch)
            built, invalid = await self._build_all(batch)
            await self._start_batch(built)
            if invalid:
                raise invalid
            if source and (checkpoint := source.checkpoint()) and checkpoint != self._latest:
                self._latest = checkpoint
                self._checkpoints.append(checkpoint)
            self.save_checkpoint()
        while not self._run.stopped and self._of_others:
            await self._run.taken_ids.wait_release([job.id for job in self._of_others])
            await self._start_batch([])

    async def _build_all(self, jobs: list[Job]) -> tuple[list[InFlightJob], JobError | None]:
        """Return the in-flight jobs before the first one that cannot be built, and its error, if there is one."""
        built = []
        for job in jobs:
            try:
                built.append(await self._build(job))
            except JobError as error:
                return built, error
        return built, None

    def save_checkpoint(self) -> None:
        """Record the latest checkpoint, if there is a new one before which every job is in the ledger."""
        while self._unrecorded and self._unrecorded[0][1].job_no:
            self._unrecorded.popleft()
        recorded = self._unrecorded[0][0] if self._unrecorded else self._read
        latest = None
        while self._checkpoints and self._checkpoints[0][0] <= recorded:
            latest = self._checkpoints.popleft()[1]
        if latest:
            self._run.record_later(Ledger.save_checkpoint, latest)

    async def _start_batch(self, batch: list[InFlightJob]) -> None:
        """Start the new jobs of a batch, and earlier ones that another caller was starting and gave up.

        Raises JobError for a job that has changed, after starting the jobs before it.
        """
        of_others, self._of_others = self._of_others, []
        jobs = [*of_others, *batch]
        known = await self._run.find_known(jobs)
        # One step of the event loop, up to the next await: no other caller takes an id that is free here.
        self._track_unrecorded(batch, known)
        new: deque[InFlightJob] = deque()
        conflict: JobError | None = None
        for job in jobs:
            try:
                if self._take(job, known):
                    new.append(job)
            except JobError as error:
                conflict = error
                break
        try:
            if self._enqueue:
                await self._record(new)
            while new:
                await self._wait_for_capacity()
                await self._run.in_flight_limit.acquire()
                if self._run.stopped:
                    self._run.in_flight_limit.release()
                    return
                self._next_stage(new.popleft())
        finally:
            for job in new:
                self._on_left(job)
        if conflict:
            raise conflict

    async def _record(self, new: deque[InFlightJob]) -> None:
        """Record the new jobs, and remove them from `new`: any run may start them. Raises JobError as `work` does."""
        assert self._enqueue  # noqa: S101 - the caller has checked it
        jobs = list(new)
        not_new = await self._enqueue(jobs)
        new.clear()
        self._unrecorded.clear()
        for job in jobs:
            self._run.taken_ids.release(job.id)
        known = await self._run.find_known(not_new)
        for job in not_new:
            require_same_request(job, known[job.id])

    def _take(self, job: InFlightJob, known: Mapping[str, bytes]) -> bool:
        """Take the id of a new job. Return False if the job is known; raise JobError if it has another request."""
        taken_ids = self._run.taken_ids
        if job.id in known:
            require_same_request(job, known[job.id])
            self._run.stats.skipped += 1
            return False
        if job.id in taken_ids:
            require_same_request(job, taken_ids.fingerprint_of(job.id))
            self._of_others.append(job)
            return False
        taken_ids.take(job.id, job.fingerprint)
        return True

    def _track_unrecorded(self, batch: list[InFlightJob], known: Mapping[str, bytes]) -> None:
        """Add the jobs of a batch that the ledger does not have, and remove those that other callers recorded."""
        self._unrecorded = deque(entry for entry in self._unrecorded if entry[1].id not in known)
        for job in batch:
            if job.id not in known:
                self._unrecorded.append((self._read, job))
            self._read += 1
