"""`LedgerWriter` commits transitions in groups; each caller continues when its own is durable, or gets an error."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from krea_batch.errors import InternalError, LedgerError, RunDirError
from krea_batch.jobs import ErrorInfo, State
from krea_batch.ledger import Ledger, LedgerWriter
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.writer import Operation, commit
from krea_batch.rules.verdicts import Finished
from krea_batch.testing import run_virtual

T = TypeVar("T")
FINISHED = Finished(("https://cdn.example/a.png",), "image/png")
SOME_ERROR = ErrorInfo("kind", "a message")


class FailingConnection:
    """A connection that counts commits and raises `error` for statements that start with `fail_on`."""

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


def with_ledger(
    path: Path,
    use: Callable[[LedgerWriter, FailingConnection], Coroutine[Any, Any, T]],
    run: Callable[[Coroutine[Any, Any, T]], T] = asyncio.run,
) -> T:
    """Open a ledger on a disk that can fail, use it, and close it."""

    async def main() -> T:
        store = SqliteLedger.open(path)
        disk = FailingConnection(store._sql)
        store._sql = disk  # type: ignore[assignment]
        ledger = LedgerWriter(store)
        try:
            return await use(ledger, disk)
        finally:
            await ledger.close()

    return run(main())


async def record_intent(ledger: LedgerWriter, job_id: str) -> int:
    return await ledger.record(Ledger.record_intent, job_id, b"{}", b"f" * 32, b"{}", 1.0, "", "")


async def gather_results(*operations: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*operations, return_exceptions=True)


def recorded_counts(path: Path) -> dict[State, int]:
    store = SqliteLedger.open(path, read_only=True)
    counts = store.counts()
    store.close()
    return counts


def test_a_record_is_durable_when_it_returns(path: Path) -> None:
    """When `record` returns, another process sees the transition."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        assert await record_intent(ledger, "a") == 1
        assert recorded_counts(path) == {State.SUBMITTING: 1}
        assert await ledger.record(Ledger.mark_accepted, 1, "r-1", 2.0) is True
        assert recorded_counts(path) == {State.ACCEPTED: 1}

    with_ledger(path, use)


def test_many_share_a_commit(path: Path) -> None:
    """Thousands of simultaneous transitions are applied in order, in a few commits."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        numbers = await gather_results(*(record_intent(ledger, f"job-{n}") for n in range(2500)))
        assert numbers == list(range(1, 2501))
        assert disk.commits <= 5

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 2500}


@pytest.mark.parametrize("bad", [0, 1, 50, 99])
def test_one_refused_among_many(path: Path, bad: int) -> None:
    """A refused transition raises InternalError for its own caller only; all others of its group are applied once."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        await record_intent(ledger, "taken")
        results = await gather_results(
            *(record_intent(ledger, "taken" if n == bad else f"job-{n}") for n in range(100))
        )
        refused = results.pop(bad)
        assert isinstance(refused, InternalError)
        assert not isinstance(refused, LedgerError)
        assert sorted(results) == list(range(2, 101))
        assert ledger.failure is None

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 100}


def test_a_refused_transition_is_rolled_back(path: Path) -> None:
    """A refused transition that had already changed a row is rolled back, alone or in a group."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        await record_intent(ledger, "a")
        await ledger.record(Ledger.mark_accepted, 1, "r-1", 2.0)
        await ledger.record(Ledger.mark_finished, 1, FINISHED, 3.0, 1)
        before = await ledger.record(Ledger.charges)
        for group_size in (1, 20):
            results = await gather_results(
                *(ledger.record(Ledger.mark_errored, 1, SOME_ERROR, 4.0, 2) for _ in range(group_size))
            )
            assert all(isinstance(result, InternalError) for result in results)
        assert await ledger.record(Ledger.charges) == before

    with_ledger(path, use)


def test_run_dir_errors_reach_their_caller(path: Path) -> None:
    """A run at another gateway raises RunDirError for its caller, and the ledger stays usable."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        await ledger.record(Ledger.start_run, "https://a", "0.1", 1.0)
        with pytest.raises(RunDirError):
            await ledger.record(Ledger.start_run, "https://b", "0.1", 1.0)
        assert await record_intent(ledger, "a") == 1

    with_ledger(path, use)


# ---- the disk fails --------------------------------------------------------------------------------------

DISK_ERRORS = [
    sqlite3.OperationalError("database or disk is full"),
    sqlite3.OperationalError("disk I/O error"),
    sqlite3.DatabaseError("database disk image is malformed"),
]


@pytest.mark.parametrize("error", DISK_ERRORS, ids=str)
@pytest.mark.parametrize("at", ["BEGIN", "INSERT INTO jobs", "INSERT INTO submissions", "COMMIT"])
def test_the_disk_fails(path: Path, at: str, error: Exception) -> None:
    """If the disk fails, every waiting caller and every later one gets a LedgerError."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        await record_intent(ledger, "before")
        disk.fail_on, disk.error = at, error
        results = await gather_results(*(record_intent(ledger, f"job-{n}") for n in range(1500)))
        assert all(isinstance(result, LedgerError) for result in results)
        assert ledger.failure is not None
        assert ledger.failure.path == path
        assert str(error) in str(ledger.failure)
        disk.fail_on = None  # the disk works again, but the file's content is unknown: nothing more is written
        for _ in range(2):
            with pytest.raises(LedgerError):
                await record_intent(ledger, "after")
        with pytest.raises(LedgerError):
            await ledger.record(Ledger.charges)

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 1}


def test_the_rollback_fails_too(path: Path) -> None:
    """A disk that fails during a rollback raises LedgerError, too."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        disk.fail_on = "ROLLBACK"
        with pytest.raises(LedgerError):
            await record_one_job_twice(ledger)

    async def record_one_job_twice(ledger: LedgerWriter) -> None:
        results = await gather_results(record_intent(ledger, "a"), record_intent(ledger, "a"))
        for result in results:
            if isinstance(result, BaseException):
                raise result

    with_ledger(path, use)


def test_the_disk_fails_after_a_refusal(path: Path) -> None:
    """If the disk fails while a refused group is applied one by one, all callers of the group get a LedgerError."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        real = disk.execute

        def fail_third_commit(sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "COMMIT" and disk.commits == 2:
                disk.fail_on = "COMMIT"
            return real(sql, *values)

        disk.execute = fail_third_commit  # type: ignore[method-assign]
        results = await gather_results(*(record_intent(ledger, job_id) for job_id in ("a", "b", "b", "c", "d")))
        assert isinstance(results[-1], LedgerError)
        others = [result for result in results[1:] if not isinstance(result, LedgerError)]
        assert others == []

    with_ledger(path, use)
    assert recorded_counts(path).get(State.SUBMITTING, 0) <= 3


def test_commit_maps_foreign_errors(path: Path) -> None:
    """`commit` raises LedgerError for every sqlite3 error."""
    store = SqliteLedger.open(path)
    store.close()
    with pytest.raises(LedgerError):
        commit(store, [Operation(Ledger.charges, (), {})])


# ---- cancellation and close ------------------------------------------------------------------------------


def test_a_cancelled_caller_undoes_nothing(path: Path) -> None:
    """Cancelling a caller does not undo its transition and does not affect other callers."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        tasks = [asyncio.ensure_future(record_intent(ledger, f"job-{n}")) for n in range(20)]
        await asyncio.sleep(0)  # all transitions are queued
        for task in tasks[::2]:
            task.cancel()
        results = await gather_results(*tasks)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        assert [result for result in results if isinstance(result, int)] == list(range(2, 21, 2))

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 20}


def test_close_commits_pending_operations(path: Path) -> None:
    """`close` commits the queued transitions, also those of cancelled callers."""

    async def main() -> None:
        ledger = LedgerWriter(SqliteLedger.open(path))
        tasks = [asyncio.ensure_future(record_intent(ledger, f"job-{n}")) for n in range(1200)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await ledger.close()
        await gather_results(*tasks)

    asyncio.run(main())
    assert recorded_counts(path) == {State.SUBMITTING: 1200}


def test_order_is_kept(path: Path) -> None:
    """Transitions of one job are applied in the order of their calls, also in a group."""

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        results = await gather_results(
            record_intent(ledger, "a"),
            ledger.record(Ledger.mark_accepted, 1, "r-1", 2.0),
            ledger.record(Ledger.mark_finished, 1, FINISHED, 3.0, 1),
            ledger.record(Ledger.mark_stored, 1, [], 4.0),
        )
        assert not [result for result in results if isinstance(result, BaseException)]

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUCCEEDED: 1}


def test_a_bug_in_a_transition_is_not_swallowed(path: Path) -> None:
    """An unexpected exception reaches the caller, and its transition is not in the ledger."""

    def broken(store: Ledger) -> None:
        store.record_intent("half", b"{}", b"f" * 32, b"{}", 1.0, "")
        raise ZeroDivisionError

    async def use(ledger: LedgerWriter, _: FailingConnection) -> None:
        with pytest.raises(ZeroDivisionError):
            await ledger.record(broken)
        assert await record_intent(ledger, "a") == 1

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 1}


def test_a_deferred_record_is_durable_before_a_later_one(path: Path) -> None:
    """`record_later` does not wait, but no later `record` returns before its transition is durable."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> dict[State, int]:
        n = await record_intent(ledger, "a")
        ledger.record_later(Ledger.mark_accepted, n, "r-1", 2.0)
        await record_intent(ledger, "b")
        return recorded_counts(path)

    assert with_ledger(path, use) == {State.ACCEPTED: 1, State.SUBMITTING: 1}


def test_close_commits_a_deferred_record(path: Path) -> None:
    """A deferred record is committed by `close` if no other record follows."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        n = await record_intent(ledger, "a")
        ledger.record_later(Ledger.mark_accepted, n, "r-1", 2.0)

    with_ledger(path, use)
    assert recorded_counts(path) == {State.ACCEPTED: 1}


def test_a_refused_deferred_record_raises_later(path: Path) -> None:
    """If a deferred record is refused, every later call raises its InternalError."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> None:
        n = await record_intent(ledger, "a")
        ledger.record_later(Ledger.adopt, n, "r-1", 2.0)
        results = await gather_results(record_intent(ledger, "b"))
        assert isinstance(results[0], int), "it was already queued"
        with pytest.raises(InternalError, match="job number 1"):
            await record_intent(ledger, "c")
        with pytest.raises(InternalError, match="job number 1"):
            ledger.record_later(Ledger.mark_accepted, n, "r-1", 2.0)

    with_ledger(path, use)
    assert recorded_counts(path) == {State.SUBMITTING: 2}


def test_commits_are_spaced(path: Path) -> None:
    """After a commit of several transitions, the next ones wait for the minimum interval and share a commit."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> int:
        await asyncio.gather(
            *(record_intent(ledger, f"before-{n}") for n in range(3))
        )  # a commit of one, then of two
        before = disk.commits
        later = [asyncio.ensure_future(record_intent(ledger, f"job-{n}")) for n in range(3)]
        for n in range(3, 6):
            await asyncio.sleep(0)
            later.append(asyncio.ensure_future(record_intent(ledger, f"job-{n}")))
        await asyncio.gather(*later)
        return disk.commits - before

    assert with_ledger(path, use, run_virtual) == 1


@pytest.mark.parametrize(("callers", "interval_s"), [(4, 0.010), (20, 0.025)])
def test_a_busy_run_commits_less_often(path: Path, callers: int, interval_s: float) -> None:
    """If many transitions arrive, commits are 25 ms apart instead of 10 ms, and larger."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> float:
        loop = asyncio.get_running_loop()

        async def record_in_turn(caller: int) -> list[float]:
            return [await record_intent(ledger, f"{caller}-{n}") and loop.time() for n in range(60)]

        recorded_s, *_ = await asyncio.gather(*(record_in_turn(caller) for caller in range(callers)))
        last_s = recorded_s[-21:]
        return statistics.median(after - before for before, after in pairwise(last_s))

    measured_s = with_ledger(path, use, lambda main: run_virtual(main, lambda: 0.001))
    assert measured_s == pytest.approx(interval_s, rel=0.02)


def test_a_single_caller_is_not_delayed(path: Path) -> None:
    """Transitions of a single caller do not wait for the minimum interval."""

    async def use(ledger: LedgerWriter, disk: FailingConnection) -> float:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        for n in range(20):
            await record_intent(ledger, f"job-{n}")
        return loop.time() - started_s

    assert with_ledger(path, use, run_virtual) == pytest.approx(0.0, abs=0.001)  # of virtual time
