"""Test rules.lifecycle: the table of actions, and the transitions after POSTs, polls and at a resume."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.errors import GatewayError, InternalError
from krea_batch.jobs import FINAL, RETRYABLE, ErrorInfo, State
from krea_batch.rules.backoff import MAX_BACKOFF_S, backoff_s
from krea_batch.rules.lifecycle import (
    MAX_AMBIGUOUS_POSTS,
    MAX_REFUSALS,
    PATHS,
    REVERT,
    SUBMIT,
    TRANSITIONS,
    Action,
    Stage,
    Transition,
    adopt,
    after_poll,
    after_post,
    is_hopeless,
    on_resume,
    path_of,
    store,
    time_out,
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
    "pending": {"submitting"},
    "submitting": {"accepted", "pending", "rejected", "ambiguous"},
    "accepted": {"finished", "failed", "errored", "timed_out"},
    "finished": {"succeeded", "timed_out", "accepted"},  # URLs that have expired
    "succeeded": set(),
    "failed": {"pending"},  # krea-batch retry, as for the next two
    "rejected": {"pending"},
    "cancelled": {"pending"},
    "errored": {"pending"},  # not charged: submitted again
    "ambiguous": {"pending", "accepted", "cancelled"},  # resubmitted, adopted, abandoned
    "timed_out": {"accepted", "pending", "cancelled"},  # polled again by the next run, retried, abandoned
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


USER_ACTIONS = {Action.RESUBMIT, Action.ADOPT, Action.ABANDON, Action.RETRY}
"""Actions that need a decision of the user, or proof."""


def reachable(old: State, actions: set[Action], without: State | None = None) -> set[State]:
    """Return every state that the actions can reach from `old` without passing through `without`."""
    edges = [pair for action in actions for path in PATHS[action] for pair in itertools.pairwise(path)]
    reached: set[State] = set()
    frontier = [old]
    while frontier:
        state = frontier.pop()
        new = {after for before, after in edges if before is state} - reached - {without}
        reached |= new
        frontier += new
    return reached


@pytest.mark.parametrize("old", State)
def test_the_table(old: State) -> None:
    """The table has the expected transitions and no others."""
    assert {new.value for new in TRANSITIONS[old]} == EXPECTED_TRANSITIONS[old.value]


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("old", State)
def test_path_of(action: Action, old: State) -> None:
    """An action takes a job along its path for the state; from any other state it is an InternalError."""
    paths = [path for path in PATHS[action] if path[0] is old]
    if paths:
        assert [path_of(action, old)] == paths
        return
    with pytest.raises(InternalError, match=f"{action}.*{old}"):
        path_of(action, old)


@pytest.mark.parametrize("old", State)
def test_a_way_out_of_every_state(old: State) -> None:
    """From every state but `succeeded`, actions lead to an image; only `succeeded` is the end."""
    assert (State.SUCCEEDED in reachable(old, set(Action))) == (old is not State.SUCCEEDED)


def test_a_command_leads_on_from_every_end() -> None:
    """From every final state but `succeeded` a decision of the user leads on, whatever the gateway says."""
    decided = {path[0] for action in USER_ACTIONS for path in PATHS[action]}
    assert decided == FINAL - {State.SUCCEEDED} | {State.SUBMITTING}  # `--ambiguous resubmit`, decided in advance


def test_retry_is_for_jobs_without_an_image() -> None:
    """`retry` takes a job from each retryable state to pending, and from no other."""
    assert set(PATHS[Action.RETRY]) == {(state, State.PENDING) for state in RETRYABLE}


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
        State.FINISHED,
    }
    assert {old for old in State if State.SUBMITTING in TRANSITIONS[old]} == {State.PENDING}


def test_only_errored_leads_to_a_second_charged_post() -> None:
    """From `accepted`, without a decision of the user and without `errored`, no path leads to another POST."""
    reached = reachable(State.ACCEPTED, set(Action) - USER_ACTIONS, without=State.ERRORED)
    assert not reached & {State.PENDING, State.SUBMITTING, State.AMBIGUOUS}


def test_an_ambiguous_job_needs_a_decision() -> None:
    """Without a decision of the user, or proof, no action leaves `ambiguous`."""
    assert reachable(State.AMBIGUOUS, set(Action) - USER_ACTIONS) == set()


# ---- after a POST ----------------------------------------------------------------------------------------


def test_before_the_post() -> None:
    """The intent leads from pending to submitting; a POST that is not sent leads back to the submitter."""
    assert SUBMIT.path == (State.PENDING, State.SUBMITTING)
    assert SUBMIT.next_stage is None
    assert REVERT.path == (State.SUBMITTING, State.PENDING)
    assert REVERT.next_stage is Stage.SUBMITTER


@given(post_verdicts, counts, random_values, st.booleans())
def test_every_transition_after_a_post(verdict: PostVerdict, refusals: int, jitter: float, resubmit: bool) -> None:
    """Every verdict on a POST leads from `submitting` to the state that belongs to the next stage."""
    transition = after_post(verdict, refusals=refusals, jitter=jitter, resubmit_ambiguous=resubmit)
    assert transition.old is State.SUBMITTING
    new = transition.path[-1]
    match transition.next_stage:
        case Stage.SUBMITTER | Stage.NEXT_RUN:
            assert new is State.PENDING
            assert 0 <= transition.wait_s <= 3600
        case Stage.POLL_SCHEDULER:
            assert new is State.ACCEPTED
        case Stage.END:
            assert new in FINAL
        case _:
            pytest.fail(f"unexpected stage {transition.next_stage}")


@given(post_verdicts, counts, random_values, st.booleans())
def test_back_to_pending_needs_proof(verdict: PostVerdict, refusals: int, jitter: float, resubmit: bool) -> None:
    """A job becomes pending only if nothing was queued, or through `ambiguous` if the user has chosen that."""
    transition = after_post(verdict, refusals=refusals, jitter=jitter, resubmit_ambiguous=resubmit)
    if transition.path[-1] is State.PENDING:
        through_ambiguous = State.AMBIGUOUS in transition.path
        assert through_ambiguous == isinstance(verdict, Ambiguous)
        assert resubmit or not through_ambiguous


@given(messages, counts, random_values)
def test_ambiguous_is_never_resubmitted(reason: str, refusals: int, jitter: float) -> None:
    """An ambiguous POST ends its job as ambiguous, whatever happened before."""
    transition = after_post(Ambiguous(reason), refusals=refusals, jitter=jitter)
    assert transition == Transition(
        action=Action.MARK_AMBIGUOUS,
        old=State.SUBMITTING,
        next_stage=Stage.END,
        submit_result="ambiguous",
        error=ErrorInfo("ambiguous", reason),
    )


@given(messages, random_values)
def test_ambiguous_is_resubmitted_by_choice(reason: str, jitter: float) -> None:
    """If the user has chosen so, an ambiguous POST is repeated, with growing delays and not forever."""
    transitions = [
        after_post(Ambiguous(reason), refusals=count, jitter=1.0, resubmit_ambiguous=True)
        for count in range(MAX_AMBIGUOUS_POSTS)
    ]
    assert [transition.action for transition in transitions] == [
        *[Action.RESUBMIT] * (MAX_AMBIGUOUS_POSTS - 1),
        Action.MARK_AMBIGUOUS,
    ]
    waits_s = [transition.wait_s for transition in transitions[:-1]]
    assert waits_s == sorted(set(waits_s))


@given(messages, progress, counts, random_values)
def test_an_accepted_post(request_id: str, status: Progress, refusals: int, jitter: float) -> None:
    """An accepted POST keeps its request_id and the status of its answer."""
    transition = after_post(Accepted(request_id, status), refusals=refusals, jitter=jitter)
    assert (transition.action, transition.request_id, transition.progress) == (Action.ACCEPT, request_id, status)
    assert (transition.submit_result, transition.next_stage) == ("accepted", Stage.POLL_SCHEDULER)


@pytest.mark.parametrize(
    ("status", "detail", "next_step"),
    [(401, "no key", "valid API key"), (402, "no money", "top up"), (403, "forbidden", "may use this model")],
)
def test_a_fatal_refusal(status: int, detail: str, next_step: str) -> None:
    """401, 402 and 403 stop the run with the next step; the job stays pending for the next run."""
    transition = after_post(Refused(Refusal.FATAL, status, detail), refusals=99, jitter=1.0)
    assert (transition.action, transition.next_stage) == (Action.REVERT, Stage.NEXT_RUN)
    assert isinstance(transition.stop, GatewayError)
    assert (transition.stop.status, transition.stop.detail) == (status, detail)
    assert next_step in transition.stop.next_step


@pytest.mark.parametrize(
    ("verdict", "refusals", "wait_s"),
    [
        (Refused(Refusal.RATE_LIMITED, 429, "slow", 3.0), 0, 0.0),
        (Refused(Refusal.RATE_LIMITED, 429, "slow"), 1000, 0.0),
        (Refused(Refusal.RATE_LIMITED, 403, "quota", 60.0), 1000, 0.0),
        (Refused(Refusal.RETRYABLE, 500, "oops", 30.0), 0, 30.0),
        (Refused(Refusal.RETRYABLE, 503, "oops"), 0, 0.5),
        (Refused(Refusal.RETRYABLE, 503, "oops"), 1, 1.0),
        (NotSent("no route"), 0, 0.5),
    ],
)
def test_requeued(verdict: Refused | NotSent, refusals: int, wait_s: float) -> None:
    """After 429, 500, 503 and unsent POSTs, the job is submitted again after a delay."""
    transition = after_post(verdict, refusals=refusals, jitter=1.0)
    is_refused = isinstance(verdict, Refused)
    assert (transition.action, transition.next_stage) == (Action.REVERT, Stage.SUBMITTER)
    assert transition.wait_s == wait_s
    assert transition.submit_result == ("refused" if is_refused else "not_sent")
    assert transition.status == (verdict.status if isinstance(verdict, Refused) else 0)
    assert transition.is_server_error == (transition.status in (500, 503))
    assert transition.retry_reason == (verdict.detail if isinstance(verdict, Refused) else verdict.reason)


@pytest.mark.parametrize(("status", "refusals"), [(400, 0), (422, 7)])
def test_rejected(status: int, refusals: int) -> None:
    """A 4xx that is about the request ends the job."""
    transition = after_post(Refused(Refusal.REJECTED, status, "no"), refusals=refusals, jitter=1.0)
    assert (transition.action, transition.next_stage) == (Action.REJECT, Stage.END)
    assert transition.error == ErrorInfo(f"http_{status}", "no")


@given(st.sampled_from([500, 503]), messages, random_values)
def test_repeated_refusals_reject_the_job(status: int, detail: str, jitter: float) -> None:
    """A job that is always refused with 500 or 503 is rejected in the end; the message has the count."""
    refused = Refused(Refusal.RETRYABLE, status, detail)
    transitions = [after_post(refused, refusals=count, jitter=jitter) for count in range(MAX_REFUSALS)]
    assert {transition.action for transition in transitions[:-1]} == {Action.REVERT}
    last = transitions[-1]
    assert last.action is Action.REJECT
    assert all(transition.is_server_error for transition in transitions)
    assert last.error
    assert str(MAX_REFUSALS) in last.error.message
    assert detail in last.error.message


@given(st.integers(1, 10**6), random_values)
def test_backoff(failures: int, jitter: float) -> None:
    """Delays are spread from 0 to a maximum that never falls with more failures and never exceeds a minute."""
    assert (
        0 <= backoff_s(failures, jitter) <= backoff_s(failures, 1.0) <= backoff_s(failures + 1, 1.0) <= MAX_BACKOFF_S
    )


# ---- after a poll or a download --------------------------------------------------------------------------


@given(poll_verdicts, counts, st.integers(1, 100), random_values)
def test_every_transition_after_a_poll(verdict: PollVerdict, errors: int, attempts: int, jitter: float) -> None:
    """A poll changes nothing if the job is unfinished or its status unreadable; else it leads from `accepted`."""
    transition = after_poll(verdict, errors=errors, max_attempts=attempts, jitter=jitter)
    assert (transition is None) == isinstance(verdict, Waiting | PollFailed)
    if transition is None:
        return
    assert transition.old is State.ACCEPTED
    expected = {Stage.DOWNLOADER: State.FINISHED, Stage.SUBMITTER: State.PENDING}
    if transition.next_stage is Stage.END:
        assert transition.path[-1] in FINAL
    else:
        assert transition.next_stage
        assert transition.path[-1] is expected[transition.next_stage]


@given(poll_verdicts, counts, st.integers(1, 100), random_values)
def test_only_error_leads_to_another_post(verdict: PollVerdict, errors: int, attempts: int, jitter: float) -> None:
    """After a poll, only ERROR, which is not charged, requeues a job, within max_attempts."""
    transition = after_poll(verdict, errors=errors, max_attempts=attempts, jitter=jitter)
    is_requeued = transition is not None and transition.next_stage is Stage.SUBMITTER
    assert is_requeued == (isinstance(verdict, Errored) and errors + 1 < attempts)
    if transition and is_requeued:
        assert transition.path == (State.ACCEPTED, State.ERRORED, State.PENDING)


@pytest.mark.parametrize(
    ("verdict", "errors", "action", "error"),
    [
        (FINISHED_IMAGE, 0, Action.FINISH, None),
        (Failed("nsfw"), 0, Action.FAIL, ErrorInfo("failed", "nsfw")),
        (Failed(""), 0, Action.FAIL, ErrorInfo("failed", "the gateway gave no reason")),
        (Errored("gpu"), 0, Action.REQUEUE, None),
        (Errored("gpu"), 1, Action.REQUEUE, None),
        (Errored("gpu"), 2, Action.GIVE_UP, ErrorInfo("error", "gpu")),
        (Errored(""), 2, Action.GIVE_UP, ErrorInfo("error", "the gateway gave no reason")),
    ],
)
def test_after_poll(verdict: PollVerdict, errors: int, action: Action, error: ErrorInfo | None) -> None:
    """FAILED ends the job, and ERROR requeues it until three POSTs were accepted, with growing delays."""
    transition = after_poll(verdict, errors=errors, max_attempts=3, jitter=1.0)
    assert transition
    assert (transition.action, transition.error) == (action, error)
    assert transition.finished == (verdict if isinstance(verdict, Finished) else None)
    assert transition.wait_s == (0.5 * 2**errors if action is Action.REQUEUE else 0.0)


@given(st.integers(1, 50))
def test_max_attempts_counts_accepted_posts(attempts: int) -> None:
    """A job that always ends in ERROR is POSTed max_attempts times, in one run or in several."""
    posts, errors = 0, 0
    while True:
        posts += 1
        transition = after_poll(Errored(""), errors=errors, max_attempts=attempts, jitter=0.0)
        errors += 1
        if transition and transition.action is Action.GIVE_UP:
            break
    assert posts == attempts
    assert on_resume(State.ERRORED, errors=errors, max_attempts=attempts, resubmit_ambiguous=True) is None


def test_the_other_transitions() -> None:
    """A time-out ends an accepted or finished job, durable images end it, and a proven request_id is polled."""
    error = ErrorInfo("timed_out", "late")
    for old in (State.ACCEPTED, State.FINISHED):
        assert time_out(old, error).path == (old, State.TIMED_OUT)
        assert (time_out(old, error).next_stage, time_out(old, error).error) == (Stage.END, error)
    with pytest.raises(InternalError):
        _ = time_out(State.PENDING, error).path
    assert (store(()).path, store(()).next_stage) == ((State.FINISHED, State.SUCCEEDED), Stage.END)
    adopted = adopt("r-1", Waiting("QUEUED"))
    assert (adopted.path, adopted.next_stage) == ((State.AMBIGUOUS, State.ACCEPTED), Stage.POLL_SCHEDULER)


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
        assert State.AMBIGUOUS in TRANSITIONS[state]
        state = State.AMBIGUOUS
    assert new is state or new in TRANSITIONS[state]


@given(counts, st.integers(1, 10))
def test_ambiguous_is_kept_unless_configured(errors: int, attempts: int) -> None:
    """Without ambiguous=resubmit, no resume leads from a pending or ambiguous POST to another POST."""
    for state in (State.SUBMITTING, State.AMBIGUOUS):
        kept = on_resume(state, errors=errors, max_attempts=attempts, resubmit_ambiguous=False)
        assert kept is State.AMBIGUOUS


@pytest.mark.parametrize(
    ("verdict", "hopeless"),
    [
        (Waiting("PROCESSING"), False),
        (Waiting("ARCHIVED"), True),
        (PollFailed("no such request", status=404), True),
        (PollFailed("bad gateway", status=502), False),
        (Failed("refused by the safety filter"), False),
        (Errored("no capacity"), False),
    ],
    ids=["waiting", "an unlisted status", "404", "502", "failed", "errored"],
)
def test_whether_a_poll_is_hopeless(verdict: PollVerdict, hopeless: bool) -> None:
    """A poll shows no sign of an end if the gateway does not know the job, or answers with a status of its own."""
    assert is_hopeless(verdict) is hopeless
