"""A job in flight, the limit on their number, and the ids that are taken.

An `InFlightJob` holds only what the next stages need; the rest is in the ledger. This is why tens of thousands of
jobs in flight fit into memory.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Collection
from contextlib import suppress

import anyio
import msgspec

from krea_batch.errors import JobError
from krea_batch.gateway import wire
from krea_batch.jobs import Job, without_image_extension
from krea_batch.ledger import NewJob, OpenJob
from krea_batch.rules.verdicts import Finished


class InFlightJob:
    """One job on its way through the stages. Times ending in `_s` are seconds of the event loop's monotonic clock."""

    __slots__ = (
        "accepted_at",
        "accepted_s",
        "body",
        "callback_during_poll",
        "errors",
        "exploring",
        "failures",
        "fingerprint",
        "finished",
        "heap_seq",
        "hopeless_polls",
        "id",
        "in_process",
        "job_no",
        "key_refusals",
        "kind",
        "last_callback_s",
        "last_polled_s",
        "metadata",
        "name",
        "on_schedule",
        "polls",
        "refreshes",
        "refusals",
        "request_id",
        "resumed",
        "sent_s",
        "signed_body",
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
        image_name: str = "",
    ) -> None:
        # The job itself, for all stages.
        self.id = job_id
        self.name = image_name or job_id  # of its images, without extension
        self.tenant = tenant
        self.kind = kind  # the fields of the request that may change how long the job takes
        self.job_no = 0  # number in the ledger; 0 until it is recorded there
        self.request_id = ""  # empty until accepted
        self.accepted_s = 0.0
        self.in_process = False  # accepted, and not known to have ended at the gateway
        self.resumed = False  # from an earlier run, so it is unknown how long it has been waiting
        self.accepted_at = 0.0  # seconds since 1970, of a resumed job

        # Submitter. The first three are empty once the job is accepted: the ledger has them.
        self.body = body
        self.fingerprint = fingerprint
        self.metadata = metadata
        self.signed_body = b""  # with signed URLs of local reference images, if it has any
        self.sent_s = 0.0  # when the last POST was sent
        self.refusals = 0  # consecutive POSTs that ended with a 500 or 503, or ambiguous
        self.errors = 0  # accepted POSTs that ended in ERROR

        # Poll scheduler.
        self.polls = 0
        self.last_polled_s = 0.0  # when a poll last found the job unfinished; the acceptance before that
        self.failures = 0  # consecutive polls without a readable answer
        self.key_refusals = 0  # consecutive polls answered 401 or 403
        self.hopeless_polls = 0  # consecutive polls without a sign that the job will end
        self.heap_seq = -1  # sequence number of the next poll in the heap; -1 if none is scheduled
        self.on_schedule = False  # the next poll is where the plan of the poll schedule puts it
        self.exploring = False  # polled often, to learn how long jobs take
        self.last_callback_s = -math.inf  # when a callback last expedited a poll
        self.callback_during_poll = False  # a callback arrived while a poll was pending

        # Downloader.
        self.finished: Finished | None = None
        self.refreshes = 0  # polls for fresh URLs

    @property
    def image_name(self) -> str:
        """The name of its images if it is not the id; else empty."""
        return "" if self.name == self.id else self.name

    @property
    def as_new(self) -> NewJob:
        """What the ledger records of a job that is not submitted yet."""
        return self.id, self.body, self.fingerprint, self.metadata, self.tenant, self.image_name

    @property
    def was_accepted_earlier(self) -> bool:
        """Whether an earlier run submitted it, so that `accepted_at` says when it was accepted."""
        return self.accepted_at > 0

    @classmethod
    def from_ledger(cls, record: OpenJob) -> InFlightJob:
        """Return a job of an earlier run, without its request."""
        job = cls(record.job_id, kind=record.kind, tenant=record.tenant, image_name=record.image_name)
        job.job_no, job.errors, job.polls = record.job_no, record.errors, record.polls
        job.request_id = record.request_id or ""
        job.accepted_at = record.accepted_at or 0.0
        return job


class InFlightLimit:
    """Limit the number of jobs in flight to `limit`. Resumed jobs may exceed it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self._free = anyio.Semaphore(limit, fast_acquire=True)

    async def acquire(self) -> None:
        """Wait for a free slot, first come, first served."""
        await self._free.acquire()
        self.in_use += 1

    def acquire_resumed(self) -> None:
        """Take a slot for a job that is in flight already, even if none is free."""
        # Above the limit, `release` frees no slot until the count is below the limit again.
        with suppress(anyio.WouldBlock):
            self._free.acquire_nowait()
        self.in_use += 1

    def release(self) -> None:
        """Free the slot of a job that ended or was left to the next run."""
        self.in_use -= 1
        if self.in_use < self.limit:
            self._free.release()


class TakenIds:
    """The ids of the jobs that are queued or in flight, with the fingerprints of their requests.

    A caller takes an id in the same step of the event loop in which it finds that neither the ledger nor this table
    has it, so no two callers start one job. The id is released when the job has ended, or is left.
    """

    def __init__(self) -> None:
        self._fingerprints: dict[str, bytes] = {}
        self._released = asyncio.Event()
        self._none_taken = asyncio.Event()
        self._none_taken.set()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._fingerprints

    def __len__(self) -> int:
        return len(self._fingerprints)

    def take(self, job_id: str, fingerprint: bytes = b"") -> None:
        """Take an id. The fingerprint may be empty if the ledger has it."""
        self._fingerprints[job_id] = fingerprint
        self._none_taken.clear()

    def release(self, job_id: str) -> None:
        """Release an id. Idempotent."""
        if self._fingerprints.pop(job_id, None) is not None:
            self._released.set()
        if not self._fingerprints:
            self._none_taken.set()

    def fingerprint_of(self, job_id: str) -> bytes:
        """Return the fingerprint of a taken id; empty if it is not taken, or the ledger has it."""
        return self._fingerprints.get(job_id, b"")

    async def wait_release(self, job_ids: Collection[str]) -> None:
        """Wait until one of these ids is not taken."""
        while all(job_id in self for job_id in job_ids):
            self._released.clear()
            await self._released.wait()

    async def wait_none(self) -> None:
        """Wait until no id is taken."""
        while self:
            await self._none_taken.wait()


def build_in_flight_job(job: Job, tenant: str = "") -> InFlightJob:
    """Return the in-flight job for a valid job, which has its id."""
    body = wire.encode_body(job)
    kind = sys.intern(f"{job.aspect_ratio} {job.creativity}")  # There are few kinds, and every job holds one.
    metadata, name = msgspec.json.encode(job.metadata), without_image_extension(job.image_name)
    return InFlightJob(job.id, body, wire.fingerprint_of(body), metadata, kind, tenant, name)


def require_same_request(job: InFlightJob, fingerprint: bytes) -> None:
    """Raise JobError unless the request recorded under this id, with this `fingerprint`, is the same."""
    if job.fingerprint != fingerprint:
        raise JobError(
            "the job has changed since this id was submitted",
            "use a new id, or another run directory",
            job_id=job.id,
        )
