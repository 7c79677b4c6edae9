"""Jobs come in from an iterable, in order; those that are not on record yet go out as flights.

Newcomers: the source is read only as fast as slots become free and submits go, so a file of any length needs the
memory of a few batches.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from itertools import islice

import msgspec

from krea_batch.errors import JobError
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.ledger import Store
from krea_batch.pipeline.flight import Flight
from krea_batch.pipeline.run import Run

BATCH = 256  # chosen: one question to the ledger for many jobs; small against the memory of a run


class Producer:
    """Feeds `out` with a flight for each job that the ledger does not know, each after `room` has been awaited."""

    def __init__(self, run: Run, room: Callable[[], Awaitable[None]], out: Callable[[Flight], None]) -> None:
        self._run = run
        self._room = room
        self._out = out

    async def work(self, jobs: Iterable[Job]) -> None:
        """Feed all jobs, or as many as go before the run stops. Raises JobError for a job that has changed."""
        remaining = iter(jobs)
        while not self._run.stopped and (batch := list(islice(remaining, BATCH))):
            await self._feed(batch)

    async def _feed(self, batch: list[Job]) -> None:
        known = await self._run.record(Store.fingerprints, [job.id for job in batch])
        self._run.stats.taken += len(batch)
        for job in batch:
            flight = take_off(job)
            if job.id in known or job.id in self._run.aloft:
                check_same(flight, known.get(job.id) or self._run.aloft[job.id])
                self._run.stats.skipped += 1
                continue
            await self._room()
            await self._run.slots.take()
            if self._run.stopped:
                self._run.slots.give_back()
                return
            known[job.id] = flight.fingerprint
            self._out(flight)


def take_off(job: Job) -> Flight:
    """The flight of a job that has its id."""
    body = wire.encode_body(job)
    return Flight(job.id, body, wire.fingerprint_of(body), msgspec.json.encode(job.metadata))


def check_same(flight: Flight, fingerprint: bytes) -> None:
    """Raise JobError where a job on record under this id asked for another picture."""
    if flight.fingerprint != fingerprint:
        raise JobError(
            "the job has changed since this id was submitted",
            "give it a new id, or choose another --out",
            job_id=flight.id,
        )
