"""The types of the rows that are read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from krea_batch.jobs import ErrorInfo, Outcome, State, StoredFile
from krea_batch.rules.verdicts import Finished

OUTCOME_COLUMNS = (
    "job_id, state, request_id, files, error_kind, error_message, body, metadata, polls, attempts, "
    "submitted_at, accepted_at, finished_at, stored_at"
)
read_files = msgspec.json.Decoder(tuple[StoredFile, ...]).decode
read_media = msgspec.json.Decoder(Finished).decode


class OpenJob(msgspec.Struct, frozen=True):
    """A job that has not ended. `accepted_at` is seconds since 1970, `image_name` empty if the id names its files."""

    job_no: int
    job_id: str
    state: State
    request_id: str | None
    media: Finished | None
    attempts: int
    errors: int
    polls: int
    accepted_at: float | None
    kind: str
    tenant: str
    image_name: str


class AmbiguousJob(msgspec.Struct, frozen=True):
    """An ambiguous job. `submitted_at` is UTC, ISO 8601; `body` is as sent, `answer` the first KiBs of the answer."""

    job_no: int
    job_id: str
    submitted_at: str | None
    reason: str
    body: bytes
    answer: bytes = b""


class KnownJob(msgspec.Struct, frozen=True):
    """What a row of results.jsonl is compared with. `request_id` is that of the latest accepted submission."""

    job_no: int
    state: State
    attempts: int
    request_id: str | None


class Charges(msgspec.Struct, frozen=True):
    """Numbers of submissions that are charged, refunded (they ended in ERROR), and unknown (ambiguous).

    `server_errors` were answered with 500 or 503. Nothing was queued, but the API document does not say that they are
    free.
    """

    charged: int = 0
    refunded: int = 0
    unknown: int = 0
    server_errors: int = 0

    def limited(self, *, count_server_errors: bool) -> int:
        """Return how many submissions count against a limit of charges."""
        return self.charged + self.unknown + (self.server_errors if count_server_errors else 0)


class RunRecord(msgspec.Struct, frozen=True):
    """A run. `rate_per_s` is None if the limit is found automatically, `expected_jobs` if the number is unknown.

    `max_charges` is None if there is no limit.
    """

    started_at: float
    rate_per_s: float | None
    expected_jobs: int | None
    max_charges: int | None
    count_server_errors: bool


class LiveRun(msgspec.Struct, frozen=True):
    """A run that has not ended. Its `beat` grows with each of its transactions.

    `in_flight` and `pending` are its jobs if it shares the directory; else the ledger does not know whose they are.
    `process_lock` is the name of its lock (`storage.process_lock`), or "".
    """

    run_no: int
    worker: str
    started_at: float
    beat: int
    in_flight: int = 0
    pending: int = 0
    process_lock: str = ""


class Reservation(msgspec.Struct, frozen=True):
    """Charges that a run may make. `exhausted` is whether no run will ever be able to make another one."""

    granted: int
    exhausted: bool


class JobTiming(msgspec.Struct, frozen=True):
    """When a job was accepted, seen completed, and stored. `took_s` is the gateway's latency, or None."""

    job_no: int
    accepted_at: float
    finished_at: float | None
    stored_at: float | None
    took_s: float | None
    polls: int


def open_job(row: tuple[Any, ...]) -> OpenJob:
    """Return the job in a row of OPEN_JOB_COLUMNS."""
    job_no, job_id, state, request_id, media, attempts, errors, polls, accepted_at, body, tenant, image_name = row
    return OpenJob(
        job_no, job_id, State(state), request_id, read_media(media) if media else None, attempts, errors, polls,
        accepted_at, kind_of(body), tenant, image_name,
    )  # fmt: skip


class _KindOfRequest(msgspec.Struct):
    aspect_ratio: str = ""
    creativity: str = ""


_read_kind = msgspec.json.Decoder(_KindOfRequest).decode


def kind_of(body: bytes) -> str:
    """Return the kind of a request, whose jobs take about as long; empty if the body does not have it."""
    kind = _read_kind(body)
    return f"{kind.aspect_ratio} {kind.creativity}" if kind.aspect_ratio and kind.creativity else ""


def trusted_took_s(media: str | None, accepted_at: float | None, finished_at: float | None) -> float | None:
    """Return the gateway's own latency of a job; None if it reported none, or one that our clock contradicts."""
    if media is None or accepted_at is None or finished_at is None:
        return None
    took_s = read_media(media).took_s
    return took_s if took_s is not None and 0 <= took_s <= finished_at - accepted_at else None


def outcome_of(row: Sequence[Any]) -> Outcome:
    """Return the outcome in a row of OUTCOME_COLUMNS."""
    job_id, state, request_id, stored, kind, message, body, metadata, polls, attempts, *timestamps = row
    submitted_at, accepted_at, finished_at, stored_at = (iso(at) for at in timestamps)
    return Outcome(
        id=job_id,
        status=State(state),
        request_id=request_id,
        files=read_files(stored),
        error=ErrorInfo(kind, message) if kind is not None else None,
        request=msgspec.json.decode(body),
        metadata=msgspec.json.decode(metadata),
        polls=polls,
        attempts=attempts,
        submitted_at=submitted_at,
        accepted_at=accepted_at,
        finished_at=finished_at,
        stored_at=stored_at,
    )


def iso(at: float | None) -> str | None:
    """Return an instant as ISO 8601 in milliseconds."""
    if at is None:
        return None
    second, fraction_us = divmod(round(at * 1_000_000), 1_000_000)
    return f"{_iso_second(second)}.{fraction_us // 1000:03}Z"


def seconds_of(instant: str | None) -> float | None:
    """Return an instant in ISO 8601 as seconds since 1970; the opposite of `iso`. Raises ValueError."""
    return None if instant is None else datetime.fromisoformat(instant).timestamp()


@lru_cache(maxsize=1024)
def _iso_second(second: int) -> str:
    """Return the second of an instant. Cached: many jobs share a second, and this is most of the cost of a row."""
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
