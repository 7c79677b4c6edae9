"""What an answer of the gateway means. `gateway.wire` creates verdicts, `lifecycle` decides on them.

`Ambiguous` is not an error to retry: the request may have been charged.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

PENDING_STATUSES = frozenset({"QUEUED", "PROCESSING"})  # API document, Status Values


class Waiting(Struct, frozen=True):
    """The job is queued, in progress, or in an unknown state. `status` is the gateway's status."""

    status: str

    @property
    def is_listed(self) -> bool:
        """Whether the API document lists the status for a job that has not ended."""
        return self.status in PENDING_STATUSES


class Finished(Struct, frozen=True):
    """The job is completed; its images can be downloaded. `media_urls` has at least one URL.

    `took_s` is how long the job took, as the gateway reports it, or None if it does not.
    """

    media_urls: tuple[str, ...]
    media_type: str
    took_s: float | None = None


class Failed(Struct, frozen=True):
    """FAILED: the model could not generate the image. Counted as charged."""

    detail: str


class Errored(Struct, frozen=True):
    """ERROR: the gateway itself failed. Not charged (API document, Status Values)."""

    detail: str


Progress = Waiting | Finished | Failed | Errored


class Accepted(Struct, frozen=True):
    """The POST was accepted and charged. `progress` is the status that its answer contains."""

    request_id: str
    progress: Progress


SERVER_ERRORS = frozenset({500, 503})
"""The statuses of `Refusal.RETRYABLE`. The API document calls ERROR free, but not such a POST."""


class Refusal(StrEnum):
    """How to react to a refused POST."""

    RATE_LIMITED = "rate_limited"  # 429, or 403 with Retry-After (a quota): pause all submits
    RETRYABLE = "retryable"  # 500 or 503 with the error body of the API document: retry
    REJECTED = "rejected"  # 400, 404, 405, 411, 413, 414, 415, 417, 422, 431, 505, or a 403 page: never accepted
    FATAL = "fatal"  # 401, 402, 403: nothing more will be accepted with this key


class Refused(Struct, frozen=True):
    """Nothing was queued or charged. `retry_after_s` is None if the answer has no Retry-After."""

    refusal: Refusal
    status: int
    detail: str
    retry_after_s: float | None = None


class NotSent(Struct, frozen=True):
    """Not a single byte of the POST was sent, so it can be sent again safely."""

    reason: str


class Ambiguous(Struct, frozen=True):
    """The POST was sent, and its answer does not prove that nothing was queued.

    `answer` is the beginning of the answer's body as received, at most 4 KiB. `request_ids` are those that the answer
    names; only polls can prove one.
    """

    reason: str
    answer: bytes = b""
    request_ids: tuple[str, ...] = ()


PostVerdict = Accepted | Refused | NotSent | Ambiguous


class PollFailed(Struct, frozen=True):
    """The status could not be read, which says nothing about the job. `status` is 0 if there was no answer."""

    reason: str
    status: int = 0
    retry_after_s: float | None = None


PollVerdict = Progress | PollFailed
