"""Events of a run, as values. Progress displays, logs, metrics and traces are built from them.

An event is emitted after what it reports is durable. A listener is called on the event loop; it must not block and
must not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from krea_batch.jobs import Outcome, State

SubmitResult = Literal["accepted", "refused", "rejected", "ambiguous", "not_sent"]
"""The result of a POST. `rejected` ends the job. After `refused` or `not_sent` it is submitted again, in this run or
the next."""

CallbackResult = Literal["expedited", "not_needed", "not_waiting"]
"""The effect of a callback. `expedited`: the job is polled now. `not_needed`: no poll follows. `not_waiting`: the job
waits for no poll, because it has ended or is ambiguous."""

PollResult = Literal["waiting", "finished", "failed", "errored", "error"]
"""The result of a poll. `error`: the status could not be read, which says nothing about the job."""


class StateChanged(Struct, frozen=True):
    """The state of a job changed. `request_id` is None until the gateway has accepted the job."""

    job_id: str
    old: State
    new: State
    request_id: str | None = None


class JobEnded(Struct, frozen=True):
    """A job ended; its final state is in the ledger."""

    outcome: Outcome


class JobResumed(Struct, frozen=True):
    """This run continues a job that an earlier run left in `state`.

    `request_id` is None if the gateway had not accepted the job.
    """

    job_id: str
    state: State
    request_id: str | None = None


class SubmitCompleted(Struct, frozen=True):
    """The result of a POST is in the ledger. Emitted before the job's `StateChanged`.

    `status` is the HTTP status if the gateway refused the request, and 0 otherwise. `took_s` is the time since the
    request was sent.
    """

    job_id: str
    result: SubmitResult
    status: int
    took_s: float


class PollCompleted(Struct, frozen=True):
    """A poll returned. If it changes the job's state, `StateChanged` follows once the new state is recorded."""

    job_id: str
    result: PollResult


class GenerationCompleted(Struct, frozen=True):
    """A poll found a job of this run completed, `took_s` seconds after the gateway accepted it.

    `lag_s` is how long the job had been completed by then; it is not part of `took_s`. It is None if the gateway does
    not report how long the job took, or reports an impossible value.
    """

    job_id: str
    took_s: float
    lag_s: float | None


class ImageStored(Struct, frozen=True):
    """An image is verified and durable, `took_s` seconds after its last download was started.

    `defect` is that of `StoredFile`: empty for a valid PNG.
    """

    job_id: str
    bytes: int
    took_s: float
    defect: str = ""


class CallbackReceived(Struct, frozen=True):
    """The gateway sent a callback for a job of this run directory."""

    result: CallbackResult


class RateChanged(Struct, frozen=True):
    """The submit rate is `per_s` from now on. Emitted when a run starts and at each change.

    `found_limit` is the limit of the gateway in words ("60/s", "300 per minute", "20 jobs in process"), as far as it
    has refused submits; else it is empty.
    """

    per_s: float
    found_limit: str = ""


class SubmitsPaused(Struct, frozen=True):
    """Submits pause for `wait_s` seconds because of `reason`, and then continue at `per_s`."""

    wait_s: float
    per_s: float
    reason: str


class RetryScheduled(Struct, frozen=True):
    """A request failed and will be retried. `stage` is "submit", "poll", "download" or "sink"."""

    job_id: str
    stage: str
    reason: str


class RunStopping(Struct, frozen=True):
    """The run submits nothing more; jobs in flight are completed. `reason` is a sentence."""

    reason: str


class RunClosed(Struct, frozen=True):
    """The run has ended. `unfinished` counts the jobs in flight by state; the next run resumes them."""

    unfinished: dict[State, int]


class EventsDropped(Struct, frozen=True):
    """A stream of events was read too slowly, so the `count` oldest unread events were dropped before this one."""

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
