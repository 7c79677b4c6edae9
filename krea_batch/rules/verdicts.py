"""The words in which the gateway's answers are spoken of: `wire` makes them, `lifecycle` reads them.

Newcomers: `Unclear` is not an error to be retried. It says that money may have been spent.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Waiting(Struct, frozen=True):
    """The job is queued, in work, or in a state that we do not know yet. `status` is the gateway's word."""

    status: str


class Finished(Struct, frozen=True):
    """The images can be fetched. `media_urls` holds at least one URL.

    `took_s` is the gateway's own word for how long the job took, or None where it does not say.
    """

    media_urls: tuple[str, ...]
    media_type: str
    took_s: float | None = None


class Failed(Struct, frozen=True):
    """The model could not make the image: FAILED, an end; taken as charged."""

    detail: str


class Errored(Struct, frozen=True):
    """The gateway's own fault: ERROR, not charged (API document, Status Values)."""

    detail: str


Progress = Waiting | Finished | Failed | Errored


class Accepted(Struct, frozen=True):
    """The POST was taken and is paid. `progress` is what its answer already says of the job."""

    request_id: str
    progress: Progress


class Refusal(StrEnum):
    """What a clear refusal asks of us."""

    RATE_LIMITED = "slow_down"  # 429, or 403 with Retry-After: a quota; every submit waits
    RETRYABLE = "try_again"  # 500 or 503 with the document's error body
    REJECTED = "rejected"  # 400-class: this body will never be taken
    FATAL = "stop"  # 401, 402, 403: nothing more will be taken from this key


class Refused(Struct, frozen=True):
    """Nothing was queued and nothing is paid. `retry_after_s` is None where the answer does not say."""

    refusal: Refusal
    status: int
    detail: str
    retry_after_s: float | None = None


class NotSent(Struct, frozen=True):
    """Not a byte of the POST left this machine, so it is free to go again."""

    reason: str


class Ambiguous(Struct, frozen=True):
    """The POST left, and its answer does not prove that nothing was queued."""

    reason: str


PostVerdict = Accepted | Refused | NotSent | Ambiguous


class PollFailed(Struct, frozen=True):
    """The status could not be read. This says nothing about the job. `status` is 0 where no answer came."""

    reason: str
    status: int = 0
    retry_after_s: float | None = None


PollVerdict = Progress | PollFailed
