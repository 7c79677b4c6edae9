"""A job goes in when a slot is free; a `Flight` carries it through the stages until it ends.

Newcomers: a flight holds only what the next stage needs. The rest is in the ledger, which is why tens of
thousands of them fit.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress

import anyio
import msgspec

from krea_batch.errors import JobError
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.ledger import OpenJob
from krea_batch.rules.verdicts import Finished


class InFlightJob:
    """One job on its way. Times ending in `_s` are the loop's monotonic seconds."""

    __slots__ = (
        "accepted_s",
        "ambiguous_posts",
        "body",
        "callback_during_poll",
        "errors",
        "exploring",
        "failures",
        "fingerprint",
        "finished",
        "heap_seq",
        "id",
        "job_no",
        "key_refusals",
        "kind",
        "last_callback_s",
        "last_polled_s",
        "metadata",
        "on_schedule",
        "polls",
        "refusals",
        "request_id",
        "resumed",
        "sent_s",
        "tenant",
    )

    def __init__(
        self,
        job_id: str,
        body: bytes = b"",
        fingerprint: bytes = b"",
        metadata: bytes = b"{}",
        kind: str = "",
        tenant: str = "",
    ) -> None:
        self.id = job_id
        self.tenant = tenant
        self.kind = kind  # what may change how long it takes
        self.job_no = 0  # in the ledger; 0 before it is there
        self.body = body  # empty once accepted
        self.fingerprint = fingerprint
        self.metadata = metadata
        self.request_id = ""
        self.finished: Finished | None = None
        self.errors = 0  # accepted POSTs that came to ERROR
        self.refusals = 0  # 500s and 503s in a row
        self.ambiguous_posts = 0  # POSTs of this run of which nobody knows what became
        self.failures = 0  # unreadable answers in a row, of polls or downloads
        self.key_refusals = 0  # polls in a row that were answered 401 or 403
        self.polls = 0
        self.sent_s = 0.0  # when its last POST left
        self.accepted_s = 0.0
        self.last_polled_s = 0.0  # when a poll last found it unfinished
        self.heap_seq = -1  # of its next poll; -1 while none waits
        self.last_callback_s = -math.inf  # when a callback last hastened a poll
        self.callback_during_poll = False  # a callback came while a poll was in the air
        self.on_schedule = False  # its next poll is where the schedule's plan puts it
        self.exploring = False  # looked at every interval, while nothing is known
        self.resumed = False  # of an earlier run: how long it has been waiting is not known to us

    @classmethod
    def from_ledger(cls, job: OpenJob) -> InFlightJob:
        """A job of the ledger, on its way again."""
        flight = cls(job.job_id, kind=job.kind, tenant=job.tenant)
        flight.job_no, flight.errors, flight.polls = job.job_no, job.errors, job.polls
        flight.request_id = job.request_id or ""
        return flight


class InFlightLimit:
    """How many jobs are on their way; `limit` at most, but for those that an earlier run left open."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self._free = anyio.Semaphore(limit, fast_acquire=True)
        self._empty = anyio.Event()
        self._empty.set()

    async def acquire(self) -> None:
        """Wait for a free slot, first come, first served."""
        await self._free.acquire()
        self._count(+1)

    def acquire_resumed(self) -> None:
        """Hold a slot for a job that is on its way already, though the limit may be passed."""
        with suppress(anyio.WouldBlock):  # over the limit: no slot is freed until the count is under it again
            self._free.acquire_nowait()
        self._count(+1)

    def release(self) -> None:
        self._count(-1)
        if self.in_use < self.limit:
            self._free.release()

    async def wait_idle(self) -> None:
        """Wait until nothing is on its way."""
        while self.in_use:
            await self._empty.wait()

    def _count(self, change: int) -> None:
        self.in_use += change
        if self.in_use == 0:
            self._empty.set()
        elif change > 0 and self._empty.is_set():
            self._empty = anyio.Event()


def build_in_flight_job(job: Job, tenant: str = "") -> InFlightJob:
    """The flight of a job that has its id."""
    body = wire.encode_body(job)
    kind = sys.intern(f"{job.aspect_ratio} {job.creativity}")  # few, and each flight holds one
    return InFlightJob(job.id, body, wire.fingerprint_of(body), msgspec.json.encode(job.metadata), kind, tenant)


def require_same_request(flight: InFlightJob, fingerprint: bytes) -> None:
    """Raise JobError where a job on record under this id asked for another image."""
    if flight.fingerprint != fingerprint:
        raise JobError(
            "the job has changed since this id was submitted",
            "give it a new id, or choose another --out",
            job_id=flight.id,
        )
