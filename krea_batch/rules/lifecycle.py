"""The lifecycle of a job: the transitions between its states, and which of them follows a verdict. Pure.

`PATHS` is the only place that says which transition an action makes. The states in the ledger's UPDATEs, the events
that the executor emits, and the table and diagram of the documentation are derived from it.

The table follows these rules:
1. A POST is sent only in `submitting`, and `submitting` is durable before the first byte is sent.
2. A job goes from `submitting` back to `pending` only if it is proven that nothing was queued, or through `ambiguous`
   if the user has chosen in advance to resubmit ambiguous jobs.
3. A job leaves `ambiguous` only by a decision of the user, or by a request_id that a poll confirms.
4. A request_id is never dropped, and a failed poll or download never leads to another POST.
5. ERROR is the only end that the API document calls "not charged". Without a decision of the user, only ERROR leads
   to a second accepted POST.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise

from msgspec import Struct

from krea_batch.errors import GatewayError, InternalError, RunStopped
from krea_batch.events import SubmitResult
from krea_batch.jobs import RETRYABLE, ErrorInfo, State, StoredFile
from krea_batch.rules.backoff import backoff_s
from krea_batch.rules.verdicts import (
    SERVER_ERRORS,
    Accepted,
    Ambiguous,
    Errored,
    Failed,
    Finished,
    NotSent,
    PollFailed,
    PollVerdict,
    PostVerdict,
    Progress,
    Refusal,
    Refused,
    Waiting,
)

MAX_REFUSALS = 8  # chosen: with delays that double up to 60 s, this outlasts two minutes of 500s for one job
GONE_STATUSES = frozenset({404, 410})  # RFC 9110, 15.5.5 and 15.5.11: not found, gone
MAX_HOPELESS_POLLS = 3  # chosen: for a job that an earlier run gave up; a single answer may be a gateway's error
MAX_AMBIGUOUS_POSTS = 5  # chosen: if one answer in ten is lost, one job in 100,000 reaches this limit


class Action(StrEnum):
    """What happens to a job in one transaction of the ledger. `ACTIONS` describes each action."""

    SUBMIT = "submit"
    REVERT = "revert"
    ACCEPT = "accept"
    REJECT = "reject"
    MARK_AMBIGUOUS = "mark_ambiguous"
    FINISH = "finish"
    FAIL = "fail"
    GIVE_UP = "give_up"
    REQUEUE = "requeue"
    STORE = "store"
    REFRESH = "refresh"
    TIME_OUT = "time_out"
    RESUME = "resume"
    RESUBMIT = "resubmit"
    ADOPT = "adopt"
    ABANDON = "abandon"
    RETRY = "retry"


ACTIONS: Mapping[Action, str] = {
    Action.SUBMIT: "The intent to submit is recorded; the POST follows.",
    Action.REVERT: "The POST was not sent, or was clearly refused.",
    Action.ACCEPT: "The gateway accepted the POST.",
    Action.REJECT: "The gateway refused the request for good.",
    Action.MARK_AMBIGUOUS: "It is unknown whether the gateway accepted the POST.",
    Action.FINISH: "A poll found the job COMPLETED.",
    Action.FAIL: "A poll found the job FAILED.",
    Action.GIVE_UP: "A poll found the job in ERROR, and no attempt is left.",
    Action.REQUEUE: "A poll found the job in ERROR, which is not charged.",
    Action.STORE: "Every image of the job is stored.",
    Action.REFRESH: "The URLs of the images have expired; a poll returns fresh ones.",
    Action.TIME_OUT: "This run waits no longer.",
    Action.RESUME: "A new run starts.",
    Action.RESUBMIT: "`krea-batch resolve --resubmit`, or `--ambiguous resubmit` in advance.",
    Action.ADOPT: "`krea-batch resolve --adopt`, or a poll has confirmed a request_id.",
    Action.ABANDON: "`krea-batch resolve --abandon`.",
    Action.RETRY: "`krea-batch retry`.",
}
"""What each action means, for the reference."""

_S = State
PATHS: Mapping[Action, tuple[tuple[State, ...], ...]] = {
    # During a run.
    Action.SUBMIT: ((_S.PENDING, _S.SUBMITTING),),
    Action.REVERT: ((_S.SUBMITTING, _S.PENDING),),
    Action.ACCEPT: ((_S.SUBMITTING, _S.ACCEPTED),),
    Action.REJECT: ((_S.SUBMITTING, _S.REJECTED),),
    Action.MARK_AMBIGUOUS: ((_S.SUBMITTING, _S.AMBIGUOUS),),
    Action.FINISH: ((_S.ACCEPTED, _S.FINISHED),),
    Action.FAIL: ((_S.ACCEPTED, _S.FAILED),),
    Action.GIVE_UP: ((_S.ACCEPTED, _S.ERRORED),),
    Action.REQUEUE: ((_S.ACCEPTED, _S.ERRORED, _S.PENDING),),
    Action.STORE: ((_S.FINISHED, _S.SUCCEEDED),),
    Action.REFRESH: ((_S.FINISHED, _S.ACCEPTED),),
    Action.TIME_OUT: ((_S.ACCEPTED, _S.TIMED_OUT), (_S.FINISHED, _S.TIMED_OUT)),
    # At the start of a run.
    Action.RESUME: ((_S.TIMED_OUT, _S.ACCEPTED), (_S.ERRORED, _S.PENDING)),
    # By a decision of the user, some of which can be made in advance, or by proof.
    Action.RESUBMIT: ((_S.AMBIGUOUS, _S.PENDING), (_S.SUBMITTING, _S.AMBIGUOUS, _S.PENDING)),
    Action.ADOPT: ((_S.AMBIGUOUS, _S.ACCEPTED),),
    Action.ABANDON: ((_S.AMBIGUOUS, _S.CANCELLED), (_S.TIMED_OUT, _S.CANCELLED)),
    Action.RETRY: tuple((state, _S.PENDING) for state in RETRYABLE),
}
"""The paths of states that each action makes, each from another state."""

TRANSITIONS: Mapping[State, frozenset[State]] = {
    state: frozenset(new for paths in PATHS.values() for path in paths for old, new in pairwise(path) if old is state)
    for state in State
}
"""The states that can follow each state."""


def path_of(action: Action, old: State) -> tuple[State, ...]:
    """Return the states through which an action takes a job. Raises InternalError if it cannot start from `old`."""
    for path in PATHS[action]:
        if path[0] is old:
            return path
    raise InternalError(f"no transition {action!r} from {old}")


class Stage(StrEnum):
    """Who takes a job after a transition."""

    SUBMITTER = "submitter"
    POLL_SCHEDULER = "poll_scheduler"
    DOWNLOADER = "downloader"
    END = "end"  # the callers who wait for its outcome
    NEXT_RUN = "next_run"


class Transition(Struct, frozen=True, kw_only=True):
    """A transition of a job: what the ledger records, what listeners are told, and who takes the job then.

    Without a `next_stage`, the stage that applies the transition keeps the job. `submit_result` is set if the
    transition is the result of a POST, with the `status` of a refusal. `retry_reason` is set if a request is
    repeated, after `wait_s` seconds at the earliest. `stop` ends the run early. The other fields are what the ledger
    records.
    """

    action: Action
    old: State
    next_stage: Stage | None = None
    submit_result: SubmitResult | None = None
    status: int = 0
    request_id: str = ""
    progress: Progress | None = None
    finished: Finished | None = None
    files: tuple[StoredFile, ...] = ()
    error: ErrorInfo | None = None
    answer: bytes = b""
    retry_reason: str = ""
    wait_s: float = 0.0
    stop: RunStopped | None = None

    @property
    def path(self) -> tuple[State, ...]:
        """The states that the job passes through, from `old` on."""
        return path_of(self.action, self.old)

    @property
    def is_server_error(self) -> bool:
        """Whether the POST was answered with 500 or 503."""
        return self.status in SERVER_ERRORS


def count_ended(counts: Mapping[State, int]) -> int:
    """Return the number of jobs in final states, from the number of jobs in each state."""
    return sum(count for state, count in counts.items() if state.info.final)


# ---- submits ---------------------------------------------------------------------------------------------

NEXT_STEPS: Mapping[int, str] = {
    401: "use a valid API key, then run again to resume",
    402: "top up the wallet, then run again to resume",
    403: "check whether the API key may use this model, then run again to resume",
}
"""What a user does after a refusal that stops the run, by HTTP status."""

FIX_CAUSE = "fix the cause, then run again to resume"

SUBMIT = Transition(action=Action.SUBMIT, old=State.PENDING)
"""The intent to submit a pending job. The submitter then sends the POST."""

REVERT = Transition(action=Action.REVERT, old=State.SUBMITTING, next_stage=Stage.SUBMITTER)
"""The POST of an intent was not sent, because submits were paused or the run was stopped in the meantime."""


def after_post(
    verdict: PostVerdict,
    *,
    refusals: int,
    jitter: float,
    resubmit_ambiguous: bool = False,
    is_outage: bool = False,
) -> Transition:
    """Return the transition of a submitting job after its POST.

    `refusals` is the number of earlier POSTs of this job in a row that ended with a 500 or 503, or ambiguous. 429s do
    not count: the rate controller handles them. `jitter` from 0 to 1 spreads the retries. `resubmit_ambiguous` is the
    user's decision in advance. During an outage (`is_outage`, by the circuit breaker), a refusal is not about the
    job, so it is submitted again.
    """
    match verdict:
        case Accepted(request_id, progress):
            return Transition(
                action=Action.ACCEPT,
                old=State.SUBMITTING,
                next_stage=Stage.POLL_SCHEDULER,
                submit_result="accepted",
                request_id=request_id,
                progress=progress,
            )
        case NotSent(reason):
            return _revert("not_sent", backoff_s(refusals + 1, jitter), reason)
        case Ambiguous():
            resubmit = resubmit_ambiguous and refusals + 1 < MAX_AMBIGUOUS_POSTS
            return _after_ambiguous(verdict, backoff_s(refusals + 1, jitter) if resubmit else None)
        case Refused():  # the last one
            return _after_refusal(verdict, refusals, jitter, is_outage=is_outage)


def _after_ambiguous(verdict: Ambiguous, resubmit_after_s: float | None) -> Transition:
    resubmit = resubmit_after_s is not None
    return Transition(
        action=Action.RESUBMIT if resubmit else Action.MARK_AMBIGUOUS,
        old=State.SUBMITTING,
        next_stage=Stage.SUBMITTER if resubmit else Stage.END,
        submit_result="ambiguous",
        error=ErrorInfo("ambiguous", verdict.reason),
        answer=verdict.answer,
        retry_reason=verdict.reason if resubmit else "",
        wait_s=resubmit_after_s or 0.0,
    )


def _after_refusal(refused: Refused, refusals: int, jitter: float, *, is_outage: bool) -> Transition:
    match refused.refusal:
        case Refusal.RATE_LIMITED:
            return _revert("refused", 0.0, refused.detail, refused.status)
        case Refusal.FATAL:
            return Transition(
                action=Action.REVERT,
                old=State.SUBMITTING,
                next_stage=Stage.NEXT_RUN,
                submit_result="refused",
                status=refused.status,
                stop=GatewayError(refused.status, refused.detail, NEXT_STEPS.get(refused.status, FIX_CAUSE)),
            )
        case Refusal.REJECTED if is_outage:
            return _revert("refused", backoff_s(refusals + 1, jitter), refused.detail, refused.status)
        case Refusal.REJECTED:
            return _reject(refused, refused.detail)
        case Refusal.RETRYABLE if is_outage or refusals + 1 < MAX_REFUSALS:
            wait_s = max(backoff_s(refusals + 1, jitter), refused.retry_after_s or 0.0)
            return _revert("refused", wait_s, refused.detail, refused.status)
        case Refusal.RETRYABLE:  # the last one
            return _reject(refused, f"refused {refusals + 1} times: {refused.detail}")


def _revert(result: SubmitResult, wait_s: float, reason: str, status: int = 0) -> Transition:
    return Transition(
        action=Action.REVERT,
        old=State.SUBMITTING,
        next_stage=Stage.SUBMITTER,
        submit_result=result,
        status=status,
        retry_reason=reason,
        wait_s=wait_s,
    )


def _reject(refused: Refused, detail: str) -> Transition:
    return Transition(
        action=Action.REJECT,
        old=State.SUBMITTING,
        next_stage=Stage.END,
        submit_result="rejected",
        status=refused.status,
        error=ErrorInfo(f"http_{refused.status}", detail),
    )


def prove_one(polled: Sequence[tuple[str, PollVerdict]]) -> Accepted | None:
    """Return the acceptance of a POST whose answer names these request_ids, from a poll of each; None if unproven.

    A poll proves that a request_id exists, but not to which job it belongs. So the gateway must know exactly one and
    deny the others.
    """
    known = [Accepted(request_id, verdict) for request_id, verdict in polled if not isinstance(verdict, PollFailed)]
    denied = sum(isinstance(verdict, PollFailed) and verdict.status in GONE_STATUSES for _, verdict in polled)
    return known[0] if len(known) == 1 and denied == len(polled) - 1 else None


# ---- polls -----------------------------------------------------------------------------------------------


def after_poll(verdict: PollVerdict, *, errors: int, max_attempts: int, jitter: float) -> Transition | None:
    """Return the transition of an accepted job after a poll, or None if it stays accepted.

    `errors` is the number of earlier ERRORs of this job. `max_attempts` limits its accepted POSTs. `jitter` from 0 to
    1 spreads the retries.
    """
    match verdict:
        case Waiting() | PollFailed():
            return None
        case Finished():
            return Transition(
                action=Action.FINISH,
                old=State.ACCEPTED,
                next_stage=Stage.DOWNLOADER,
                finished=verdict,
            )
        case Failed(detail):
            return _end_accepted(Action.FAIL, "failed", detail)
        case Errored(detail) if errors + 1 < max_attempts:
            return Transition(
                action=Action.REQUEUE,
                old=State.ACCEPTED,
                next_stage=Stage.SUBMITTER,
                retry_reason=detail or "ERROR, not charged",
                wait_s=backoff_s(errors + 1, jitter),
            )
        case Errored(detail):  # the last one
            return _end_accepted(Action.GIVE_UP, "error", detail)


def is_hopeless(verdict: PollVerdict) -> bool:
    """Return whether a poll shows no sign that the job will end: no such request, or an unlisted status."""
    match verdict:
        case Waiting():
            return not verdict.is_listed
        case PollFailed(status=status):
            return status in GONE_STATUSES
        case _:
            return False


def describe_poll(verdict: Waiting | PollFailed) -> str:
    """Return what the last poll of an unfinished job said."""
    return f"its status is {verdict.status}" if isinstance(verdict, Waiting) else verdict.reason


def _end_accepted(action: Action, kind: str, detail: str) -> Transition:
    return Transition(
        action=action,
        old=State.ACCEPTED,
        next_stage=Stage.END,
        error=ErrorInfo(kind, detail or "the gateway gave no reason"),
    )


def time_out(old: State, error: ErrorInfo) -> Transition:
    """Return the transition of an accepted or finished job for which this run waits no longer."""
    return Transition(action=Action.TIME_OUT, old=old, next_stage=Stage.END, error=error)


def adopt(request_id: str, progress: Progress) -> Transition:
    """Return the transition of an ambiguous job whose request_id is known, and confirmed by a poll."""
    return Transition(
        action=Action.ADOPT,
        old=State.AMBIGUOUS,
        next_stage=Stage.POLL_SCHEDULER,
        request_id=request_id,
        progress=progress,
    )


# ---- downloads -------------------------------------------------------------------------------------------


def store(files: tuple[StoredFile, ...]) -> Transition:
    """Return the transition of a finished job whose images are all durable."""
    return Transition(action=Action.STORE, old=State.FINISHED, next_stage=Stage.END, files=files)


def refresh(finished: Finished) -> Transition:
    """Return the transition of a finished job whose URLs have expired. It is polled immediately."""
    return Transition(action=Action.REFRESH, old=State.FINISHED, next_stage=Stage.POLL_SCHEDULER, progress=finished)


# ---- the start of a run ----------------------------------------------------------------------------------


def on_resume(state: State, *, errors: int, max_attempts: int, resubmit_ambiguous: bool) -> State | None:
    """Return the state in which a new run continues a job of the ledger; None if it has ended for good.

    `submitting` means that the last process ended while the POST was pending, so its result is unknown.
    """
    if state in (State.SUBMITTING, State.AMBIGUOUS):
        return State.PENDING if resubmit_ambiguous else State.AMBIGUOUS
    if state is State.ERRORED and errors >= max_attempts:
        return None
    return state.info.resumes_as
