"""A verdict comes in with what is known of the job; what to do with the job goes out.

The laws:
1. A POST goes out only from `submitting`, and `submitting` is on disk before its first byte leaves.
2. From `submitting` back to `pending` there is one way: proof that nothing was queued.
3. `ambiguous` is left only by somebody's word: the user's, or a callback that names the job.
4. A request_id is never forgotten, and trouble with polls or downloads never leads to another POST.
5. ERROR is the one end that the document calls "not charged"; it alone leads to a second accepted POST.
6. The table holds for engines. Somebody's word may make a job pending that ended in vain (`krea-batch retry`).
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

MAX_REFUSALS = 8  # chosen: with pauses doubling to 60 s this outlasts two minutes of 500s for one job


class Accept(Struct, frozen=True):
    """The POST was accepted: wait for it, or go on with what its answer already says."""

    accepted: Accepted


class Requeue(Struct, frozen=True):
    """Nothing was queued: the job is pending again and may go after `wait_s` seconds."""

    wait_s: float
    reason: str


class StopRun(Struct, frozen=True):
    """Nothing was queued and nothing more will be: the job stays pending and the run takes no more submits."""

    status: int
    detail: str


class EndJob(Struct, frozen=True):
    """The job ends in `state`."""

    state: State
    kind: str
    message: str


class Download(Struct, frozen=True):
    """The images can be fetched."""

    finished: Finished


class PollAgain(Struct, frozen=True):
    """Nothing is known yet. `trouble` says why the status could not be read, or is None."""

    failure: PollFailed | None


AfterPost = Accept | Requeue | StopRun | EndJob
AfterPoll = Download | PollAgain | Requeue | EndJob


def count_ended(counts: Mapping[State, int]) -> int:
    """How many jobs have ended, of how many stand in each state."""
    return sum(count for state, count in counts.items() if state.info.final)


def check_transition(old: State, new: State) -> None:
    """Raise KreaBatchBug for a move that the table does not have."""
    if new not in TRANSITIONS[old]:
        raise InternalError(f"a job cannot go from {old} to {new}")


def after_post(verdict: PostVerdict, *, refusals: int, jitter: float) -> AfterPost:
    """What becomes of a job whose POST came to `verdict`.

    `refusals` counts this job's 500s and 503s before this one; 429s are not counted, since they are the
    pace's business. `chance` (0 to 1) spreads the tries.
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
    """What becomes of an accepted job whose status came to `verdict`.

    `errors` counts the job's ERRORs before this one; `max_attempts` bounds how many accepted POSTs it may have.
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
    """The state in which a new run goes on with a job of the ledger; None where it has ended for good.

    `submitting` means that the last process died with the POST in the air: nobody knows what became of it.
    """
    if state in (State.SUBMITTING, State.AMBIGUOUS):
        return State.PENDING if resubmit_ambiguous else State.AMBIGUOUS
    if state is State.ERRORED and errors >= max_attempts:
        return None
    return State(state.info.resumes_as) if state.info.resumes_as else None
