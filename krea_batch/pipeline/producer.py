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
from krea_batch.ledger import Store
from krea_batch.pipeline.context import Run
from krea_batch.pipeline.in_flight_job import Flight, check_same, take_off

BATCH = 256  # chosen: one question to the ledger for many jobs; small against the memory of a run


@runtime_checkable
class Marked(Protocol):
    """A source of jobs that knows how far it was read, so that the next run need not look at all of them again.

    `passed` jobs are left out, since an earlier mark covers them; `mark` gives the latest one, and how many jobs the
    iteration had given by then.
    """

    @property
    def passed(self) -> int: ...

    def mark(self) -> tuple[int, bytes] | None: ...


class Producer:
    """Feeds `out` with a flight for each job that the ledger does not know, each after `room` has been awaited."""

    def __init__(self, run: Run, room: Callable[[], Awaitable[None]], out: Callable[[Flight], None]) -> None:
        self._run = run
        self._room = room
        self._out = out
        self._given = 0
        self._unrecorded: deque[tuple[int, Flight]] = deque()  # with how many jobs were given before
        self._marks: deque[tuple[int, bytes]] = deque()  # that wait for jobs before them to be on record
        self._latest: tuple[int, bytes] | None = None

    async def work(self, jobs: Iterable[Job]) -> None:
        """Feed all jobs, or as many as go before the run stops. Raises JobError for a job that has changed."""
        remaining = iter(jobs)
        source = jobs if isinstance(jobs, Marked) else None
        if source:
            self._run.stats.jobs_read += source.passed
            self._run.stats.skipped += source.passed
        while not self._run.stopped and (batch := list(islice(remaining, BATCH))):
            await self._feed(batch)
            if source and (mark := source.mark()) and mark != self._latest:
                self._latest = mark
                self._marks.append(mark)
            self.keep_mark()

    def keep_mark(self) -> None:
        """Note the latest mark of the source before which all jobs are on record."""
        while self._unrecorded and self._unrecorded[0][1].n:
            self._unrecorded.popleft()
        recorded = self._unrecorded[0][0] if self._unrecorded else self._given
        kept = None
        while self._marks and self._marks[0][0] <= recorded:
            kept = self._marks.popleft()[1]
        if kept:
            self._run.note(Store.set_bookmark, kept)

    async def _feed(self, batch: list[Job]) -> None:
        known = await self._run.record(Store.fingerprints, [job.id for job in batch])
        self._run.stats.jobs_read += len(batch)
        for job in batch:
            flight = take_off(job)
            if job.id in known or job.id in self._run.aloft:
                check_same(flight, known.get(job.id) or self._run.aloft[job.id])
                self._run.stats.skipped += 1
                if job.id not in known:  # somebody else has just submitted it, and it may not be on record yet
                    self._unrecorded.append((self._given, flight))
                self._given += 1
                continue
            await self._room()
            await self._run.slots.take()
            if self._run.stopped:
                self._run.slots.give_back()
                return
            known[job.id] = flight.fingerprint
            self._unrecorded.append((self._given, flight))
            self._given += 1
            self._out(flight)
