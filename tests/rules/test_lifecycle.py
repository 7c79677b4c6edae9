"""Test rules.lifecycle: the table of transitions, and the decisions after POSTs, polls and at a resume."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.errors import InternalError
from krea_batch.jobs import FINAL, State
from krea_batch.rules.backoff import MAX_BACKOFF_S, backoff_s
from krea_batch.rules.lifecycle import (
    MAX_REFUSALS,
    TRANSITIONS,
    Accept,
    Download,
    EndJob,
    PollAgain,
    Requeue,
    StopRun,
    after_poll,
    after_post,
    check_transition,
    on_resume,
)
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
    Progress,
    Refusal,
    Refused,
    Waiting,
)

EXPECTED_TRANSITIONS: dict[str, set[str]] = {
    "pending": {"submitting", "cancelled"},
    "submitting": {"accepted", "pending", "rejected", "ambiguous"},
    "accepted": {"finished", "failed", "errored", "timed_out"},
    "finished": {"succeeded", "timed_out"},
    "succeeded": set(),
    "failed": set(),
    "rejected": set(),
    "cancelled": set(),
    "errored": {"pending"},  # not charged: submitted again
    "ambiguous": {"pending", "accepted", "cancelled"},  # resubmitted, adopted, abandoned
    "timed_out": {"accepted"},  # polled again by the next run
}

FINISHED_IMAGE = Finished(("https://cdn.example/a.png",), "image/png")
random_values = st.floats(0, 1)
counts = st.integers(0, 1000)
messages = st.text(max_size=20)
waits = st.none() | st.floats(0, 3600)
progress: st.SearchStrategy[Progress] = st.one_of(
    st.builds(Waiting, messages), st.just(FINISHED_IMAGE), st.builds(Failed, messages), st.builds(Errored, messages)
)
refusals: st.SearchStrategy[Refused] = st.builds(
    Refused, st.sampled_from(Refusal), st.integers(400, 599), messages, waits
)
post_verdicts: st.SearchStrategy[PostVerdict] = st.one_of(
    st.builds(Accepted, messages, progress), refusals, st.builds(NotSent, messages), st.builds(Ambiguous, messages)
)
poll_verdicts: st.SearchStrategy[PollVerdict] = progress | st.builds(PollFailed, messages, st.integers(0, 599), waits)


def paths(old: State, without: State) -> Iterator[State]:
    """Yield every state that can be reached from `old` without passing through `without`."""
    reached: set[State] = set()
    frontier = [old]
    while frontier:
        for new in TRANSITIONS[frontier.pop()] - reached - {without}:
            reached.add(new)
            frontier.append(new)
            yield new


@pytest.mark.parametrize("old", State)
def test_the_table(old: State) -> None:
    """The table has the expected transitions and no others."""
    assert {new.value for new in TRANSITIONS[old]} == EXPECTED_TRANSITIONS[old.value]


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_check_transition(old: State, new: State) -> None:
    """A transition of the table passes; any other one is an InternalError that names both states."""
    if new.value in EXPECTED_TRANSITIONS[old.value]:
        check_transition(old, new)
        return
    with pytest.raises(InternalError, match=f"{old}.*{new}"):
        check_transition(old, new)


def test_the_final_states() -> None:
    """The final states are all states except those before the end of a job."""
    assert {state.value for state in FINAL} == set(EXPECTED_TRANSITIONS) - {
        "pending",
        "submitting",
        "accepted",
        "finished",
    }


def test_a_job_is_accepted_only_after_a_durable_intent() -> None:
    """A job becomes accepted from `submitting`, whose intent is durable, or after a decision or a poll."""
    assert {old for old in State if State.ACCEPTED in TRANSITIONS[old]} == {
        State.SUBMITTING,
        State.AMBIGUOUS,
        State.TIMED_OUT,
    }
    assert {old for old in State if State.SUBMITTING in TRANSITIONS[old]} == {State.PENDING}


def test_only_errored_leads_to_a_second_charged_post() -> None:
    """From `accepted`, without passing `errored`, no path of the table leads to another POST."""
    reached = set(paths(State.ACCEPTED, without=State.ERRORED))
    assert not reached & {State.PENDING, State.SUBMITTING, State.AMBIGUOUS}


def test_final_states_are_final() -> None:
    """No transition leaves succeeded, failed, rejected and cancelled."""
    assert {old for old in State if not TRANSITIONS[old]} == {
        State.SUCCEEDED,
        State.FAILED,
        State.REJECTED,
        State.CANCELLED,
    }


# ---- after a POST ----------------------------------------------------------------------------------------


@given(post_verdicts, counts, random_values)
def test_every_decision_after_a_post_is_a_transition(verdict: PostVerdict, refusals: int, jitter: float) -> None:
    """Every verdict on a POST leads to a decision whose transition from `submitting` is in the table."""
    match after_post(verdict, refusals=refusals, jitter=jitter):
        case Accept():
            check_transition(State.SUBMITTING, State.ACCEPTED)
        case Requeue(wait_s):
            check_transition(State.SUBMITTING, State.PENDING)
            assert 0 <= wait_s <= 3600
        case StopRun():
            check_transition(State.SUBMITTING, State.PENDING)
        case EndJob(state):
            check_transition(State.SUBMITTING, state)


@given(post_verdicts, counts, random_values)
def test_back_to_pending_needs_proof(verdict: PostVerdict, refusals: int, jitter: float) -> None:
    """A job goes from `submitting` to pending only if nothing was sent or the gateway refused it."""
    decision = after_post(verdict, refusals=refusals, jitter=jitter)
    if isinstance(decision, Requeue | StopRun):
        assert isinstance(verdict, NotSent | Refused)


@given(messages, counts, random_values)
def test_ambiguous_is_never_resubmitted(reason: str, refusals: int, jitter: float) -> None:
    """An ambiguous POST ends its job as ambiguous, whatever happened before."""
    decision = after_post(Ambiguous(reason), refusals=refusals, jitter=jitter)
    assert decision == EndJob(State.AMBIGUOUS, "ambiguous", reason)


@given(messages, progress, counts, random_values)
def test_an_accepted_post(request_id: str, status: Progress, refusals: int, jitter: float) -> None:
    """An accepted POST keeps its request_id and the status of its answer."""
    accepted = Accepted(request_id, status)
    assert after_post(accepted, refusals=refusals, jitter=jitter) == Accept(accepted)


@pytest.mark.parametrize(
    ("verdict", "refusals", "expected"),
    [
        (Refused(Refusal.REJECTED, 400, "bad prompt"), 0, EndJob(State.REJECTED, "http_400", "bad prompt")),
        (Refused(Refusal.REJECTED, 422, "no"), 7, EndJob(State.REJECTED, "http_422", "no")),
        (Refused(Refusal.FATAL, 401, "no key"), 0, StopRun(401, "no key")),
        (Refused(Refusal.FATAL, 402, "no money"), 99, StopRun(402, "no money")),
        (Refused(Refusal.FATAL, 403, "forbidden"), 0, StopRun(403, "forbidden")),
        (Refused(Refusal.RATE_LIMITED, 429, "slow", 3.0), 0, Requeue(0.0, "slow")),
        (Refused(Refusal.RATE_LIMITED, 429, "slow"), 1000, Requeue(0.0, "slow")),
        (Refused(Refusal.RATE_LIMITED, 403, "quota", 60.0), 1000, Requeue(0.0, "quota")),
        (Refused(Refusal.RETRYABLE, 500, "oops", 30.0), 0, Requeue(30.0, "oops")),
        (Refused(Refusal.RETRYABLE, 503, "oops"), 0, Requeue(0.5, "oops")),
        (Refused(Refusal.RETRYABLE, 503, "oops"), 1, Requeue(1.0, "oops")),
        (NotSent("no route"), 0, Requeue(0.5, "no route")),
    ],
)
def test_after_post(verdict: PostVerdict, refusals: int, expected: object) -> None:
    """4xx ends the job; 401, 402, 403 stop the run; after 429, 500, 503 and unsent POSTs it is requeued."""
    assert after_post(verdict, refusals=refusals, jitter=1.0) == expected


@given(st.sampled_from([500, 503]), messages, random_values)
def test_repeated_refusals_reject_the_job(status: int, detail: str, jitter: float) -> None:
    """A job that is always refused with 500 or 503 is rejected in the end; the message has the count."""
    refused = Refused(Refusal.RETRYABLE, status, detail)
    decisions = [after_post(refused, refusals=count, jitter=jitter) for count in range(MAX_REFUSALS)]
    assert all(isinstance(decision, Requeue) for decision in decisions[:-1])
    last = decisions[-1]
    assert isinstance(last, EndJob)
    assert last.state is State.REJECTED
    assert str(MAX_REFUSALS) in last.message
    assert detail in last.message


@given(st.integers(1, 10**6), random_values)
def test_backoff(failures: int, jitter: float) -> None:
    """Delays are spread from 0 to a maximum that never falls with more failures and never exceeds a minute."""
    assert (
        0 <= backoff_s(failures, jitter) <= backoff_s(failures, 1.0) <= backoff_s(failures + 1, 1.0) <= MAX_BACKOFF_S
    )


# ---- after a poll ----------------------------------------------------------------------------------------


@given(poll_verdicts, counts, st.integers(1, 100), random_values)
def test_every_decision_after_a_poll_is_a_transition(
    verdict: PollVerdict, errors: int, attempts: int, jitter: float
) -> None:
    """Every verdict on a poll leads to a decision whose transition from `accepted` is in the table."""
    match after_poll(verdict, errors=errors, max_attempts=attempts, jitter=jitter):
        case Download(finished):
            assert finished == verdict
            check_transition(State.ACCEPTED, State.FINISHED)
        case PollAgain():
            assert isinstance(verdict, Waiting | PollFailed)
        case Requeue():
            check_transition(State.ACCEPTED, State.ERRORED)
            check_transition(State.ERRORED, State.PENDING)
        case EndJob(state):
            check_transition(State.ACCEPTED, state)


@given(poll_verdicts, counts, st.integers(1, 100), random_values)
def test_only_error_leads_to_another_post(verdict: PollVerdict, errors: int, attempts: int, jitter: float) -> None:
    """After a poll, only ERROR, which is not charged, requeues a job, within max_attempts."""
    decision = after_poll(verdict, errors=errors, max_attempts=attempts, jitter=jitter)
    assert isinstance(decision, Requeue) == (isinstance(verdict, Errored) and errors + 1 < attempts)


@given(messages, st.integers(0, 599), waits, counts, st.integers(1, 100), random_values)
def test_a_failed_poll_changes_no_state(
    reason: str, status: int, wait_s: float | None, errors: int, attempts: int, jitter: float
) -> None:
    """If the status cannot be read, for whatever reason, the job stays accepted."""
    failed_poll = PollFailed(reason, status, wait_s)
    assert after_poll(failed_poll, errors=errors, max_attempts=attempts, jitter=jitter) == PollAgain(failed_poll)


@pytest.mark.parametrize(
    ("verdict", "errors", "expected"),
    [
        (Waiting("QUEUED"), 0, PollAgain(None)),
        (Waiting("SOME NEW STATUS"), 0, PollAgain(None)),
        (FINISHED_IMAGE, 0, Download(FINISHED_IMAGE)),
        (Failed("nsfw"), 0, EndJob(State.FAILED, "failed", "nsfw")),
        (Failed(""), 0, EndJob(State.FAILED, "failed", "the gateway gave no reason")),
        (Errored("gpu"), 0, Requeue(0.5, "gpu")),
        (Errored("gpu"), 1, Requeue(1.0, "gpu")),
        (Errored("gpu"), 2, EndJob(State.ERRORED, "error", "gpu")),
        (Errored(""), 2, EndJob(State.ERRORED, "error", "the gateway gave no reason")),
    ],
)
def test_after_poll(verdict: PollVerdict, errors: int, expected: object) -> None:
    """A waiting job is polled again, FAILED ends it, and ERROR requeues it until three POSTs were accepted."""
    assert after_poll(verdict, errors=errors, max_attempts=3, jitter=1.0) == expected


@given(st.integers(1, 50))
def test_max_attempts_counts_accepted_posts(attempts: int) -> None:
    """A job that always ends in ERROR is POSTed max_attempts times, in one run or in several."""
    posts, errors = 0, 0
    while True:
        posts += 1
        decision = after_poll(Errored(""), errors=errors, max_attempts=attempts, jitter=0.0)
        errors += 1
        if isinstance(decision, EndJob):
            break
    assert posts == attempts
    assert on_resume(State.ERRORED, errors=errors, max_attempts=attempts, resubmit_ambiguous=True) is None


# ---- a new run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kept", "resubmitted"),
    [
        ("pending", "pending", "pending"),
        ("submitting", "ambiguous", "pending"),
        ("accepted", "accepted", "accepted"),
        ("finished", "finished", "finished"),
        ("succeeded", None, None),
        ("failed", None, None),
        ("errored", "pending", "pending"),
        ("rejected", None, None),
        ("ambiguous", "ambiguous", "pending"),
        ("timed_out", "accepted", "accepted"),
        ("cancelled", None, None),
    ],
)
def test_on_resume(state: str, kept: str | None, resubmitted: str | None) -> None:
    """A new run continues from the recorded state; a pending POST is ambiguous unless configured otherwise."""
    for resubmit, expected in ((False, kept), (True, resubmitted)):
        new = on_resume(State(state), errors=0, max_attempts=3, resubmit_ambiguous=resubmit)
        assert (None if new is None else new.value) == expected


@settings(max_examples=50)
@given(st.sampled_from(State), counts, st.integers(1, 10), st.booleans())
def test_resume_follows_the_table(state: State, errors: int, attempts: int, resubmit: bool) -> None:
    """A new run follows the table; a job with a pending POST passes through `ambiguous`."""
    new = on_resume(state, errors=errors, max_attempts=attempts, resubmit_ambiguous=resubmit)
    if new is None or new is state:
        return
    if state is State.SUBMITTING:
        check_transition(state, State.AMBIGUOUS)
        state = State.AMBIGUOUS
    if new is not state:
        check_transition(state, new)


@given(counts, st.integers(1, 10))
def test_ambiguous_is_kept_unless_configured(errors: int, attempts: int) -> None:
    """Without ambiguous=resubmit, no resume leads from a pending or ambiguous POST to another POST."""
    for state in (State.SUBMITTING, State.AMBIGUOUS):
        kept = on_resume(state, errors=errors, max_attempts=attempts, resubmit_ambiguous=False)
        assert kept is State.AMBIGUOUS
