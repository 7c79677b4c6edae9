"""What happens in a run, as values: progress displays, logs and metrics are made of these.

Newcomers: an event is told after what it speaks of is on disk. A listener is called on the event loop, must
not block, and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from krea_batch.jobs import Outcome, State

PostResult = Literal["accepted", "refused", "rejected", "ambiguous", "not_sent"]
"""`rejected` ends its job; what was `refused` or `not_sent` goes again, in this run or the next."""

CallbackResult = Literal["hastened", "idle", "elsewhere"]

PollResult = Literal["waiting", "finished", "failed", "errored", "trouble"]


class StateChanged(Struct, frozen=True):
    """A job went from one state to another. `request_id` is None before the acceptance."""

    job_id: str
    old: State
    new: State
    request_id: str | None = None


class JobEnded(Struct, frozen=True):
    """A job ended; its row is in the ledger."""

    outcome: Outcome


class JobResumed(Struct, frozen=True):
    """A job that an earlier run left in `state` goes on in this one. `request_id` is None before the acceptance."""

    job_id: str
    state: State
    request_id: str | None = None


class SubmitCompleted(Struct, frozen=True):
    """What a POST came to is on record. `status` is the HTTP status of a clear refusal, and else 0.

    `took_s` is counted from when it left. Told before the job's `Moved`.
    """

    job_id: str
    result: PostResult
    status: int
    took_s: float


class PollCompleted(Struct, frozen=True):
    """The gateway was asked for a job's status. What follows from the answer is told by `Moved`, once on record."""

    job_id: str
    result: PollResult


class GenerationCompleted(Struct, frozen=True):
    """A job of this run was seen finished, `took_s` after its acceptance.

    `lag_s` is how long it had been finished by then, and is not counted in `took_s`; None where the gateway does
    not say, or what it says cannot be.
    """

    job_id: str
    took_s: float
    lag_s: float | None


class ImageStored(Struct, frozen=True):
    """A picture is on disk, whole and synced, `took_s` after it was last asked for."""

    job_id: str
    bytes: int
    took_s: float


class CallbackReceived(Struct, frozen=True):
    """A callback came for a job of this folder.

    It put a poll forward (`hastened`), needed none (`idle`), or was for a job that waits for none, since it has ended
    or is ambiguous (`elsewhere`).
    """

    result: CallbackResult


class RateChanged(Struct, frozen=True):
    """Submits may go at `per_s` from now on. Told when a run begins, and at each change."""

    per_s: float


class SubmitsPaused(Struct, frozen=True):
    """Submits wait `wait_s` seconds, because of `reason`; `per_s` is the rate at which they then go on."""

    wait_s: float
    per_s: float
    reason: str


class RetryScheduled(Struct, frozen=True):
    """Something failed and will be tried again. `where` is submit, poll or download."""

    job_id: str
    stage: str
    reason: str


class RunStopping(Struct, frozen=True):
    """The run takes no more submits; what is in flight is brought home. `reason` is a sentence."""

    reason: str


class RunClosed(Struct, frozen=True):
    """The run is over. `left` counts the jobs on their way that the next run goes on with, by their state."""

    unfinished: dict[State, int]


class EventsDropped(Struct, frozen=True):
    """A reader of events was so slow that `count` of them, the oldest unread, were dropped before this one."""

    count: int


Event = (
    StateChanged
    | JobEnded
    | JobResumed
    | SubmitCompleted
    | PollCompleted
    | CallbackReceived
    | GenerationCompleted
    | ImageStored
    | RateChanged
    | SubmitsPaused
    | RetryScheduled
    | RunStopping
    | RunClosed
    | EventsDropped
)
Listener = Callable[[Event], None]
