"""Transitions go in; the states, posts and charges on record come out, also after the file is opened anew."""

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

from krea_batch.errors import InternalError, RunDirError
from krea_batch.jobs import FINAL, ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger import Charges, LedgerStore
from krea_batch.ledger.database import APPLICATION_ID, SCHEMA_VERSION, schema
from krea_batch.rules import lifecycle
from krea_batch.rules.verdicts import Finished

BODY = b'{"prompt":"a cat"}'
PRINT = b"f" * 32
META = b'{"row":7}'
WHY = ErrorInfo("kind", "a sentence")
ABANDONED = ErrorInfo("abandoned", "ambiguous, and it was decided not to submit it again")
DONE = Finished(("https://cdn.example/a.png", "https://cdn.example/b.png"), "image/png", 12.5)
FILE = StoredFile("images/a.png", 10, "0" * 64, 4, 3, "image/png")

Work = Callable[[LedgerStore], Any]


def do(store: LedgerStore, *works: Work) -> Any:
    """Carry out works in one transaction, and return the answer of the last."""
    return store.transaction(works)[-1]


def intend(job_id: str = "a", at: float = 1.0) -> Work:
    return lambda store: store.record_intent(job_id, BODY, PRINT, META, at, "")


def accept(n: int = 1, request_id: str = "r-1") -> Work:
    return lambda store: store.mark_accepted(n, request_id, 2.0)


def finish(n: int = 1) -> Work:
    return lambda store: store.mark_finished(n, DONE, 3.0, 2)


def error_again(n: int = 1) -> Work:
    return lambda store: store.requeue_errored(n, 4)


def take_back(n: int = 1, came_to: str = "refused") -> Work:
    return lambda store: store.revert_intent(n, came_to)


# How a job comes into each state, and every transition that a state may be asked for.
WAYS: dict[State, list[Work]] = {
    State.PENDING: [intend(), take_back()],
    State.SUBMITTING: [intend()],
    State.ACCEPTED: [intend(), accept()],
    State.FINISHED: [intend(), accept(), finish()],
    State.SUCCEEDED: [intend(), accept(), finish(), lambda store: store.mark_stored(1, [FILE], 4.0)],
    State.FAILED: [intend(), accept(), lambda store: store.mark_failed(1, WHY, 3.0, 2)],
    State.ERRORED: [intend(), accept(), lambda store: store.mark_errored(1, WHY, 3.0, 2)],
    State.REJECTED: [intend(), lambda store: store.mark_rejected(1, WHY, 3.0)],
    State.AMBIGUOUS: [intend(), lambda store: store.mark_ambiguous(1, WHY, 3.0)],
    State.TIMED_OUT: [intend(), accept(), lambda store: store.mark_timed_out(1, WHY, 3.0, 2)],
    State.CANCELLED: [intend(), lambda store: store.mark_ambiguous(1, WHY, 3.0), lambda store: store.abandon(1, 4.0)],
}
MOVES: dict[str, tuple[Work, set[State], State]] = {
    "intend": (intend(at=9.0), {State.PENDING}, State.SUBMITTING),
    "take_back": (take_back(), {State.SUBMITTING}, State.PENDING),
    "accept": (accept(request_id="r-2"), {State.SUBMITTING}, State.ACCEPTED),
    "reject": (lambda store: store.mark_rejected(1, WHY, 9.0), {State.SUBMITTING}, State.REJECTED),
    "hold": (lambda store: store.mark_ambiguous(1, WHY, 9.0), {State.SUBMITTING}, State.AMBIGUOUS),
    "resubmit": (lambda store: store.resubmit(1), {State.AMBIGUOUS}, State.PENDING),
    "abandon": (lambda store: store.abandon(1, 9.0), {State.AMBIGUOUS}, State.CANCELLED),
    "adopt": (lambda store: store.adopt(1, "r-9", 9.0), {State.AMBIGUOUS}, State.ACCEPTED),
    "finish": (finish(), {State.ACCEPTED}, State.FINISHED),
    "fail": (lambda store: store.mark_failed(1, WHY, 9.0, 5), {State.ACCEPTED}, State.FAILED),
    "error": (lambda store: store.mark_errored(1, WHY, 9.0, 5), {State.ACCEPTED}, State.ERRORED),
    "error_again": (error_again(), {State.ACCEPTED}, State.PENDING),
    "time_out": (
        lambda store: store.mark_timed_out(1, WHY, 9.0, 5),
        {State.ACCEPTED, State.FINISHED},
        State.TIMED_OUT,
    ),
    "store": (lambda store: store.mark_stored(1, [FILE], 9.0), {State.FINISHED}, State.SUCCEEDED),
}
CHARGES: dict[State, Charges] = {
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
def store(path: Path) -> Iterator[LedgerStore]:
    opened = LedgerStore.open(path)
    yield opened
    opened.close()


def bring(store: LedgerStore, state: State) -> None:
    """Bring the first job into a state, one transaction a step."""
    for step in WAYS[state]:
        do(store, step)


def state_of(store: LedgerStore) -> State:
    (state,) = store.counts()
    return state


def dump(path: Path) -> list[str]:
    """All that is on record."""
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines


# ---- transitions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", WAYS)
@pytest.mark.parametrize("move", MOVES)
def test_every_transition(store: LedgerStore, path: Path, state: State, move: str) -> None:
    """A transition of the table is carried out; any other is a bug of ours, and changes nothing at all."""
    bring(store, state)
    work, allowed, new = MOVES[move]
    if state in allowed:
        do(store, work)
        assert state_of(store) is new
        return
    before = dump(path)
    with pytest.raises(InternalError):
        do(store, work)
    assert dump(path) == before
    assert state_of(store) is state


@pytest.mark.parametrize("move", [move for move in MOVES if move != "intend"])
def test_jobs_that_are_not_on_record(store: LedgerStore, move: str) -> None:
    """A transition of a job that the ledger does not have is a bug of ours."""
    with pytest.raises(InternalError):
        do(store, MOVES[move][0])
    assert store.counts() == {}


def test_the_transitions_are_those_of_the_table() -> None:
    """What the store allows and what the table allows are one and the same."""
    for _, allowed, new in MOVES.values():
        for old in allowed:
            steps = [State.ERRORED, new] if (old, new) == (State.ACCEPTED, State.PENDING) else [new]
            for step in steps:
                lifecycle.check_transition(old, step)
                old = step  # noqa: PLW2901 - the way through ERROR


@pytest.mark.parametrize("state", WAYS)
def test_charges(store: LedgerStore, path: Path, state: State) -> None:
    """Each accepted POST is charged but for ERROR, each one in the air or unclear is unknown, also when reopened."""
    bring(store, state)
    assert store.charges() == CHARGES[state]
    again = LedgerStore.open(path)
    assert again.charges() == CHARGES[state]
    again.close()


def test_each_post_counts(store: LedgerStore) -> None:
    """Refusals, unsent POSTs, ERRORs and a doubtful one are each on record when the job succeeds in the end."""
    steps: list[Work] = [
        intend(), take_back(came_to="refused"), intend(), take_back(came_to="not_sent"),
        intend(), accept(request_id="r-1"), error_again(), intend(), accept(request_id="r-2"), error_again(),
        intend(), lambda store: store.mark_ambiguous(1, WHY, 5.0), lambda store: store.resubmit(1),
        intend(), accept(request_id="r-3"), finish(),
        lambda store: store.mark_stored(1, [FILE], 9.0),
    ]  # fmt: skip
    for step in steps:
        last = do(store, step)
    assert store.charges() == Charges(charged=1, refunded=2, unknown=1)
    assert isinstance(last, Outcome)
    assert (last.status, last.request_id, last.attempts, last.error) == (State.SUCCEEDED, "r-3", 6, None)


def test_charges_of_many(store: LedgerStore) -> None:
    """Charges are summed over all jobs."""
    for index in range(1, 11):
        do(store, intend(f"job-{index}"))
        if index % 2:
            do(store, accept(index, f"r-{index}"))
        if index % 4 == 1:
            do(store, lambda store, n=index: store.mark_errored(n, WHY, 3.0, 1))  # type: ignore[misc]
    assert store.charges() == Charges(charged=2, refunded=3, unknown=5)


def test_a_request_id_belongs_to_one_job(store: LedgerStore, path: Path) -> None:
    """A request_id that another POST has already is not taken, and nothing is changed; its job can be held."""
    do(store, intend("a"), accept(1, "r"))
    do(store, intend("b"))
    before = dump(path)
    assert do(store, accept(2, "r")) is False
    assert dump(path) == before
    do(store, lambda store: store.mark_ambiguous(2, WHY, 3.0))
    assert store.charges() == Charges(charged=1, unknown=1)


def test_a_request_id_twice_in_one_transaction(store: LedgerStore) -> None:
    """Of two jobs that get one request_id within one commit the first has it."""
    do(store, intend("a"), intend("b"))
    assert store.transaction([accept(1, "r"), accept(2, "r")]) == [True, False]


def test_the_request_id_of_an_earlier_post_of_the_same_job(store: LedgerStore) -> None:
    """A second accepted POST that comes with the first one's request_id is not counted as another."""
    do(store, intend(), accept(1, "r"), error_again(), intend())
    assert do(store, accept(1, "r")) is False
    assert store.charges() == Charges(refunded=1, unknown=1)


def test_a_changed_body_under_an_old_id(store: LedgerStore) -> None:
    """A pending job is not submitted under another fingerprint; a new id is a new job."""
    do(store, intend(), take_back())
    with pytest.raises(InternalError):
        do(store, lambda store: store.record_intent("a", b"{}", b"g" * 32, META, 5.0, ""))
    assert do(store, intend("b")) == 2
    assert do(store, intend("a")) == 1
    assert store.fingerprints(["a", "b", "c"]) == {"a": PRINT, "b": PRINT}


def test_one_refused_undoes_its_transaction(store: LedgerStore) -> None:
    """Works that share a transaction are carried out together or not at all."""
    do(store, intend("a"))
    with pytest.raises(InternalError):
        do(store, accept(1), intend("b"), finish(2))
    assert store.counts() == {State.SUBMITTING: 1}


# ---- rows ------------------------------------------------------------------------------------------------


def test_a_row_of_success(store: LedgerStore) -> None:
    """The outcome of a job holds all that its row shows, with instants in UTC to the millisecond."""
    do(store, lambda store: store.record_intent("a", BODY, PRINT, META, 1_774_951_200.0, ""))
    do(store, lambda store: store.mark_accepted(1, "r-1", 1_774_951_200.25), finish())
    outcome = do(store, lambda store: store.mark_stored(1, [FILE], 4.0))
    assert outcome == store.outcome(1) == Outcome(
        id="a", status=State.SUCCEEDED, request_id="r-1", files=(FILE,), error=None, request={"prompt": "a cat"},
        metadata={"row": 7}, polls=2, attempts=1, submitted_at="2026-03-31T10:00:00.000Z",
        accepted_at="2026-03-31T10:00:00.250Z", finished_at="1970-01-01T00:00:03.000Z",
        stored_at="1970-01-01T00:00:04.000Z",
    )  # fmt: skip
    assert store.find_job("a") == outcome


@pytest.mark.parametrize("state", [state for state in WAYS if state in FINAL - {State.SUCCEEDED}])
def test_rows_of_other_ends(store: LedgerStore, state: State) -> None:
    """The outcome of a job that did not succeed says why; the request_id is there wherever there was one."""
    bring(store, state)
    outcome = store.outcome(1)
    assert (outcome.status, outcome.files) == (state, ())
    assert outcome.error == (WHY if state is not State.CANCELLED else ABANDONED)
    never_accepted = (State.REJECTED, State.AMBIGUOUS, State.CANCELLED)
    assert outcome.request_id == (None if state in never_accepted else "r-1")
    assert outcome.stored_at is None


@pytest.mark.parametrize("state", WAYS)
def test_only_ends_are_outcomes(store: LedgerStore, state: State) -> None:
    """Result rows are of jobs that have ended; a job that is asked for by its id is known wherever it stands."""
    bring(store, state)
    outcomes, _ = store.outcomes(0, 10)
    known = store.find_job("a")
    assert [outcome.status for outcome in outcomes] == ([state] if state in FINAL else [])
    assert known is not None
    assert known.status is state
    assert store.find_job("b") is None


def test_what_waits_for_its_turn_is_on_record(store: LedgerStore) -> None:
    """A job that is enqueued is pending, with no POST; twice makes no difference; then it is submitted."""
    for _ in range(2):
        do(store, lambda store: store.enqueue("a", BODY, PRINT, META, "ann"))
    (job,) = store.open_jobs(0, 10)
    assert (job.id, job.state, job.tenant, job.attempts) == ("a", State.PENDING, "ann", 0)
    assert store.charges() == Charges()
    assert do(store, lambda store: store.record_intent("a", BODY, PRINT, META, 1.0, "ann")) == job.job_no
    do(store, lambda store: store.mark_accepted(job.job_no, "r-1", 2.0))
    do(store, lambda store: store.enqueue("a", BODY, PRINT, META, "ann"))
    assert [job.state for job in store.open_jobs(0, 10)] == [State.ACCEPTED]


@given(st.integers(1, 7))
def test_outcomes_come_in_pages(limit: int) -> None:
    """Read page by page, whatever its size, each ended job comes once, in the order of the first submits."""
    store = LedgerStore(Path("x"), _memory())
    for index in range(1, 16):
        do(store, intend(f"job-{index}"))
        if index % 3:
            do(store, lambda store, n=index: store.mark_rejected(n, WHY, 1.0))  # type: ignore[misc]
    seen: list[str] = []
    after: int | None = 0
    while after is not None:
        outcomes, after = store.outcomes(after, limit)
        seen += [outcome.id for outcome in outcomes]
    store.close()
    assert seen == [f"job-{index}" for index in range(1, 16) if index % 3]


def _memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(schema())
    return connection


# ---- a new run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resubmit", [False, True])
@pytest.mark.parametrize("state", WAYS)
def test_reopened_from_each_state(store: LedgerStore, path: Path, state: State, resubmit: bool) -> None:
    """Killed in any state, a job goes on from there in the next run; only a POST in the air is in doubt."""
    bring(store, state)  # and the process dies: nothing is closed
    again = LedgerStore.open(path)
    do(again, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=resubmit))
    expected = lifecycle.on_resume(state, errors=1, max_attempts=3, resubmit_ambiguous=resubmit) or state
    assert state_of(again) is expected
    assert again.charges() == CHARGES[state]
    open_jobs = again.open_jobs(0, 10)
    if expected in (State.PENDING, State.ACCEPTED, State.FINISHED):
        (job,) = open_jobs
        assert (job.job_no, job.id, job.state) == (1, "a", expected)
        assert (job.media == DONE) == (state is State.FINISHED)
        assert (job.request_id == "r-1") == (State.ACCEPTED in set(_seen(state)))
        assert again.request_of(1) == (BODY, PRINT, META)
        assert again.outcome(1).error is None
    else:
        assert open_jobs == []
    again.close()


def _seen(state: State) -> list[State]:
    names = {State.FINISHED: [State.ACCEPTED], State.ERRORED: [State.ACCEPTED], State.TIMED_OUT: [State.ACCEPTED]}
    return [*names.get(state, []), state]


def test_reopening_twice_changes_nothing_more(store: LedgerStore, path: Path) -> None:
    """Reopening is idempotent, so that a run that is killed while it reopens does no harm."""
    for index, state in enumerate(WAYS, 1):
        do(store, intend(f"job-{index}"))
        if state is State.ACCEPTED:
            do(store, accept(index, f"r-{index}"))
    do(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=False))
    before = dump(path)
    do(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=False))
    assert dump(path) == before


def test_an_adopted_job_is_charged_under_its_request_id(store: LedgerStore) -> None:
    """Of a job's doubtful POSTs the latest becomes the accepted one; a request_id that another has is refused."""
    bring(store, State.AMBIGUOUS)
    do(store, lambda store: store.resubmit(1), intend(), lambda store: store.mark_ambiguous(1, WHY, 5.0))
    do(store, intend("b"), lambda store: store.mark_accepted(2, "r-1", 6.0))
    assert do(store, lambda store: store.adopt(1, "r-1", 7.0)) is False
    assert store.charges() == Charges(charged=1, unknown=2)
    assert do(store, lambda store: store.adopt(1, "r-2", 7.0)) is True
    assert store.charges() == Charges(charged=2, unknown=1)
    known = store.find_job("a")
    assert known is not None
    assert (known.request_id, known.status) == ("r-2", State.ACCEPTED)


def test_doubts_are_the_ambiguous_and_what_is_in_the_air(store: LedgerStore) -> None:
    """Both are told with their bodies; once the process is known to be dead, both are ambiguous."""
    do(store, intend("a"), intend("b"), intend("c"), intend("d"))
    do(store, lambda store: store.mark_ambiguous(1, WHY, 3.0), take_back(3), accept(4))
    assert [(doubt.id, doubt.reason, doubt.body) for doubt in store.ambiguous_jobs()] == [
        ("a", WHY.message, BODY), ("b", "being submitted", BODY),
    ]  # fmt: skip
    do(store, LedgerStore.mark_in_flight_ambiguous)
    assert store.counts() == {State.AMBIGUOUS: 2, State.PENDING: 1, State.ACCEPTED: 1}
    assert [doubt.job_no for doubt in store.ambiguous_jobs()] == [1, 2]


def test_a_killed_post_is_unclear(store: LedgerStore) -> None:
    """A job that died with its POST in the air is ambiguous, says so, and its POST stays unknown for ever."""
    do(store, intend())
    do(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=False))
    outcome = store.outcome(1)
    assert outcome.error is not None
    assert "in the air" in outcome.error.message
    do(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=True))
    do(store, intend(), accept())
    assert store.charges() == Charges(charged=1, unknown=1)


def test_errors_are_counted_over_runs(store: LedgerStore) -> None:
    """A job with as many ERRORs as --max-attempts allows is not submitted by a new run."""
    for attempt in range(1, 3):
        do(store, intend(), accept(1, f"r-{attempt}"), error_again())
    do(store, intend(), accept(1, "r-3"), lambda store: store.mark_errored(1, WHY, 5.0, 1))
    do(store, lambda store: store.recover(max_attempts=3, resubmit_ambiguous=False))
    assert state_of(store) is State.ERRORED
    do(store, lambda store: store.recover(max_attempts=4, resubmit_ambiguous=False))
    assert state_of(store) is State.PENDING
    assert store.open_jobs(0, 10)[0].errors == 3


def test_open_jobs_come_in_pages(store: LedgerStore) -> None:
    """Open jobs come in the order of their numbers, so many at a time."""
    for index in range(1, 8):
        do(store, intend(f"job-{index}"), accept(index, f"r-{index}"))
    assert [job.job_no for job in store.open_jobs(0, 3)] == [1, 2, 3]
    assert [job.job_no for job in store.open_jobs(3, 3)] == [4, 5, 6]
    assert [job.job_no for job in store.open_jobs(6, 3)] == [7]
    assert store.open_jobs(7, 3) == []


def test_runs_stay_with_their_gateway(store: LedgerStore) -> None:
    """A folder's jobs live at one gateway; another one is refused before anything is sent."""
    run = do(store, lambda store: store.start_run("https://a", "0.1", 1.0))
    do(store, lambda store: store.end_run(run, 2.0))
    assert do(store, lambda store: store.start_run("https://a", "0.2", 3.0)) == run + 1
    with pytest.raises(RunDirError, match="https://a"):
        do(store, lambda store: store.start_run("https://b", "0.2", 4.0))


steps = st.lists(st.sampled_from(sorted(MOVES)) | st.just("reopen"), max_size=25)


@settings(deadline=None, max_examples=150)
@given(steps)
def test_no_order_of_events_breaks_the_laws(moves: list[str]) -> None:
    """In whatever order transitions come, a job is paid again only after an ERROR or somebody's word."""
    store = LedgerStore(Path("x"), _memory())
    paid, words, request = 0, 0, 0
    for move in moves:
        request += 1
        work: Work = MOVES[move][0] if move != "reopen" else _reopen
        if move == "accept":
            work = accept(1, f"r-{request}")
        if move == "adopt":
            work = partial(LedgerStore.adopt, n=1, request_id=f"r-{request}", at=9.0)
        try:
            do(store, work)
        except InternalError:
            continue
        paid += move in ("accept", "adopt")
        words += move == "resubmit"
        charges = store.charges()
        assert charges.charged + charges.refunded == paid
        assert charges.charged <= 1 + words
        assert sum(store.counts().values()) <= 1
    store.close()


def _reopen(store: LedgerStore) -> None:
    store.recover(max_attempts=100, resubmit_ambiguous=False)


# ---- files that are no ledgers ---------------------------------------------------------------------------


def foreign(path: Path, *statements: str) -> Path:
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
        lambda path: foreign(path, "CREATE TABLE mine (x)"),
        lambda path: foreign(path, "PRAGMA application_id = 7", "CREATE TABLE jobs (x)"),
        lambda path: foreign(
            path, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
            "CREATE TABLE jobs (x)",
        ),
        lambda path: foreign(
            path, f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION - 1}",
            "CREATE TABLE jobs (x)",
        ),
        lambda path: path.write_text("this is a text, and longer than the head of a database\n" * 100),
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4000),
        lambda path: path.mkdir(),
    ],
    ids=["other tables", "other application", "newer schema", "older schema", "a text", "a damaged file", "a folder"],
)  # fmt: skip
def test_strangers_files(path: Path, make: Callable[[Path], object], read_only: bool) -> None:
    """A stranger's, newer, older or damaged file is a RunDirError that names it, and is left as it was."""
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(RunDirError) as caught:
        LedgerStore.open(path, read_only=read_only)
    assert caught.value.path == path
    assert (path.read_bytes() if path.is_file() else b"") == before
    if path.is_file():
        path.unlink()  # nobody holds it


def test_a_file_that_is_not_there(path: Path) -> None:
    """Opened to read only, a ledger that is not there is a RunDirError, and is not made."""
    with pytest.raises(RunDirError):
        LedgerStore.open(path, read_only=True)
    assert not path.exists()
    with pytest.raises(RunDirError):
        LedgerStore.open(path.parent / "none" / "ledger.db")


def test_an_empty_file_reads_as_an_empty_ledger(path: Path) -> None:
    """A process that died while it made the ledger left a run with nothing in it, for whoever looks."""
    path.touch()
    reader = LedgerStore.open(path, read_only=True)
    assert (reader.counts(), reader.charges(), reader.ambiguous_jobs()) == ({}, Charges(), [])
    assert reader.fingerprints(["a"]) == {}
    reader.close()
    assert path.stat().st_size == 0


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    """An empty file, as a crash may leave one, is taken for a new ledger."""
    path.touch()
    store = LedgerStore.open(path)
    do(store, intend())
    store.close()


@pytest.mark.parametrize("name", ["a b.db", "what?.db", "hash#.db", "50%25.db", "ünï.db"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    """A path with signs that mean something in URLs is the file that it says."""
    store = LedgerStore.open(tmp_path / name)
    store.close()
    assert (tmp_path / name).is_file()


OPEN_AS_NOBODY = """
import os, sys
from pathlib import Path
from krea_batch.errors import RunDirError
from krea_batch.ledger import Store
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Store.open(Path(sys.argv[1]))
except RunDirError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
def test_a_file_that_cannot_be_written(path: Path, folder_mode: int) -> None:
    """A ledger that may be read but not written is refused when it is opened, not when money is at stake."""
    store = LedgerStore.open(path)
    do(store, intend())
    store.close()
    public = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        copy = shutil.copy(path, public / "ledger.db")
        Path(copy).chmod(0o444)
        public.chmod(folder_mode)
        told = subprocess.run(
            [sys.executable, "-c", OPEN_AS_NOBODY, copy], capture_output=True, text=True, timeout=60
        )
    finally:
        public.chmod(0o755)
        shutil.rmtree(public)
    if "Permission denied" in told.stderr and "import" in told.stderr:
        pytest.skip("another user cannot read the interpreter or the package")
    assert told.stderr == ""
    assert "ledger.db: " in told.stdout


def test_two_readers(store: LedgerStore, path: Path) -> None:
    """A second process may read the ledger while the first writes it."""
    do(store, intend())
    reader = LedgerStore.open(path, read_only=True)
    do(store, accept())
    assert state_of(reader) is State.ACCEPTED
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        do(reader, finish())
    reader.close()
    assert state_of(store) is State.ACCEPTED


def test_commits_are_synced(store: LedgerStore, path: Path) -> None:
    """The ledger is in WAL mode and syncs each commit, since a paid request_id must outlive a power cut."""
    (mode,) = store._sql.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = store._sql.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)


KILLED = """
import os, sys
from pathlib import Path
from krea_batch.ledger import Store
store = Store.open(Path(sys.argv[1]))
store.transaction([lambda s: s.intend("a", b"{}", b"f" * 32, b"{}", 1.0, "")])
store.transaction([lambda s: s.accept(1, "r-1", 2.0)])
store._sql.execute("BEGIN IMMEDIATE")
store.intend("b", b"{}", b"f" * 32, b"{}", 1.0, "")
os.kill(os.getpid(), 9)
"""


def test_killed_in_a_transaction(path: Path) -> None:
    """What was committed before a kill -9 is there afterwards; what was not leaves no trace."""
    subprocess.run([sys.executable, "-c", KILLED, path], timeout=60)
    store = LedgerStore.open(path)
    assert store.counts() == {State.ACCEPTED: 1}
    assert do(store, intend("b")) == 2
    store.close()
