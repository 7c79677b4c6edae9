"""Each transition leads to the right state, submission and charge, also after the ledger is reopened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.errors import InternalError, RunDirError
from krea_batch.jobs import FINAL, RETRYABLE, Outcome, State
from krea_batch.ledger import Charges, Ledger
from krea_batch.rules import lifecycle
from tests.ledger.operations import (
    ABANDONED_ERROR,
    FINGERPRINT,
    FINISHED_TWO_OUTPUTS,
    METADATA,
    REQUEST_BODY,
    STORE_ERROR,
    STORED_FILE,
    LedgerOperation,
    accept,
    apply_all,
    finish,
    intent,
    requeue_errored,
    revert,
    state_of,
)
from tests.ledger.places import LedgerPlace, each_empty_ledger

# The operations that bring a new job into each state.
STEPS_TO: dict[State, list[LedgerOperation]] = {
    State.PENDING: [intent(), revert()],
    State.SUBMITTING: [intent()],
    State.ACCEPTED: [intent(), accept()],
    State.FINISHED: [intent(), accept(), finish()],
    State.SUCCEEDED: [intent(), accept(), finish(), lambda ledger: ledger.mark_stored(1, [STORED_FILE], 4.0)],
    State.FAILED: [intent(), accept(), lambda ledger: ledger.mark_failed(1, STORE_ERROR, 3.0, 2)],
    State.ERRORED: [intent(), accept(), lambda ledger: ledger.mark_errored(1, STORE_ERROR, 3.0, 2)],
    State.REJECTED: [intent(), lambda ledger: ledger.mark_rejected(1, STORE_ERROR, 3.0)],
    State.AMBIGUOUS: [intent(), lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 3.0)],
    State.TIMED_OUT: [
        intent(),
        accept(),
        lambda ledger: ledger.mark_timed_out(1, State.ACCEPTED, STORE_ERROR, 3.0, 2),
    ],
    State.CANCELLED: [
        intent(),
        lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 3.0),
        lambda ledger: ledger.abandon(1, State.AMBIGUOUS, 4.0),
    ],
}


def unsuccessful_state_of(ledger: Ledger) -> State:
    """Return the retryable state of the job; `failed` if it is in none."""
    return next((state for state in RETRYABLE if state in ledger.counts()), State.FAILED)


# Each method that moves a job: a call of it, the states that it is allowed in, and the state that it leads to.
TRANSITION_CASES: dict[str, tuple[LedgerOperation, set[State], State]] = {
    "record_intent": (intent(at=9.0), {State.PENDING}, State.SUBMITTING),
    "revert_intent": (revert(), {State.SUBMITTING}, State.PENDING),
    "mark_accepted": (accept(request_id="r-2"), {State.SUBMITTING}, State.ACCEPTED),
    "mark_rejected": (lambda ledger: ledger.mark_rejected(1, STORE_ERROR, 9.0), {State.SUBMITTING}, State.REJECTED),
    "mark_ambiguous": (
        lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 9.0),
        {State.SUBMITTING},
        State.AMBIGUOUS,
    ),
    "resubmit_submitting": (lambda ledger: ledger.resubmit_submitting(1), {State.SUBMITTING}, State.PENDING),
    "retry": (lambda ledger: ledger.retry(1, unsuccessful_state_of(ledger)), set(RETRYABLE), State.PENDING),
    "resubmit": (lambda ledger: ledger.resubmit(1), {State.AMBIGUOUS}, State.PENDING),
    "abandon": (
        lambda ledger: ledger.abandon(
            1, State.TIMED_OUT if State.TIMED_OUT in ledger.counts() else State.AMBIGUOUS, 9.0
        ),
        {State.AMBIGUOUS, State.TIMED_OUT},
        State.CANCELLED,
    ),
    "adopt": (lambda ledger: ledger.adopt(1, "r-9", 9.0), {State.AMBIGUOUS}, State.ACCEPTED),
    "mark_finished": (finish(), {State.ACCEPTED}, State.FINISHED),
    "mark_failed": (lambda ledger: ledger.mark_failed(1, STORE_ERROR, 9.0, 5), {State.ACCEPTED}, State.FAILED),
    "mark_errored": (lambda ledger: ledger.mark_errored(1, STORE_ERROR, 9.0, 5), {State.ACCEPTED}, State.ERRORED),
    "requeue_errored": (requeue_errored(), {State.ACCEPTED}, State.PENDING),
    "refresh_urls": (lambda ledger: ledger.refresh_urls(1), {State.FINISHED}, State.ACCEPTED),
    "mark_timed_out": (
        lambda ledger: ledger.mark_timed_out(
            1, State.FINISHED if State.FINISHED in ledger.counts() else State.ACCEPTED, STORE_ERROR, 9.0, 5
        ),
        {State.ACCEPTED, State.FINISHED},
        State.TIMED_OUT,
    ),
    "mark_stored": (lambda ledger: ledger.mark_stored(1, [STORED_FILE], 9.0), {State.FINISHED}, State.SUCCEEDED),
}
EXPECTED_CHARGES: dict[State, Charges] = {
    State.PENDING: Charges(),
    State.SUBMITTING: Charges(unknown=1),
    State.ACCEPTED: Charges(charged=1),
    State.FINISHED: Charges(charged=1),
    State.SUCCEEDED: Charges(charged=1),
    State.FAILED: Charges(charged=1),
    State.ERRORED: Charges(refunded=1),
    State.REJECTED: Charges(),
    State.AMBIGUOUS: Charges(unknown=1),
    State.TIMED_OUT: Charges(charged=1),
    State.CANCELLED: Charges(unknown=1),
}


def bring_to(ledger: Ledger, state: State) -> None:
    """Bring the first job into a state, with one transaction per operation."""
    for step in STEPS_TO[state]:
        apply_all(ledger, step)


# ---- transitions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STEPS_TO)
@pytest.mark.parametrize("method", TRANSITION_CASES)
def test_every_transition(ledger: Ledger, place: LedgerPlace, state: State, method: str) -> None:
    """A transition of the table is applied. Any other raises InternalError and changes nothing."""
    bring_to(ledger, state)
    operation, allowed, new = TRANSITION_CASES[method]
    if state in allowed:
        apply_all(ledger, operation)
        assert state_of(ledger) is new
        return
    before = place.dump()
    with pytest.raises(InternalError):
        apply_all(ledger, operation)
    assert place.dump() == before
    assert state_of(ledger) is state


@pytest.mark.parametrize("method", [name for name in TRANSITION_CASES if name != "record_intent"])
def test_jobs_that_are_not_recorded(ledger: Ledger, method: str) -> None:
    """A transition of a job that the ledger does not have raises InternalError."""
    with pytest.raises(InternalError):
        apply_all(ledger, TRANSITION_CASES[method][0])
    assert ledger.counts() == {}


def test_the_transitions_are_those_of_the_table() -> None:
    """The methods of the ledger make the transitions of the table in rules/lifecycle.py, and all of them."""
    assert all(callable(getattr(Ledger, method)) for method in TRANSITION_CASES)
    made = {(old, new) for _, allowed, new in TRANSITION_CASES.values() for old in allowed}
    at_start = {(path[0], path[-1]) for path in lifecycle.PATHS[lifecycle.Action.RESUME]}  # by `recover`
    table = {(path[0], path[-1]) for paths in lifecycle.PATHS.values() for path in paths}
    assert made | at_start == table


@pytest.mark.parametrize("state", STEPS_TO)
def test_charges(ledger: Ledger, place: LedgerPlace, state: State) -> None:
    """Accepted POSTs are charged, or refunded after ERROR. Pending and ambiguous ones are unknown."""
    bring_to(ledger, state)
    assert ledger.charges() == EXPECTED_CHARGES[state]
    reopened = place.open()
    assert reopened.charges() == EXPECTED_CHARGES[state]
    reopened.close()


def test_each_post_counts(ledger: Ledger) -> None:
    """Each POST of a job counts in the charges: refused, not sent, refunded after ERROR, ambiguous and accepted.

    Those answered with 500 or 503 are counted apart.
    """
    steps: list[LedgerOperation] = [
        intent(), revert(result="refused"), intent(), revert(result="not_sent"),
        intent(), revert(result="server_error"), intent(), revert(result="server_error"),
        intent(), accept(request_id="r-1"), requeue_errored(), intent(), accept(request_id="r-2"), requeue_errored(),
        intent(), lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 5.0), lambda ledger: ledger.resubmit(1),
        intent(), accept(request_id="r-3"), finish(),
        lambda ledger: ledger.mark_stored(1, [STORED_FILE], 9.0),
    ]  # fmt: skip
    for step in steps:
        last = apply_all(ledger, step)
    charges = ledger.charges()
    assert charges == Charges(charged=1, refunded=2, unknown=1, server_errors=2)
    assert (charges.limited(count_server_errors=False), charges.limited(count_server_errors=True)) == (2, 4)
    assert isinstance(last, Outcome)
    assert (last.status, last.request_id, last.attempts, last.error) == (State.SUCCEEDED, "r-3", 8, None)


def test_charges_of_many(ledger: Ledger) -> None:
    """Charges are summed over all jobs."""
    for index in range(1, 11):
        apply_all(ledger, intent(f"job-{index}"))
        if index % 2:
            apply_all(ledger, accept(index, f"r-{index}"))
        if index % 4 == 1:
            apply_all(ledger, lambda ledger, n=index: ledger.mark_errored(n, STORE_ERROR, 3.0, 1))  # type: ignore[misc]
    assert ledger.charges() == Charges(charged=2, refunded=3, unknown=5)


def test_a_request_id_belongs_to_one_job(ledger: Ledger, place: LedgerPlace) -> None:
    """A request_id of another job is refused and changes nothing; the job can then be marked ambiguous."""
    apply_all(ledger, intent("a"), accept(1, "r"))
    apply_all(ledger, intent("b"))
    before = place.dump()
    assert apply_all(ledger, accept(2, "r")) is False
    assert place.dump() == before
    apply_all(ledger, lambda ledger: ledger.mark_ambiguous(2, STORE_ERROR, 3.0))
    assert ledger.charges() == Charges(charged=1, unknown=1)


def test_a_request_id_twice_in_one_transaction(ledger: Ledger) -> None:
    """If two jobs get the same request_id in one commit, the first one keeps it."""
    apply_all(ledger, intent("a"), intent("b"))
    assert ledger.transaction(lambda ledger: [accept(1, "r")(ledger), accept(2, "r")(ledger)]) == [True, False]


def test_the_request_id_of_an_earlier_post_of_the_same_job(ledger: Ledger) -> None:
    """A second POST of a job with the request_id of its first one is not recorded as accepted."""
    apply_all(ledger, intent(), accept(1, "r"), requeue_errored(), intent())
    assert apply_all(ledger, accept(1, "r")) is False
    assert ledger.charges() == Charges(refunded=1, unknown=1)


def test_a_changed_body_under_an_old_id(ledger: Ledger) -> None:
    """A pending job is not submitted with another fingerprint. A new id is a new job."""
    apply_all(ledger, intent(), revert())
    with pytest.raises(InternalError):
        apply_all(ledger, lambda ledger: ledger.record_intent("a", b"{}", b"g" * 32, METADATA, 5.0, ""))
    assert apply_all(ledger, intent("b")) == 2
    assert apply_all(ledger, intent("a")) == 1
    assert ledger.fingerprints(["a", "b", "c"]) == {"a": FINGERPRINT, "b": FINGERPRINT}


def test_a_failed_operation_rolls_back_its_transaction(ledger: Ledger) -> None:
    """The operations of a transaction are applied together or not at all."""
    apply_all(ledger, intent("a"))
    with pytest.raises(InternalError):
        apply_all(ledger, accept(1), intent("b"), finish(2))
    assert ledger.counts() == {State.SUBMITTING: 1}


# ---- rows ------------------------------------------------------------------------------------------------


def test_the_outcome_of_a_succeeded_job(ledger: Ledger) -> None:
    """The outcome has every field of a results row, with instants in UTC, in milliseconds."""
    apply_all(
        ledger, lambda ledger: ledger.record_intent("a", REQUEST_BODY, FINGERPRINT, METADATA, 1_774_951_200.0, "")
    )
    apply_all(ledger, lambda ledger: ledger.mark_accepted(1, "r-1", 1_774_951_200.25), finish())
    outcome = apply_all(ledger, lambda ledger: ledger.mark_stored(1, [STORED_FILE], 4.0))
    assert outcome == ledger.outcome(1) == Outcome(
        id="a", status=State.SUCCEEDED, request_id="r-1", files=(STORED_FILE,), error=None,
        request={"prompt": "a cat"},
        metadata={"row": 7}, polls=2, attempts=1, submitted_at="2026-03-31T10:00:00.000Z",
        accepted_at="2026-03-31T10:00:00.250Z", finished_at="1970-01-01T00:00:03.000Z",
        stored_at="1970-01-01T00:00:04.000Z",
    )  # fmt: skip
    assert ledger.find_job("a") == outcome


@pytest.mark.parametrize("state", [state for state in STEPS_TO if state in FINAL - {State.SUCCEEDED}])
def test_outcomes_of_unsuccessful_jobs(ledger: Ledger, state: State) -> None:
    """The outcome of a job that did not succeed has the reason, and the request_id if there was one."""
    bring_to(ledger, state)
    outcome = ledger.outcome(1)
    assert (outcome.status, outcome.files) == (state, ())
    assert outcome.error == (STORE_ERROR if state is not State.CANCELLED else ABANDONED_ERROR)
    never_accepted = (State.REJECTED, State.AMBIGUOUS, State.CANCELLED)
    assert outcome.request_id == (None if state in never_accepted else "r-1")
    assert outcome.stored_at is None


@pytest.mark.parametrize("state", STEPS_TO)
def test_only_jobs_that_have_ended_have_result_rows(ledger: Ledger, state: State) -> None:
    """`outcomes` returns jobs that have ended; `find_job` finds a job in any state."""
    bring_to(ledger, state)
    outcomes, _ = ledger.outcomes(0, 10)
    found = ledger.find_job("a")
    assert [outcome.status for outcome in outcomes] == ([state] if state in FINAL else [])
    assert found is not None
    assert found.status is state
    assert ledger.find_job("b") is None


def test_enqueued_jobs_are_recorded(ledger: Ledger) -> None:
    """An enqueued job is pending without a submission. To enqueue it again changes nothing, also after its POST."""
    for _ in range(2):
        apply_all(ledger, lambda ledger: ledger.enqueue("a", REQUEST_BODY, FINGERPRINT, METADATA, "ann"))
    (job,) = ledger.open_jobs(0, 10)
    assert (job.job_id, job.state, job.tenant, job.attempts) == ("a", State.PENDING, "ann", 0)
    assert ledger.charges() == Charges()
    assert (
        apply_all(ledger, lambda ledger: ledger.record_intent("a", REQUEST_BODY, FINGERPRINT, METADATA, 1.0, "ann"))
        == job.job_no
    )
    apply_all(ledger, lambda ledger: ledger.mark_accepted(job.job_no, "r-1", 2.0))
    apply_all(ledger, lambda ledger: ledger.enqueue("a", REQUEST_BODY, FINGERPRINT, METADATA, "ann"))
    assert [job.state for job in ledger.open_jobs(0, 10)] == [State.ACCEPTED]


@each_empty_ledger
@given(limit=st.integers(1, 7))
def test_pages_of_outcomes(new_ledger: Callable[[], Ledger], limit: int) -> None:
    """Pages of any size contain each ended job once, in the order of the first submissions."""
    ledger = new_ledger()
    for index in range(1, 16):
        apply_all(ledger, intent(f"job-{index}"))
        if index % 3:
            apply_all(ledger, lambda ledger, n=index: ledger.mark_rejected(n, STORE_ERROR, 1.0))  # type: ignore[misc]
    ids: list[str] = []
    after: int | None = 0
    while after is not None:
        outcomes, after = ledger.outcomes(after, limit)
        ids += [outcome.id for outcome in outcomes]
    ledger.close()
    assert ids == [f"job-{index}" for index in range(1, 16) if index % 3]


# ---- a new run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resubmit", [False, True])
@pytest.mark.parametrize("state", STEPS_TO)
def test_recovered_from_each_state(ledger: Ledger, place: LedgerPlace, state: State, resubmit: bool) -> None:
    """After a kill in any state, the next run resumes the job; only a pending POST becomes ambiguous."""
    bring_to(ledger, state)  # then the process is killed: nothing is closed
    reopened = place.open()
    apply_all(reopened, lambda ledger: ledger.recover(max_attempts=3, resubmit_ambiguous=resubmit))
    expected = lifecycle.on_resume(state, errors=1, max_attempts=3, resubmit_ambiguous=resubmit) or state
    assert state_of(reopened) is expected
    assert reopened.charges() == EXPECTED_CHARGES[state]
    open_jobs = reopened.open_jobs(0, 10)
    if expected in (State.PENDING, State.ACCEPTED, State.FINISHED):
        (job,) = open_jobs
        assert (job.job_no, job.job_id, job.state) == (1, "a", expected)
        assert (job.media == FINISHED_TWO_OUTPUTS) == (state is State.FINISHED)
        accepted = (State.ACCEPTED, State.FINISHED, State.ERRORED, State.TIMED_OUT)
        assert (job.request_id == "r-1") == (state in accepted)
        assert reopened.request_of(1) == (REQUEST_BODY, FINGERPRINT, METADATA)
        assert reopened.outcome(1).error is None
    else:
        assert open_jobs == []
    reopened.close()


def test_recovering_twice_changes_nothing_more(ledger: Ledger, place: LedgerPlace) -> None:
    """Recovery is idempotent, so a run that is killed during its recovery does no harm."""
    for index, state in enumerate(STEPS_TO, 1):
        apply_all(ledger, intent(f"job-{index}"))
        if state is State.ACCEPTED:
            apply_all(ledger, accept(index, f"r-{index}"))
    apply_all(ledger, lambda ledger: ledger.recover(max_attempts=3, resubmit_ambiguous=False))
    before = place.dump()
    apply_all(ledger, lambda ledger: ledger.recover(max_attempts=3, resubmit_ambiguous=False))
    assert place.dump() == before


def test_an_adopted_job_is_charged_under_its_request_id(ledger: Ledger) -> None:
    """The latest ambiguous POST of the job becomes the accepted one. A request_id of another job is refused."""
    bring_to(ledger, State.AMBIGUOUS)
    apply_all(
        ledger, lambda ledger: ledger.resubmit(1), intent(), lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 5.0)
    )
    apply_all(ledger, intent("b"), lambda ledger: ledger.mark_accepted(2, "r-1", 6.0))
    assert apply_all(ledger, lambda ledger: ledger.adopt(1, "r-1", 7.0)) is False
    assert ledger.charges() == Charges(charged=1, unknown=2)
    assert apply_all(ledger, lambda ledger: ledger.adopt(1, "r-2", 7.0)) is True
    assert ledger.charges() == Charges(charged=2, unknown=1)
    found = ledger.find_job("a")
    assert found is not None
    assert (found.request_id, found.status) == ("r-2", State.ACCEPTED)


def test_the_answer_of_an_ambiguous_job(ledger: Ledger) -> None:
    """An ambiguous job has the beginning of the latest answer, if there was one."""
    apply_all(ledger, intent("a"), lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 3.0, b"<html>502"))
    apply_all(ledger, intent("b"), lambda ledger: ledger.mark_ambiguous(2, STORE_ERROR, 3.0))
    assert [job.answer for job in ledger.ambiguous_jobs()] == [b"<html>502", b""]
    apply_all(
        ledger, lambda ledger: ledger.resubmit(1), intent("a"), lambda ledger: ledger.resubmit_submitting(1, b"cut")
    )
    apply_all(ledger, intent("a"), Ledger.fence_others)
    assert [job.answer for job in ledger.ambiguous_jobs()] == [b"cut", b""]


def test_ambiguous_jobs_include_pending_posts(ledger: Ledger) -> None:
    """Jobs with a pending POST are listed with the ambiguous ones, and are ambiguous once their process has ended."""
    apply_all(ledger, intent("a"), intent("b"), intent("c"), intent("d"))
    apply_all(ledger, lambda ledger: ledger.mark_ambiguous(1, STORE_ERROR, 3.0), revert(3), accept(4))
    assert [(job.job_id, job.reason, job.body) for job in ledger.ambiguous_jobs()] == [
        ("a", STORE_ERROR.message, REQUEST_BODY), ("b", "being submitted", REQUEST_BODY),
    ]  # fmt: skip
    apply_all(ledger, Ledger.fence_others)
    assert ledger.counts() == {State.AMBIGUOUS: 2, State.PENDING: 1, State.ACCEPTED: 1}
    assert [job.job_no for job in ledger.ambiguous_jobs()] == [1, 2]


def test_a_killed_post_is_ambiguous(ledger: Ledger) -> None:
    """A job whose process ended during its POST is ambiguous and says so. The charge of that POST stays unknown."""
    apply_all(ledger, intent())
    apply_all(ledger, lambda ledger: ledger.recover(max_attempts=3, resubmit_ambiguous=False))
    outcome = ledger.outcome(1)
    assert outcome.error is not None
    assert "the POST was pending" in outcome.error.message
    apply_all(ledger, lambda ledger: ledger.recover(max_attempts=3, resubmit_ambiguous=True))
    apply_all(ledger, intent(), accept())
    assert ledger.charges() == Charges(charged=1, unknown=1)


def test_errors_are_counted_over_runs(ledger: Ledger) -> None:
    """A job with `max_attempts` ERRORs in all runs is not submitted by a new run."""
    for attempt in range(1, 3):
        apply_all(ledger, intent(), accept(1, f"r-{attempt}"), requeue_errored())
    apply_all(ledger, intent(), accept(1, "r-3"), lambda ledger: ledger.mark_errored(1, STORE_ERROR, 5.0, 1))
    apply_all(ledger, lambda ledger: ledger.recover(max_attempts=3, resubmit_ambiguous=False))
    assert state_of(ledger) is State.ERRORED
    apply_all(ledger, lambda ledger: ledger.recover(max_attempts=4, resubmit_ambiguous=False))
    assert state_of(ledger) is State.PENDING
    assert ledger.open_jobs(0, 10)[0].errors == 3


def test_pages_of_open_jobs(ledger: Ledger) -> None:
    """Pages of open jobs are in the order of their numbers and have at most `limit` jobs."""
    for index in range(1, 8):
        apply_all(ledger, intent(f"job-{index}"), accept(index, f"r-{index}"))
    assert [job.job_no for job in ledger.open_jobs(0, 3)] == [1, 2, 3]
    assert [job.job_no for job in ledger.open_jobs(3, 3)] == [4, 5, 6]
    assert [job.job_no for job in ledger.open_jobs(6, 3)] == [7]
    assert ledger.open_jobs(7, 3) == []


def test_the_limit_of_the_latest_run(ledger: Ledger) -> None:
    """The limit of charges of the latest run is remembered, with what it counts."""
    for limit, strict in ((None, False), (7, True), (8, False)):
        apply_all(
            ledger,
            lambda ledger, limit=limit, strict=strict: ledger.start_run(  # type: ignore[misc]
                "https://a", "0.1", 1.0, max_charges=limit, count_server_errors=strict
            ),
        )
        latest = ledger.latest_run()
        assert latest
        assert (latest.max_charges, latest.count_server_errors) == (limit, strict)


def test_a_run_directory_has_one_gateway(ledger: Ledger) -> None:
    """A run at another gateway is refused: request_ids are valid at one gateway only."""
    run = apply_all(ledger, lambda ledger: ledger.start_run("https://a", "0.1", 1.0))
    apply_all(ledger, lambda ledger: ledger.end_run(run, 2.0))
    assert apply_all(ledger, lambda ledger: ledger.start_run("https://a", "0.2", 3.0)) == run + 1
    with pytest.raises(RunDirError, match="https://a"):
        apply_all(ledger, lambda ledger: ledger.start_run("https://b", "0.2", 4.0))


method_names = st.lists(st.sampled_from(sorted(TRANSITION_CASES)) | st.just("recover"), max_size=25)


@settings(deadline=None, max_examples=150)
@each_empty_ledger
@given(methods=method_names)
def test_no_order_of_transitions_breaks_the_invariants(new_ledger: Callable[[], Ledger], methods: list[str]) -> None:
    """In any order of transitions, a job is charged again only after an ERROR or a resubmit by the user."""
    ledger = new_ledger()
    charged, resubmits, request = 0, 0, 0
    for method in methods:
        request += 1
        operation: LedgerOperation = TRANSITION_CASES[method][0] if method != "recover" else _recover
        if method == "mark_accepted":
            operation = accept(1, f"r-{request}")
        if method == "adopt":
            operation = partial(Ledger.adopt, job_no=1, request_id=f"r-{request}", at=9.0)
        try:
            apply_all(ledger, operation)
        except InternalError:
            continue
        charged += method in ("mark_accepted", "adopt")
        resubmits += method == "resubmit"
        charges = ledger.charges()
        assert charges.charged + charges.refunded == charged
        assert charges.charged <= 1 + resubmits
        assert sum(ledger.counts().values()) <= 1
    ledger.close()


def _recover(ledger: Ledger) -> None:
    ledger.recover(max_attempts=100, resubmit_ambiguous=False)


def test_questions_about_no_jobs(ledger: Ledger) -> None:
    """Callers may have no job to ask about; then nothing is found."""
    assert (ledger.fingerprints([]), ledger.known_jobs([]), ledger.known_request_ids([])) == ({}, {}, {})
    assert (ledger.find_jobs([]), ledger.accepted_files([]), ledger.accepted_ids([])) == ([], {}, set())


def test_the_workers_of_a_run(ledger: Ledger) -> None:
    """Each live run is listed with its jobs, also one that has none."""
    ledger.bind_run(ledger.transaction(lambda each: each.start_run("g", "v", 1.0, worker="one:1")))
    ledger.transaction(intent())
    ledger.transaction(lambda each: each.start_run("g", "v", 2.0, worker="two:2"))
    (workers,) = ledger.read(Ledger.workers)
    assert [(each.worker, each.in_flight, each.pending) for each in workers] == [("one:1", 1, 0), ("two:2", 0, 0)]


def test_several_jobs_at_once(ledger: Ledger) -> None:
    """New jobs get numbers without gaps, in their order; jobs that are known, or come twice, are recorded once."""
    jobs = [(name, REQUEST_BODY, b"f", METADATA, "", "") for name in ("a", "b", "a", "c")]
    assert ledger.transaction(lambda each: each.enqueue_many(jobs[1:2])) == [True]
    assert ledger.transaction(lambda each: each.enqueue_many(jobs)) == [True, False, False, True]
    assert ledger.transaction(lambda each: each.enqueue_many([])) == []
    assert {name: job.job_no for name, job in ledger.known_jobs(list("abc")).items()} == {"b": 1, "a": 2, "c": 3}
    assert set(ledger.requests_of([1, 2])) == {1, 2}
