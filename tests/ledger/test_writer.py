"""Many transitions arrive together; each caller hears when its own is durable, or why it is not."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from krea_batch.errors import InternalError, LedgerError, RunDirError
from krea_batch.jobs import ErrorInfo, State
from krea_batch.ledger import LedgerStore, LedgerWriter
from krea_batch.ledger.writer import Operation, commit
from tests.virtual_time_runs import run_virtual

T = TypeVar("T")
SOME_ERROR = ErrorInfo("kind", "a sentence")


class FailingConnection:
    """A connection that counts commits, and fails where it is told to."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.commits = 0
        self.fail_on: str | None = None
        self.error: Exception = sqlite3.OperationalError("database or disk is full")

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if self.fail_on is not None and sql.startswith(self.fail_on):
            raise self.error
        self.commits += sql == "COMMIT"
        return self._connection.execute(sql, *values)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def with_ledger(
    path: Path,
    use: Callable[[LedgerWriter, FailingConnection], Coroutine[Any, Any, T]],
    run: Callable[[Coroutine[Any, Any, T]], T] = asyncio.run,
) -> T:
    """Open a ledger on a disk that can fail, use it, and close it."""

    async def main() -> T:
        store = LedgerStore.open(path)
        disk = FailingConnection(store._sql)
        store._sql = disk  # type: ignore[assignment]
        ledger = LedgerWriter(store)
        try:
            return await use(ledger, disk)
        finally:
            await ledger.close()

    return run(main())


async def record_intent(ledger: LedgerWriter, job_id: str) -> int:
    return await ledger.record(LedgerStore.record_intent, job_id, b"{}", b"f" * 32, b"{}", 1.0, "")


async def gather_results(*operations: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*operations, return_exceptions=True)


def recorded_counts(path: Path) -> dict[State, int]:
    store = LedgerStore.open(path, read_only=True)
    counts = store.counts()
    store.close()
    return counts


def test_a_record_is_durable_when_it_returns(path: Path) -> None:
    """When `record` returns, another process sees the transition."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        assert await record_intent(ledger, "a") == 1
        assert recorded_counts(path) == {State.SUBMITTING: 1}
        assert await ledger.record(LedgerStore.mark_accepted, 1, "r-1", 2.0) is True
        assert recorded_counts(path) == {State.ACCEPTED: 1}

    with_ledger(path, use)


def test_many_share_a_commit(path: Path) -> None:
    """Thousands of transitions that come together are carried out in order, in a handful of commits."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        numbers = await gather_results(*(record_intent(ledger, f"job-{n}") for n in range(2500)))
        assert numbers == list(range(1, 2501))
        assert disk.commits <= 5

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 2500}


@pytest.mark.parametrize("bad", [0, 1, 50, 99])
def test_one_refused_among_many(path: Path, bad: int) -> None:
    """A transition that is refused is a bug for its own caller; all others of its group are carried out, once."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        await record_intent(ledger, "taken")
        answers = await gather_results(
            *(record_intent(ledger, "taken" if n == bad else f"job-{n}") for n in range(100))
        )
        refused = answers.pop(bad)
        assert isinstance(refused, InternalError)
        assert not isinstance(refused, LedgerError)
        assert sorted(answers) == list(range(2, 101))
        assert ledger.failure is None

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 100}


def test_a_refused_transition_leaves_no_half(path: Path) -> None:
    """A refused transition that had changed a part before is undone, alone or in a group."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        await record_intent(ledger, "a")
        await ledger.record(LedgerStore.mark_accepted, 1, "r-1", 2.0)
        await ledger.record(LedgerStore.mark_finished, 1, _done(), 3.0, 1)
        before = await ledger.record(LedgerStore.charges)
        for group in (1, 20):
            answers = await gather_results(
                *(ledger.record(LedgerStore.mark_errored, 1, SOME_ERROR, 4.0, 2) for _ in range(group))
            )
            assert all(isinstance(answer, InternalError) for answer in answers)
        assert await ledger.record(LedgerStore.charges) == before

    with_ledger(path, use)


def _done() -> Any:
    from krea_batch.rules.verdicts import Finished

    return Finished(("https://cdn.example/a.png",), "image/png")


def test_run_folder_errors_reach_their_caller(path: Path) -> None:
    """A run at another gateway is the caller's RunFolderError, and the ledger goes on."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        await ledger.record(LedgerStore.start_run, "https://a", "0.1", 1.0)
        with pytest.raises(RunDirError):
            await ledger.record(LedgerStore.start_run, "https://b", "0.1", 1.0)
        assert await record_intent(ledger, "a") == 1

    with_ledger(path, use)


# ---- the disk fails --------------------------------------------------------------------------------------

DISK_ERRORS = [
    sqlite3.OperationalError("database or disk is full"),
    sqlite3.OperationalError("disk I/O error"),
    sqlite3.DatabaseError("database disk image is malformed"),
    OSError(28, "No space left on device"),
]


@pytest.mark.parametrize("error", DISK_ERRORS, ids=str)
@pytest.mark.parametrize("at", ["BEGIN", "INSERT INTO jobs", "INSERT INTO submissions", "COMMIT"])
def test_the_disk_fails(path: Path, at: str, error: Exception) -> None:
    """When the disk fails, every waiter gets a LedgerError, and nothing afterwards pretends to succeed."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        await record_intent(ledger, "before")
        disk.fail_on, disk.error = at, error
        answers = await gather_results(*(record_intent(ledger, f"job-{n}") for n in range(1500)))
        assert all(isinstance(answer, LedgerError) for answer in answers)
        assert ledger.failure is not None
        assert ledger.failure.path == path
        assert str(error) in str(ledger.failure)
        disk.fail_on = None  # it is back: nobody knows what is in the file, so nothing more is written
        for _ in range(2):
            with pytest.raises(LedgerError):
                await record_intent(ledger, "after")
        with pytest.raises(LedgerError):
            await ledger.record(LedgerStore.charges)

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 1}


def test_the_rollback_fails_too(path: Path) -> None:
    """A disk on which not even a rollback is possible is a LedgerError like any other."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        disk.fail_on = "ROLLBACK"
        with pytest.raises(LedgerError):
            await all_of_group(ledger)

    async def all_of_group(ledger: LedgerWriter) -> None:
        answers = await gather_results(record_intent(ledger, "a"), record_intent(ledger, "a"))
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    with_ledger(path, use)


def test_the_disk_fails_after_a_refusal(path: Path) -> None:
    """When the disk fails while a group with a refused one is carried out one by one, all of it is a LedgerError."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        real = disk.execute

        def fail_third_commit(sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "COMMIT" and disk.commits == 2:
                disk.fail_on = "COMMIT"
            return real(sql, *values)

        disk.execute = fail_third_commit  # type: ignore[method-assign]
        answers = await gather_results(*(record_intent(ledger, job_id) for job_id in ("a", "b", "b", "c", "d")))
        assert isinstance(answers[-1], LedgerError)
        settled = [answer for answer in answers[1:] if not isinstance(answer, LedgerError)]
        assert settled == []

    with_ledger(path, use)
    assert recorded_counts(path).get(State.SUBMITTING, 0) <= 3


def test_commit_maps_foreign_errors(path: Path) -> None:
    """`commit` lets no sqlite3 error through."""
    store = LedgerStore.open(path)
    store.close()
    with pytest.raises(LedgerError):
        commit(store, [Operation(LedgerStore.charges, (), {})])


# ---- cancels and the end ---------------------------------------------------------------------------------


def test_a_cancelled_wait_undoes_nothing(path: Path) -> None:
    """A caller that is cancelled while it waits does not take its transition back, and harms no other one."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        tasks = [asyncio.ensure_future(record_intent(ledger, f"job-{n}")) for n in range(20)]
        await asyncio.sleep(0)  # all have asked
        for task in tasks[::2]:
            task.cancel()
        answers = await gather_results(*tasks)
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
        assert [answer for answer in answers if isinstance(answer, int)] == list(range(2, 21, 2))

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 20}


def test_close_waits_for_pending_operations(path: Path) -> None:
    """Closing the ledger carries out what was asked before, though nobody waits for it any more."""

    async def main() -> None:
        ledger = LedgerWriter.open(path)
        tasks = [asyncio.ensure_future(record_intent(ledger, f"job-{n}")) for n in range(1200)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await ledger.close()
        await gather_results(*tasks)

    asyncio.run(main())
    assert recorded_counts(path) == {State.SUBMITTING: 1200}


def test_order_is_kept(path: Path) -> None:
    """Transitions of one job are carried out in the order in which they were asked for, group or not."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        answers = await gather_results(
            record_intent(ledger, "a"),
            ledger.record(LedgerStore.mark_accepted, 1, "r-1", 2.0),
            ledger.record(LedgerStore.mark_finished, 1, _done(), 3.0, 1),
            ledger.record(LedgerStore.mark_stored, 1, [], 4.0),
        )
        assert not [answer for answer in answers if isinstance(answer, BaseException)]

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUCCEEDED: 1}


def test_a_bug_in_a_transition_is_not_swallowed(path: Path) -> None:
    """An unexpected error reaches the callers, and their transitions are not in the ledger."""

    def broken(store: LedgerStore) -> None:
        store.record_intent("half", b"{}", b"f" * 32, b"{}", 1.0, "")
        raise ZeroDivisionError

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        with pytest.raises(ZeroDivisionError):
            await ledger.record(broken)
        assert await record_intent(ledger, "a") == 1

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 1}


def test_a_deferred_record_is_durable_before_a_later_one(path: Path) -> None:
    """Nobody waits for a note, and yet no record that came after it returns before it is there."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> dict[State, int]:
        n = await record_intent(ledger, "a")
        ledger.record_later(LedgerStore.mark_accepted, n, "r-1", 2.0)
        await record_intent(ledger, "b")
        return recorded_counts(path)

    assert with_ledger(path, use) == {State.ACCEPTED: 1, State.SUBMITTING: 1}


def test_a_deferred_record_is_written_though_nothing_follows(path: Path) -> None:
    """A note that was the last before the close is in the file."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        n = await record_intent(ledger, "a")
        ledger.record_later(LedgerStore.mark_accepted, n, "r-1", 2.0)

    with_ledger(path, use)
    assert recorded_counts(path) == {State.ACCEPTED: 1}


def test_a_deferred_record_that_is_refused_raises(path: Path) -> None:
    """A transition that was no transition is a bug, and anyone who calls next hears of it."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        n = await record_intent(ledger, "a")
        ledger.record_later(LedgerStore.adopt, n, "r-1", 2.0)
        answers = await gather_results(record_intent(ledger, "b"))
        assert isinstance(answers[0], int), "it was on its way already"
        with pytest.raises(InternalError, match="job number 1"):
            await record_intent(ledger, "c")
        with pytest.raises(InternalError, match="job number 1"):
            ledger.record_later(LedgerStore.mark_accepted, n, "r-1", 2.0)

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 2}


def test_commits_are_spaced(path: Path) -> None:
    """Where several come at a time, those who follow closely wait a little for each other, and share a commit."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> int:
        await asyncio.gather(*(record_intent(ledger, f"before-{n}") for n in range(3)))  # one, and then two together
        before = disk.commits
        later = [asyncio.ensure_future(record_intent(ledger, f"job-{n}")) for n in range(3)]
        for n in range(3, 6):
            await asyncio.sleep(0)
            later.append(asyncio.ensure_future(record_intent(ledger, f"job-{n}")))
        await asyncio.gather(*later)
        return disk.commits - before

    assert with_ledger(path, use, run_virtual) == 1


def test_a_single_caller_is_not_delayed(path: Path) -> None:
    """One transition after the other costs no time but the disk's."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> float:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for n in range(20):
            await record_intent(ledger, f"job-{n}")
        return loop.time() - began_s

    assert with_ledger(path, use, run_virtual) == pytest.approx(0.0, abs=0.001)  # of virtual time
