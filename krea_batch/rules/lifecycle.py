"""Transitions between the states of a job, and the decision after each verdict.

Rules that the transitions keep:
1. A POST is sent only in `submitting`, and `submitting` is durable before the first byte is sent.
2. A job goes from `submitting` back to `pending` only if it is proven that nothing was queued. A job that
   `ambiguous=resubmit` submits again goes through `ambiguous`.
3. A job leaves `ambiguous` only by a decision of the user, or by a callback whose request_id a poll confirms.
4. A request_id is never dropped, and a failed poll or download never leads to another POST.
5. ERROR is the only end that the API document calls "not charged". Only ERROR leads to a second accepted POST.
6. The table is for engines. At the request of the user, `krea-batch retry` also requeues jobs that ended without an
   image.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from krea_batch.errors import InternalError
from krea_batch.jobs import State
from krea_batch.rules.backoff import backoff_s
from krea_batch.rules.verdicts import (
    Accepted,
    Ambiguous,
    Errored,
    Failed,
    Finished,
    NotSent,
    PollFailed,
    PollVerdict,
    PostVerdict,
    Refusal,
    Refused,
    Waiting,
)

TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.SUBMITTING, State.CANCELLED}),
    State.SUBMITTING: frozenset({State.ACCEPTED, State.PENDING, State.REJECTED, State.AMBIGUOUS}),
    State.ACCEPTED: frozenset({State.FINISHED, State.FAILED, State.ERRORED, State.TIMED_OUT}),
    State.FINISHED: frozenset({State.SUCCEEDED, State.TIMED_OUT}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.ERRORED: frozenset({State.PENDING}),
    State.REJECTED: frozenset(),
    State.AMBIGUOUS: frozenset({State.PENDING, State.ACCEPTED, State.CANCELLED}),
    State.TIMED_OUT: frozenset({State.ACCEPTED}),
    State.CANCELLED: frozenset(),
}

MAX_REFUSALS = 8  # chosen: with delays that double up to 60 s, this outlasts two minutes of 500s for one job


class Accept(Struct, frozen=True):
    """The POST was accepted. Wait for the job, or act on the status that the answer contains."""

    accepted: Accepted


class Requeue(Struct, frozen=True):
    """Nothing was queued, or the accepted job ended in ERROR: submit the job again after `wait_s` seconds."""

    wait_s: float
    reason: str


class StopRun(Struct, frozen=True):
    """Nothing was queued, and nothing will be: the job stays pending, and the run submits nothing more."""

    status: int
    detail: str


class EndJob(Struct, frozen=True):
    """The job ends in `state`."""

    state: State
    kind: str
    message: str


class Download(Struct, frozen=True):
    """The images can be downloaded."""

    finished: Finished


class PollAgain(Struct, frozen=True):
    """The job is not finished, or its status could not be read: then `failure` has the reason, else it is None."""

    failure: PollFailed | None


AfterPost = Accept | Requeue | StopRun | EndJob
AfterPoll = Download | PollAgain | Requeue | EndJob


def count_ended(counts: Mapping[State, int]) -> int:
    """Return the number of jobs in final states, from the number of jobs in each state."""
    return sum(count for state, count in counts.items() if state.info.final)


def check_transition(old: State, new: State) -> None:
    """Raise InternalError for a transition that the table does not have."""
    if new not in TRANSITIONS[old]:
        raise InternalError(f"no transition from {old} to {new}")


def after_post(verdict: PostVerdict, *, refusals: int, jitter: float) -> AfterPost:
    """Decide what to do with a job after its POST.

    `refusals` is the number of earlier 500s and 503s of this job. 429s do not count: the rate controller handles
    them. `jitter` from 0 to 1 spreads the retries.
    """
    match verdict:
        case Accepted():
            return Accept(verdict)
        case NotSent(reason):
            return Requeue(backoff_s(refusals + 1, jitter), reason)
        case Ambiguous(reason):
            return EndJob(State.AMBIGUOUS, "ambiguous", reason)
        case Refused():
            return _after_refusal(verdict, refusals, jitter)


def _after_refusal(refused: Refused, refusals: int, jitter: float) -> AfterPost:
    match refused.refusal:
        case Refusal.RATE_LIMITED:
            return Requeue(0.0, refused.detail)
        case Refusal.FATAL:
            return StopRun(refused.status, refused.detail)
        case Refusal.REJECTED:
            return EndJob(State.REJECTED, f"http_{refused.status}", refused.detail)
        case Refusal.RETRYABLE if refusals + 1 < MAX_REFUSALS:
            return Requeue(max(backoff_s(refusals + 1, jitter), refused.retry_after_s or 0.0), refused.detail)
        case Refusal.RETRYABLE:
            detail = f"refused {refusals + 1} times: {refused.detail}"
            return EndJob(State.REJECTED, f"http_{refused.status}", detail)


def after_poll(verdict: PollVerdict, *, errors: int, max_attempts: int, jitter: float) -> AfterPoll:
    """Decide what to do with an accepted job after a poll.

    `errors` is the number of earlier ERRORs of this job. `max_attempts` limits its accepted POSTs. `jitter` from 0 to
    1 spreads the retries.
    """
    match verdict:
        case Finished():
            return Download(verdict)
        case Waiting():
            return PollAgain(None)
        case PollFailed():
            return PollAgain(verdict)
        case Failed(detail):
            return EndJob(State.FAILED, "failed", detail or "the gateway gave no reason")
        case Errored(detail):
            if errors + 1 < max_attempts:
                return Requeue(backoff_s(errors + 1, jitter), detail or "ERROR, not charged")
            return EndJob(State.ERRORED, "error", detail or "the gateway gave no reason")


def on_resume(state: State, *, errors: int, max_attempts: int, resubmit_ambiguous: bool) -> State | None:
    """Return the state in which a new run continues a job of the ledger; None if it has ended for good.

    `submitting` means that the last process ended while the POST was pending, so its result is unknown.
    """
    if state in (State.SUBMITTING, State.AMBIGUOUS):
        return State.PENDING if resubmit_ambiguous else State.AMBIGUOUS
    if state is State.ERRORED and errors >= max_attempts:
        return None
    return state.info.resumes_as
