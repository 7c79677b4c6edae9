"""Verdicts and states go in; the decisions of DESIGN, section 3, come out."""

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

DESIGN_TRANSITIONS: dict[str, set[str]] = {
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
    """Every state that can be reached from `old` without passing through `without`."""
    reached: set[State] = set()
    frontier = [old]
    while frontier:
        for new in TRANSITIONS[frontier.pop()] - reached - {without}:
            reached.add(new)
            frontier.append(new)
            yield new


@pytest.mark.parametrize("old", State)
def test_table(old: State) -> None:
    """The table holds the moves of DESIGN, section 3, and no others."""
    assert {new.value for new in TRANSITIONS[old]} == DESIGN_TRANSITIONS[old.value]


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_check_move(old: State, new: State) -> None:
    """A move of the table passes; any other one is a bug of ours that names both states."""
    if new.value in DESIGN_TRANSITIONS[old.value]:
        check_transition(old, new)
        return
    with pytest.raises(InternalError, match=f"{old}.*{new}"):
        check_transition(old, new)


def test_ends() -> None:
    """The ends are the states that results.jsonl knows (DESIGN, section 3)."""
    assert {state.value for state in FINAL} == set(DESIGN_TRANSITIONS) - {
        "pending",
        "submitting",
        "accepted",
        "finished",
    }


def test_a_submit_starts_only_from_submitting() -> None:
    """An accepted job has passed through `submitting`, whose intent is on disk, or somebody resolved it."""
    assert {old for old in State if State.ACCEPTED in TRANSITIONS[old]} == {
        State.SUBMITTING,
        State.AMBIGUOUS,
        State.TIMED_OUT,
    }
    assert {old for old in State if State.SUBMITTING in TRANSITIONS[old]} == {State.PENDING}


def test_only_errored_leads_to_a_second_paid_post() -> None:
    """From `accepted`, without passing `errored`, no path of the table leads to another POST."""
    reached = set(paths(State.ACCEPTED, without=State.ERRORED))
    assert not reached & {State.PENDING, State.SUBMITTING, State.AMBIGUOUS}


def test_final_states_are_final() -> None:
    """Nothing leads out of succeeded, failed, rejected and cancelled."""
    assert {old for old in State if not TRANSITIONS[old]} == {
        State.SUCCEEDED,
        State.FAILED,
        State.REJECTED,
        State.CANCELLED,
    }


# ---- after a POST ----------------------------------------------------------------------------------------


@given(post_verdicts, counts, random_values)
def test_every_post_decision_is_a_move(verdict: PostVerdict, refused: int, chance: float) -> None:
    """Each verdict on a POST comes to a decision whose move from `submitting` is in the table."""
    match after_post(verdict, refusals=refused, jitter=chance):
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
def test_back_to_pending_needs_proof(verdict: PostVerdict, refused: int, chance: float) -> None:
    """From `submitting` a job is pending again only where nothing was sent or the gateway clearly refused."""
    decision = after_post(verdict, refusals=refused, jitter=chance)
    if isinstance(decision, Requeue | StopRun):
        assert isinstance(verdict, NotSent | Refused)


@given(messages, counts, random_values)
def test_ambiguous_is_never_resubmitted(reason: str, refused: int, chance: float) -> None:
    """A POST of which nobody knows what became ends its job as ambiguous, whatever came before."""
    decision = after_post(Ambiguous(reason), refusals=refused, jitter=chance)
    assert decision == EndJob(State.AMBIGUOUS, "ambiguous", reason)


@given(messages, progress, counts, random_values)
def test_accepted_leads_on(request_id: str, said: Progress, refused: int, chance: float) -> None:
    """An accepted POST goes on with its request_id and with all that its answer said."""
    accepted = Accepted(request_id, said)
    assert after_post(accepted, refusals=refused, jitter=chance) == Accept(accepted)


@pytest.mark.parametrize(
    ("verdict", "refused", "expected"),
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
def test_after_post(verdict: PostVerdict, refused: int, expected: object) -> None:
    """400-class ends the job, 401/402/403 stop the run, 429/500/503 and what was not sent go again."""
    assert after_post(verdict, refusals=refused, jitter=1.0) == expected


@given(st.sampled_from([500, 503]), messages, random_values)
def test_refusals_come_to_an_end(status: int, said: str, chance: float) -> None:
    """A job that is refused with 500 or 503 again and again is rejected in the end, and says how often."""
    refused = Refused(Refusal.RETRYABLE, status, said)
    decisions = [after_post(refused, refusals=count, jitter=chance) for count in range(MAX_REFUSALS)]
    assert all(isinstance(decision, Requeue) for decision in decisions[:-1])
    last = decisions[-1]
    assert isinstance(last, EndJob)
    assert last.state is State.REJECTED
    assert str(MAX_REFUSALS) in last.message
    assert said in last.message


@given(st.integers(1, 10**6), random_values)
def test_backoff(failures: int, chance: float) -> None:
    """Pauses are spread from 0 to a bound that never shrinks with failures and never passes a minute."""
    assert (
        0 <= backoff_s(failures, chance) <= backoff_s(failures, 1.0) <= backoff_s(failures + 1, 1.0) <= MAX_BACKOFF_S
    )


# ---- after a poll ----------------------------------------------------------------------------------------


@given(poll_verdicts, counts, st.integers(1, 100), random_values)
def test_every_poll_decision_is_a_move(verdict: PollVerdict, errors: int, attempts: int, chance: float) -> None:
    """Each verdict on a poll comes to a decision whose move from `accepted` is in the table."""
    match after_poll(verdict, errors=errors, max_attempts=attempts, jitter=chance):
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
def test_only_error_leads_to_another_post(verdict: PollVerdict, errors: int, attempts: int, chance: float) -> None:
    """After a poll only ERROR, which is not charged, sends a job back to the submitter, within max_attempts."""
    decision = after_poll(verdict, errors=errors, max_attempts=attempts, jitter=chance)
    assert isinstance(decision, Requeue) == (isinstance(verdict, Errored) and errors + 1 < attempts)


@given(messages, st.integers(0, 599), waits, counts, st.integers(1, 100), random_values)
def test_a_failed_poll_changes_no_state(
    reason: str, status: int, wait_s: float | None, errors: int, attempts: int, chance: float
) -> None:
    """A status that could not be read, for whatever reason, leaves the job accepted."""
    failed_poll = PollFailed(reason, status, wait_s)
    assert after_poll(failed_poll, errors=errors, max_attempts=attempts, jitter=chance) == PollAgain(failed_poll)


@pytest.mark.parametrize(
    ("verdict", "errors", "expected"),
    [
        (Waiting("QUEUED"), 0, PollAgain(None)),
        (Waiting("SOME NEW WORD"), 0, PollAgain(None)),
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
    """Waiting is looked at again, FAILED ends, ERROR goes again until three accepted POSTs came to it."""
    assert after_poll(verdict, errors=errors, max_attempts=3, jitter=1.0) == expected


@given(st.integers(1, 50))
def test_max_attempts_counts_accepted_posts(attempts: int) -> None:
    """A job that always comes to ERROR is POSTed max_attempts times, in one run or in many."""
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
    ("state", "hold", "resubmit"),
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
def test_on_resume(state: str, hold: str | None, resubmit: str | None) -> None:
    """A new run goes on from the state that the ledger has; a POST in the air is ambiguous unless asked."""
    for asked, expected in ((False, hold), (True, resubmit)):
        new = on_resume(State(state), errors=0, max_attempts=3, resubmit_ambiguous=asked)
        assert (None if new is None else new.value) == expected


@settings(max_examples=50)
@given(st.sampled_from(State), counts, st.integers(1, 10), st.booleans())
def test_resume_follows_the_table(state: State, errors: int, attempts: int, resubmit: bool) -> None:
    """A new run moves a job only along the table; one that was in the air passes through `ambiguous`."""
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
    """Without --ambiguous resubmit no resume leads from a POST in the air or an ambiguous one to another POST."""
    for state in (State.SUBMITTING, State.AMBIGUOUS):
        kept = on_resume(state, errors=errors, max_attempts=attempts, resubmit_ambiguous=False)
        assert kept is State.AMBIGUOUS
