"""Each transition leads to the right state, submission and charge, also after the file is reopened."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.errors import InternalError, LedgerError, RunDirError
from krea_batch.jobs import FINAL, RETRYABLE, ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger import Charges, Ledger
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.sqlite.database import APPLICATION_ID, SCHEMA_VERSION, schema
from krea_batch.rules import lifecycle
from krea_batch.rules.verdicts import Finished
from tests.processes import PROCESS_TIMEOUT_S

REQUEST_BODY = b'{"prompt":"a cat"}'
FINGERPRINT = b"f" * 32
METADATA = b'{"row":7}'
STORE_ERROR = ErrorInfo("kind", "a message")
ABANDONED_ERROR = ErrorInfo("abandoned", "ambiguous, and the user decided not to submit it again")
FINISHED_TWO_OUTPUTS = Finished(("https://cdn.example/a.png", "https://cdn.example/b.png"), "image/png", 12.5)
STORED_FILE = StoredFile("images/a.png", 10, "0" * 64, 4, 3, "image/png")

StoreOperation = Callable[[SqliteLedger], Any]


def apply_all(store: SqliteLedger, *operations: StoreOperation) -> Any:
    """Apply the operations in one transaction, and return the result of the last one."""
    return store.transaction(lambda store: [operation(store) for operation in operations])[-1]


def intent(job_id: str = "a", at: float = 1.0) -> StoreOperation:
    return lambda store: store.record_intent(job_id, REQUEST_BODY, FINGERPRINT, METADATA, at, "")


def accept(n: int = 1, request_id: str = "r-1") -> StoreOperation:
    return lambda store: store.mark_accepted(n, request_id, 2.0)


def finish(n: int = 1) -> StoreOperation:
    return lambda store: store.mark_finished(n, FINISHED_TWO_OUTPUTS, 3.0, 2)


def requeue_errored(n: int = 1) -> StoreOperation:
    return lambda store: store.requeue_errored(n, 4)


def revert(n: int = 1, result: str = "refused") -> StoreOperation:
    return lambda store: store.revert_intent(n, result)


# The operations that bring a new job into each state.
STEPS_TO: dict[State, list[StoreOperation]] = {
    State.PENDING: [intent(), revert()],
    State.SUBMITTING: [intent()],
    State.ACCEPTED: [intent(), accept()],
    State.FINISHED: [intent(), accept(), finish()],
    State.SUCCEEDED: [intent(), accept(), finish(), lambda store: store.mark_stored(1, [STORED_FILE], 4.0)],
    State.FAILED: [intent(), accept(), lambda store: store.mark_failed(1, STORE_ERROR, 3.0, 2)],
    State.ERRORED: [intent(), accept(), lambda store: store.mark_errored(1, STORE_ERROR, 3.0, 2)],
    State.REJECTED: [intent(), lambda store: store.mark_rejected(1, STORE_ERROR, 3.0)],
    State.AMBIGUOUS: [intent(), lambda store: store.mark_ambiguous(1, STORE_ERROR, 3.0)],
    State.TIMED_OUT: [intent(), accept(), lambda store: store.mark_timed_out(1, State.ACCEPTED, STORE_ERROR, 3.0, 2)],
    State.CANCELLED: [
        intent(),
        lambda store: store.mark_ambiguous(1, STORE_ERROR, 3.0),
        lambda store: store.abandon(1, State.AMBIGUOUS, 4.0),
    ],
}


def unsuccessful_state_of(store: SqliteLedger) -> State:
    """Return the retryable state of the job; `failed` if it is in none."""
    return next((state for state in RETRYABLE if state in store.counts()), State.FAILED)


# Each method that moves a job: a call of it, the states that it is allowed in, and the state that it leads to.
TRANSITION_CASES: dict[str, tuple[StoreOperation, set[State], State]] = {
    "record_intent": (intent(at=9.0), {State.PENDING}, State.SUBMITTING),
    "revert_intent": (revert(), {State.SUBMITTING}, State.PENDING),
    "mark_accepted": (accept(request_id="r-2"), {State.SUBMITTING}, State.ACCEPTED),
    "mark_rejected": (lambda store: store.mark_rejected(1, STORE_ERROR, 9.0), {State.SUBMITTING}, State.REJECTED),
    "mark_ambiguous": (lambda store: store.mark_ambiguous(1, STORE_ERROR, 9.0), {State.SUBMITTING}, State.AMBIGUOUS),
    "resubmit_submitting": (lambda store: store.resubmit_submitting(1), {State.SUBMITTING}, State.PENDING),
    "retry": (lambda store: store.retry(1, unsuccessful_state_of(store)), set(RETRYABLE), State.PENDING),
    "resubmit": (lambda store: store.resubmit(1), {State.AMBIGUOUS}, State.PENDING),
    "abandon": (
        lambda store: store.abandon(
            1, State.TIMED_OUT if State.TIMED_OUT in store.counts() else State.AMBIGUOUS, 9.0
        ),
        {State.AMBIGUOUS, State.TIMED_OUT},
        State.CANCELLED,
    ),
    "adopt": (lambda store: store.adopt(1, "r-9", 9.0), {State.AMBIGUOUS}, State.ACCEPTED),
    "mark_finished": (finish(), {State.ACCEPTED}, State.FINISHED),
    "mark_failed": (lambda store: store.mark_failed(1, STORE_ERROR, 9.0, 5), {State.ACCEPTED}, State.FAILED),
    "mark_errored": (lambda store: store.mark_errored(1, STORE_ERROR, 9.0, 5), {State.ACCEPTED}, State.ERRORED),
    "requeue_errored": (requeue_errored(), {State.ACCEPTED}, State.PENDING),
    "refresh_urls": (lambda store: store.refresh_urls(1), {State.FINISHED}, State.ACCEPTED),
    "mark_timed_out": (
        lambda store: store.mark_timed_out(
            1, State.FINISHED if State.FINISHED in store.counts() else State.ACCEPTED, STORE_ERROR, 9.0, 5
        ),
        {State.ACCEPTED, State.FINISHED},
        State.TIMED_OUT,
    ),
    "mark_stored": (lambda store: store.mark_stored(1, [STORED_FILE], 9.0), {State.FINISHED}, State.SUCCEEDED),
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteLedger]:
    opened = SqliteLedger.open(path)
    yield opened
    opened.close()


def bring_to(store: SqliteLedger, state: State) -> None:
    """Bring the first job into a state, with one transaction per operation."""
    for step in STEPS_TO[state]:
        apply_all(store, step)


def state_of(store: SqliteLedger) -> State:
    (state,) = store.counts()
    return state


def dump_database(path: Path) -> list[str]:
    """Return the whole content of the ledger as SQL."""
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines


# ---- transitions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STEPS_TO)
@pytest.mark.parametrize("method", TRANSITION_CASES)
def test_every_transition(store: SqliteLedger, path: Path, state: State, method: str) -> None:
    """A transition of the table is applied. Any other raises InternalError and changes nothing."""
    bring_to(store, state)
    operation, allowed, new = TRANSITION_CASES[method]
    if state in allowed:
        apply_all(store, operation)
        assert state_of(store) is new
        return
    before = dump_database(path)
    with pytest.raises(InternalError):
        apply_all(store, operation)
    assert dump_database(path) == before
    assert state_of(store) is state


@pytest.mark.parametrize("method", [name for name in TRANSITION_CASES if name != "record_intent"])
def test_jobs_that_are_not_recorded(store: SqliteLedger, method: str) -> None:
    """A transition of a job that the ledger does not have raises InternalError."""
    with pytest.raises(InternalError):
        apply_all(store, TRANSITION_CASES[method][0])
    assert store.counts() == {}


def test_the_transitions_are_those_of_the_table() -> None:
    """The methods of the store make the transitions of the table in rules/lifecycle.py, and all of them."""
    assert all(callable(getattr(SqliteLedger, method)) for method in TRANSITION_CASES)
    made = {(old, new) for _, allowed, new in TRANSITION_CASES.values() for old in allowed}
    at_start = {(path[0], path[-1]) for path in lifecycle.PATHS[lifecycle.Action.RESUME]}  # by `recover`
    table = {(path[0], path[-1]) for paths in lifecycle.PATHS.values() for path in paths}
    assert made | at_start == table


@pytest.mark.parametrize("state", STEPS_TO)
def test_charges(store: SqliteLedger, path: Path, state: State) -> None:
    """Accepted POSTs are charged, or refunded after ERROR. Pending and ambiguous ones are unknown."""
    bring_to(store, state)
    assert store.charges() == EXPECTED_CHARGES[state]
    reopened = SqliteLedger.open(path)
    assert reopened.charges() == EXPECTED_CHARGES[state]
    reopened.close()


def test_each_post_counts(store: SqliteLedger) -> None:
    """Each POST of a job counts in the charges: refused, not sent, refunded after ERROR, ambiguous and accepted.

    Those answered with 500 or 503 are counted apart.
    """
    steps: list[StoreOperation] = [
        intent(), revert(result="refused"), intent(), revert(result="not_sent"),
        intent(), revert(result="server_error"), intent(), revert(result="server_error"),
        intent(), accept(request_id="r-1"), requeue_errored(), intent(), accept(request_id="r-2"), requeue_errored(),
        intent(), lambda store: store.mark_ambiguous(1, STORE_ERROR, 5.0), lambda store: store.resubmit(1),
        intent(), accept(request_id="r-3"), finish(),
        lambda store: store.mark_stored(1, [STORED_FILE], 9.0),
    ]  # fmt: skip
    for step in steps:
        last = apply_all(store, step)
    charges = store.charges()
    assert charges == Charges(charged=1, refunded=2, unknown=1, server_errors=2)
    assert (charges.limited(count_server_errors=False), charges.limited(count_server_errors=True)) == (2, 4)
    assert isinstance(last, Outcome)
    assert (last.status, last.request_id, last.attempts, last.error) == (State.SUCCEEDED, "r-3", 8, None)


def test_charges_of_many(store: SqliteLedger) -> None:
    """Charges are summed over all jobs."""
    for index in range(1, 11):
        apply_all(store, intent(f"job-{index}"))
        if index % 2:
            apply_all(store, accept(index, f"r-{index}"))
        if index % 4 == 1:
            apply_all(store, lambda store, n=index: store.mark_errored(n, STORE_ERROR, 3.0, 1))  # type: ignore[misc]
    assert store.charges() == Charges(charged=2, refunded=3, unknown=5)


def test_a_request_id_belongs_to_one_job(store: SqliteLedger, path: Path) -> None:
    """A request_id of another job is refused and changes nothing; the job can then be marked ambiguous."""
    apply_all(store, intent("a"), accept(1, "r"))
    apply_all(store, intent("b"))
    before = dump_database(path)
    assert apply_all(store, accept(2, "r")) is False
    assert dump_database(path) == before
    apply_all(store, lambda store: store.mark_ambiguous(2, STORE_ERROR, 3.0))
    assert store.charges() == Charges(charged=1, unknown=1)


def test_a_request_id_twice_in_one_transaction(store: SqliteLedger) -> None:
    """If two jobs get the same request_id in one commit, the first one keeps it."""
    apply_all(store, intent("a"), intent("b"))
    assert store.transaction(lambda store: [accept(1, "r")(store), accept(2, "r")(store)]) == [True, False]


def test_the_request_id_of_an_earlier_post_of_the_same_job(store: SqliteLedger) -> None:
    """A second POST of a job with the request_id of its first one is not recorded as accepted."""
    apply_all(store, intent(), accept(1, "r"), requeue_errored(), intent())
    assert apply_all(store, accept(1, "r")) is False
    assert store.charges() == Charges(refunded=1, unknown=1)


def test_a_changed_body_under_an_old_id(store: SqliteLedger) -> None:
    """A pending job is not submitted with another fingerprint. A new id is a new job."""
    apply_all(store, intent(), revert())
    with pytest.raises(InternalError):
        apply_all(store, lambda store: store.record_intent("a", b"{}", b"g" * 32, METADATA, 5.0, ""))
    assert apply_all(store, intent("b")) == 2
    assert apply_all(store, intent("a")) == 1
    assert store.fingerprints(["a", "b", "c"]) == {"a": FINGERPRINT, "b": FINGERPRINT}


def test_a_failed_operation_rolls_back_its_transaction(store: SqliteLedger) -> None:
    """The operations of a transaction are applied together or not at all."""
    apply_all(store, intent("a"))
    with pytest.raises(InternalError):
        apply_all(store, accept(1), intent("b"), finish(2))
    assert store.counts() == {State.SUBMITTING: 1}


# ---- rows ------------------------------------------------------------------------------------------------


def test_the_outcome_of_a_succeeded_job(store: SqliteLedger) -> None:
    """The outcome has every field of a results row, with instants in UTC, in milliseconds."""
    apply_all(store, lambda store: store.record_intent("a", REQUEST_BODY, FINGERPRINT, METADATA, 1_774_951_200.0, ""))
    apply_all(store, lambda store: store.mark_accepted(1, "r-1", 1_774_951_200.25), finish())
    outcome = apply_all(store, lambda store: store.mark_stored(1, [STORED_FILE], 4.0))
    assert outcome == store.outcome(1) == Outcome(
        id="a", status=State.SUCCEEDED, request_id="r-1", files=(STORED_FILE,), error=None,
        request={"prompt": "a cat"},
        metadata={"row": 7}, polls=2, attempts=1, submitted_at="2026-03-31T10:00:00.000Z",
        accepted_at="2026-03-31T10:00:00.250Z", finished_at="1970-01-01T00:00:03.000Z",
        stored_at="1970-01-01T00:00:04.000Z",
    )  # fmt: skip
    assert store.find_job("a") == outcome


@pytest.mark.parametrize("state", [state for state in STEPS_TO if state in FINAL - {State.SUCCEEDED}])
def test_outcomes_of_unsuccessful_jobs(store: SqliteLedger, state: State) -> None:
    """The outcome of a job that did not succeed has the reason, and the request_id if there was one."""
    bring_to(store, state)
    outcome = store.outcome(1)
    assert (outcome.status, outcome.files) == (state, ())
    assert outcome.error == (STORE_ERROR if state is not State.CANCELLED else ABANDONED_ERROR)
    never_accepted = (State.REJECTED, State.AMBIGUOUS, State.CANCELLED)
    assert outcome.request_id == (None if state in never_accepted else "r-1")
    assert outcome.stored_at is None


@pytest.mark.parametrize("state", STEPS_TO)
def test_only_jobs_that_have_ended_have_result_rows(store: SqliteLedger, state: State) -> None:
    """`outcomes` returns jobs that have ended; `find_job` finds a job in any state."""
    bring_to(store, state)
    outcomes, _ = store.outcomes(0, 10)
    found = store.find_job("a")
    assert [outcome.status for outcome in outcomes] == ([state] if state in FINAL else [])
    assert found is not None
    assert found.status is state
    assert store.find_job("b") is None


def test_enqueued_jobs_are_recorded(store: SqliteLedger) -> None:
    """An enqueued job is pending without a submission. To enqueue it again changes nothing, also after its POST."""
    for _ in range(2):
        apply_all(store, lambda store: store.enqueue("a", REQUEST_BODY, FINGERPRINT, METADATA, "ann"))
    (job,) = store.open_jobs(0, 10)
    assert (job.job_id, job.state, job.tenant, job.attempts) == ("a", State.PENDING, "ann", 0)
    assert store.charges() == Charges()
    assert (
        apply_all(store, lambda store: store.record_intent("a", REQUEST_BODY, FINGERPRINT, METADATA, 1.0, "ann"))
        == job.job_no
    )
    apply_all(store, lambda store: store.mark_accepted(job.job_no, "r-1", 2.0))
    apply_all(store, lambda store: store.enqueue("a", REQUEST_BODY, FINGERPRINT, METADATA, "ann"))
    assert [job.state for job in store.open_jobs(0, 10)] == [State.ACCEPTED]


@given(st.integers(1, 7))
def test_pages_of_outcomes(limit: int) -> None:
    """Pages of any size contain each ended job once, in the order of the first submissions."""
    store = SqliteLedger(Path("x"), _in_memory())
    for index in range(1, 16):
        apply_all(store, intent(f"job-{index}"))
        if index % 3:
            apply_all(store, lambda store, n=index: store.mark_rejected(n, STORE_ERROR, 1.0))  # type: ignore[misc]
    ids: list[str] = []
    after: int | None = 0
    while after is not None:
        outcomes, after = store.outcomes(after, limit)
        ids += [outcome.id for outcome in outcomes]
    store.close()
    assert ids == [f"job-{index}" for index in range(1, 16) if index % 3]


def _in_memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(schema())
    return connection


# ---- a new run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resubmit", [False, True])
@pytest.mark.parametrize("state", STEPS_TO)
def test_recovered_from_each_state(store: SqliteLedger, path: Path, state: State, resubmit: bool) -> None:
    """After a kill in any state, the next run resumes the job; only a pending POST becomes ambiguous."""
    bring_to(store, state)  # then the process is killed: nothing is closed
    reopened = SqliteLedger.open(path)
    apply_all(reopened, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=resubmit))
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


def test_recovering_twice_changes_nothing_more(store: SqliteLedger, path: Path) -> None:
    """Recovery is idempotent, so a run that is killed during its recovery does no harm."""
    for index, state in enumerate(STEPS_TO, 1):
        apply_all(store, intent(f"job-{index}"))
        if state is State.ACCEPTED:
            apply_all(store, accept(index, f"r-{index}"))
    apply_all(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=False))
    before = dump_database(path)
    apply_all(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=False))
    assert dump_database(path) == before


def test_an_adopted_job_is_charged_under_its_request_id(store: SqliteLedger) -> None:
    """The latest ambiguous POST of the job becomes the accepted one. A request_id of another job is refused."""
    bring_to(store, State.AMBIGUOUS)
    apply_all(
        store, lambda store: store.resubmit(1), intent(), lambda store: store.mark_ambiguous(1, STORE_ERROR, 5.0)
    )
    apply_all(store, intent("b"), lambda store: store.mark_accepted(2, "r-1", 6.0))
    assert apply_all(store, lambda store: store.adopt(1, "r-1", 7.0)) is False
    assert store.charges() == Charges(charged=1, unknown=2)
    assert apply_all(store, lambda store: store.adopt(1, "r-2", 7.0)) is True
    assert store.charges() == Charges(charged=2, unknown=1)
    found = store.find_job("a")
    assert found is not None
    assert (found.request_id, found.status) == ("r-2", State.ACCEPTED)


def test_the_answer_of_an_ambiguous_job(store: SqliteLedger) -> None:
    """An ambiguous job has the beginning of the latest answer, if there was one."""
    apply_all(store, intent("a"), lambda store: store.mark_ambiguous(1, STORE_ERROR, 3.0, b"<html>502"))
    apply_all(store, intent("b"), lambda store: store.mark_ambiguous(2, STORE_ERROR, 3.0))
    assert [job.answer for job in store.ambiguous_jobs()] == [b"<html>502", b""]
    apply_all(store, lambda store: store.resubmit(1), intent("a"), lambda store: store.resubmit_submitting(1, b"cut"))
    apply_all(store, intent("a"), Ledger.mark_in_flight_ambiguous)
    assert [job.answer for job in store.ambiguous_jobs()] == [b"cut", b""]


def test_ambiguous_jobs_include_pending_posts(store: SqliteLedger) -> None:
    """Jobs with a pending POST are listed with the ambiguous ones, and are ambiguous once their process has ended."""
    apply_all(store, intent("a"), intent("b"), intent("c"), intent("d"))
    apply_all(store, lambda store: store.mark_ambiguous(1, STORE_ERROR, 3.0), revert(3), accept(4))
    assert [(job.job_id, job.reason, job.body) for job in store.ambiguous_jobs()] == [
        ("a", STORE_ERROR.message, REQUEST_BODY), ("b", "being submitted", REQUEST_BODY),
    ]  # fmt: skip
    apply_all(store, Ledger.mark_in_flight_ambiguous)
    assert store.counts() == {State.AMBIGUOUS: 2, State.PENDING: 1, State.ACCEPTED: 1}
    assert [job.job_no for job in store.ambiguous_jobs()] == [1, 2]


def test_a_killed_post_is_ambiguous(store: SqliteLedger) -> None:
    """A job whose process ended during its POST is ambiguous and says so. The charge of that POST stays unknown."""
    apply_all(store, intent())
    apply_all(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=False))
    outcome = store.outcome(1)
    assert outcome.error is not None
    assert "the POST was pending" in outcome.error.message
    apply_all(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=True))
    apply_all(store, intent(), accept())
    assert store.charges() == Charges(charged=1, unknown=1)


def test_errors_are_counted_over_runs(store: SqliteLedger) -> None:
    """A job with `max_attempts` ERRORs in all runs is not submitted by a new run."""
    for attempt in range(1, 3):
        apply_all(store, intent(), accept(1, f"r-{attempt}"), requeue_errored())
    apply_all(store, intent(), accept(1, "r-3"), lambda store: store.mark_errored(1, STORE_ERROR, 5.0, 1))
    apply_all(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=False))
    assert state_of(store) is State.ERRORED
    apply_all(store, lambda store: store.recover(max_attempts=4, resubmit_ambiguous=False))
    assert state_of(store) is State.PENDING
    assert store.open_jobs(0, 10)[0].errors == 3


def test_pages_of_open_jobs(store: SqliteLedger) -> None:
    """Pages of open jobs are in the order of their numbers and have at most `limit` jobs."""
    for index in range(1, 8):
        apply_all(store, intent(f"job-{index}"), accept(index, f"r-{index}"))
    assert [job.job_no for job in store.open_jobs(0, 3)] == [1, 2, 3]
    assert [job.job_no for job in store.open_jobs(3, 3)] == [4, 5, 6]
    assert [job.job_no for job in store.open_jobs(6, 3)] == [7]
    assert store.open_jobs(7, 3) == []


def test_the_limit_of_the_latest_run(store: SqliteLedger) -> None:
    """The limit of charges of the latest run is remembered, with what it counts."""
    for limit, strict in ((None, False), (7, True), (8, False)):
        apply_all(
            store,
            lambda store, limit=limit, strict=strict: store.start_run(  # type: ignore[misc]
                "https://a", "0.1", 1.0, max_charges=limit, count_server_errors=strict
            ),
        )
        latest = store.latest_run()
        assert latest
        assert (latest.max_charges, latest.count_server_errors) == (limit, strict)


def test_a_run_directory_has_one_gateway(store: SqliteLedger) -> None:
    """A run at another gateway is refused: request_ids are valid at one gateway only."""
    run = apply_all(store, lambda store: store.start_run("https://a", "0.1", 1.0))
    apply_all(store, lambda store: store.end_run(run, 2.0))
    assert apply_all(store, lambda store: store.start_run("https://a", "0.2", 3.0)) == run + 1
    with pytest.raises(RunDirError, match="https://a"):
        apply_all(store, lambda store: store.start_run("https://b", "0.2", 4.0))


method_names = st.lists(st.sampled_from(sorted(TRANSITION_CASES)) | st.just("recover"), max_size=25)


@settings(deadline=None, max_examples=150)
@given(method_names)
def test_no_order_of_transitions_breaks_the_invariants(methods: list[str]) -> None:
    """In any order of transitions, a job is charged again only after an ERROR or a resubmit by the user."""
    store = SqliteLedger(Path("x"), _in_memory())
    charged, resubmits, request = 0, 0, 0
    for method in methods:
        request += 1
        operation: StoreOperation = TRANSITION_CASES[method][0] if method != "recover" else _recover
        if method == "mark_accepted":
            operation = accept(1, f"r-{request}")
        if method == "adopt":
            operation = partial(Ledger.adopt, job_no=1, request_id=f"r-{request}", at=9.0)
        try:
            apply_all(store, operation)
        except InternalError:
            continue
        charged += method in ("mark_accepted", "adopt")
        resubmits += method == "resubmit"
        charges = store.charges()
        assert charges.charged + charges.refunded == charged
        assert charges.charged <= 1 + resubmits
        assert sum(store.counts().values()) <= 1
    store.close()


def _recover(store: SqliteLedger) -> None:
    store.recover(max_attempts=100, resubmit_ambiguous=False)


# ---- files that are not ledgers --------------------------------------------------------------------------


def create_foreign_file(path: Path, *statements: str) -> Path:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: create_foreign_file(path, "CREATE TABLE mine (x)"),
        lambda path: create_foreign_file(path, "PRAGMA application_id = 7", "CREATE TABLE jobs (x)"),
        lambda path: create_foreign_file(
            path, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
            "CREATE TABLE jobs (x)",
        ),
        lambda path: create_foreign_file(
            path, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION - 1}",
            "CREATE TABLE jobs (x)",
        ),
        lambda path: path.write_text("this is a text, and longer than the head of a database\n" * 100),
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4000),
        lambda path: path.mkdir(),
    ],
    ids=["other tables", "other application", "newer schema", "older schema", "a text", "a damaged file", "a folder"],
)  # fmt: skip
def test_foreign_files(path: Path, make: Callable[[Path], object], read_only: bool) -> None:
    """A foreign, newer, older or damaged file raises RunDirError with its path, and is not changed."""
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(RunDirError) as caught:
        SqliteLedger.open(path, read_only=read_only)
    assert caught.value.path == path
    assert (path.read_bytes() if path.is_file() else b"") == before
    if path.is_file():
        path.unlink()  # on some systems this fails for an open file


def test_a_missing_file(path: Path) -> None:
    """Opening a missing ledger for reading raises RunDirError and does not create it."""
    with pytest.raises(RunDirError):
        SqliteLedger.open(path, read_only=True)
    assert not path.exists()
    with pytest.raises(RunDirError):
        SqliteLedger.open(path.parent / "none" / "ledger.db")


def test_an_empty_file_reads_as_an_empty_ledger(path: Path) -> None:
    """After a kill during the creation of the ledger, readers see an empty ledger."""
    path.touch()
    reader = SqliteLedger.open(path, read_only=True)
    assert (reader.counts(), reader.charges(), reader.ambiguous_jobs()) == ({}, Charges(), [])
    assert reader.fingerprints(["a"]) == {}
    reader.close()
    assert path.stat().st_size == 0


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    """An empty file, which a crash may leave, is opened as a new ledger."""
    path.touch()
    store = SqliteLedger.open(path)
    apply_all(store, intent())
    store.close()


@pytest.mark.parametrize("name", ["a b.db", "what?.db", "hash#.db", "50%25.db", "ünï.db"])
def test_file_names_with_special_characters(tmp_path: Path, name: str) -> None:
    """Characters with a meaning in URLs are allowed in the path."""
    store = SqliteLedger.open(tmp_path / name)
    store.close()
    assert (tmp_path / name).is_file()


OPEN_UNPRIVILEGED = """
import os, sys
from pathlib import Path
from krea_batch.errors import RunDirError
from krea_batch.ledger import Ledger
from krea_batch.ledger.sqlite import SqliteLedger
if os.geteuid() == 0:
    os.setuid(65534)
try:
    SqliteLedger.open(Path(sys.argv[1]))
except RunDirError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
def test_a_read_only_file(path: Path, folder_mode: int) -> None:
    """A ledger that cannot be written is refused when it is opened, before anything is charged."""
    store = SqliteLedger.open(path)
    apply_all(store, intent())
    store.close()
    public = Path(tempfile.mkdtemp())  # other users cannot read pytest's own directories
    try:
        copy = shutil.copy(path, public / "ledger.db")
        Path(copy).chmod(0o444)
        public.chmod(folder_mode)
        process = subprocess.run(
            [sys.executable, "-c", OPEN_UNPRIVILEGED, copy], capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S
        )
    finally:
        public.chmod(0o755)
        shutil.rmtree(public)
    if "Permission denied" in process.stderr and "import" in process.stderr:
        pytest.skip("another user cannot read the interpreter or the package")
    assert process.stderr == ""
    assert "ledger.db: " in process.stdout


def test_a_reader_beside_a_writer(store: SqliteLedger, path: Path) -> None:
    """A second connection can read the ledger while the first one writes, and cannot write."""
    apply_all(store, intent())
    reader = SqliteLedger.open(path, read_only=True)
    apply_all(store, accept())
    assert state_of(reader) is State.ACCEPTED
    with pytest.raises(LedgerError, match="readonly"):
        apply_all(reader, finish())
    reader.close()
    assert state_of(store) is State.ACCEPTED


def test_commits_are_synced(store: SqliteLedger, path: Path) -> None:
    """The ledger uses WAL mode and syncs each commit, since the request_id of a charge must survive a power cut."""
    (mode,) = store._sql.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = store._sql.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)


KILLED_SCRIPT = """
import os, sys
from pathlib import Path
from krea_batch.ledger import Ledger
from krea_batch.ledger.sqlite import SqliteLedger
store = SqliteLedger.open(Path(sys.argv[1]))
store.transaction(lambda s: s.record_intent("a", b"{}", b"f" * 32, b"{}", 1.0, ""))
store.transaction(lambda s: s.mark_accepted(1, "r-1", 2.0))
store._sql.execute("BEGIN IMMEDIATE")
store.record_intent("b", b"{}", b"f" * 32, b"{}", 1.0, "")
os.kill(os.getpid(), 9)
"""


def test_killed_in_a_transaction(path: Path) -> None:
    """After kill -9, committed transitions are in the ledger and others are not."""
    subprocess.run([sys.executable, "-c", KILLED_SCRIPT, path], timeout=PROCESS_TIMEOUT_S)
    store = SqliteLedger.open(path)
    assert store.counts() == {State.ACCEPTED: 1}
    assert apply_all(store, intent("b")) == 2
    store.close()
