"""The ledger's files: who may read them, how far ledger.db is behind its WAL, and what a lock does."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from krea_batch import Engine
from krea_batch.errors import LedgerError, RunDirError
from krea_batch.jobs import State
from krea_batch.ledger import Ledger, LedgerWriter, waiting
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.sqlite.database import WAL_LIMIT_BYTES
from krea_batch.ledger.writer import MAINTENANCE_INTERVAL_S
from krea_batch.maintenance.resolve import AmbiguousJobs
from krea_batch.rules.verdicts import Finished
from krea_batch.testing import ScriptedGateway, run_until_killed, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, query_ledger, result_statuses, run_jobs

FINISHED = Finished(("https://cdn.example/a.png",), "image/png")
JOB_BYTES = 13_000  # what a job adds to the WAL if it is committed alone


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def record_intent(ledger: LedgerWriter, job_id: str) -> int:
    return await ledger.record(Ledger.record_intent, job_id, b"{}", b"f" * 32, b"{}", 1.0, "", "")


async def complete_jobs(ledger: LedgerWriter, first: int, count: int) -> None:
    """Take jobs through all transitions, one after the other, so that each has commits of its own."""
    for n in range(first, first + count):
        job_no = await record_intent(ledger, f"j{n}")
        await ledger.record(Ledger.mark_accepted, job_no, f"r-{n}", 2.0)
        await ledger.record(Ledger.mark_finished, job_no, FINISHED, 3.0, 1)
        await ledger.record(Ledger.mark_stored, job_no, [], 4.0)


def states_without_wal(path: Path) -> dict[str, str]:
    """Return the state of each job in a copy of ledger.db alone, without its WAL."""
    copy = path.parent / "alone"
    copy.mkdir()
    shutil.copy(path, copy / "ledger.db")
    tables = query_ledger(copy, "SELECT 1 FROM sqlite_schema")
    states = ledger_states(copy) if tables else {}
    shutil.rmtree(copy)
    return states


# ---- who may read them -----------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o177])
def test_only_the_owner_reads_a_new_ledger(tmp_path: Path, mask: int) -> None:
    """Whatever the umask is, the run directory and all files of the ledger are for their owner only."""
    out = tmp_path / "runs" / "out"
    (tmp_path / "runs").mkdir()
    modes: dict[str, int] = {}

    async def main() -> None:
        async with Engine(out, gateway_client=ScriptedGateway()) as engine:
            await engine.set_expected_jobs(1)
            modes.update({file.name: mode(file) for file in out.glob("ledger.db*")})

    with umask(mask & 0o077):
        run_virtual(main())
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert mode(out) == 0o700


def test_the_umask_cannot_lock_the_owner_out(path: Path) -> None:
    """A umask that takes the owner's rights does not change the mode of the ledger."""
    with umask(0o377):
        SqliteLedger.open(path).close()
    assert mode(path) == 0o600


def test_existing_modes_are_kept(tmp_path: Path) -> None:
    """The modes of a directory and of a ledger that exist are not changed."""
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o750)
    run_virtual(run_jobs(out, ScriptedGateway(), make_jobs(1)))
    (out / "ledger.db").chmod(0o640)
    run_virtual(run_jobs(out, ScriptedGateway(), make_jobs(1)))
    assert (mode(out), mode(out / "ledger.db")) == (0o750, 0o640)


def test_a_link_that_leads_nowhere(tmp_path: Path, path: Path) -> None:
    """A ledger is not created at the place that a symbolic link names."""
    path.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(RunDirError):
        SqliteLedger.open(path)
    assert not (tmp_path / "elsewhere.db").exists()


# ---- the WAL ---------------------------------------------------------------------------------------------


def test_ledger_db_alone_is_not_far_behind(path: Path) -> None:
    """A second after the last commit, ledger.db alone has every job."""

    async def main() -> None:
        ledger = LedgerWriter(SqliteLedger.open(path))
        await complete_jobs(ledger, 0, 60)
        assert len(states_without_wal(path)) < 60
        await asyncio.sleep(MAINTENANCE_INTERVAL_S + 0.1)
        assert set(states_without_wal(path).values()) == {"succeeded"}
        assert len(states_without_wal(path)) == 60
        await ledger.close()

    run_virtual(main())


def test_the_wal_is_bounded_beside_a_reader(path: Path) -> None:
    """While a reader has a snapshot open, the WAL grows; afterwards it is cut, and stays under its limit."""

    async def main() -> None:
        ledger = LedgerWriter(SqliteLedger.open(path))
        wal = path.with_name("ledger.db-wal")
        await complete_jobs(ledger, 0, 300)
        reader = SqliteLedger.snapshot(path)
        await complete_jobs(ledger, 300, 700)
        grown = wal.stat().st_size
        assert grown > WAL_LIMIT_BYTES
        reader.close()
        await asyncio.sleep(MAINTENANCE_INTERVAL_S + 0.1)
        for n in range(4):
            await complete_jobs(ledger, 1000 + 300 * n, 300)
            assert wal.stat().st_size <= WAL_LIMIT_BYTES + 10 * JOB_BYTES
        await ledger.close()

    run_virtual(main())


def test_the_wal_is_bounded_after_a_kill(tmp_path: Path) -> None:
    """A run that resumes after a kill closes its snapshot when results.jsonl is rewritten, so the WAL stays small."""
    out, gateway = tmp_path / "out", ScriptedGateway()
    run_until_killed(run_jobs(out, gateway, make_jobs(50), rate="20/s"), 5.0, out)
    sizes: list[int] = []
    gateway.on_submit = lambda _: sizes.append((out / "ledger.db-wal").stat().st_size)

    async def main() -> None:
        async with Engine(out, gateway_client=gateway, rate="20/s") as engine:
            await engine.run(make_jobs(1500))
            await asyncio.sleep(MAINTENANCE_INTERVAL_S + 0.1)
            assert set(states_without_wal(out / "ledger.db").values()) == {"succeeded"}

    run_virtual(main())
    assert max(sizes) <= WAL_LIMIT_BYTES + 10 * JOB_BYTES
    assert len(result_statuses(out)) == 1500


def test_the_wal_is_copied_when_the_ledger_is_closed(path: Path) -> None:
    """Closing copies the WAL even if another process reads the ledger."""
    reader: list[SqliteLedger] = []

    async def main() -> None:
        ledger = LedgerWriter(SqliteLedger.open(path))
        reader.append(SqliteLedger.open(path, read_only=True))
        await complete_jobs(ledger, 0, 5)
        await ledger.close()

    run_virtual(main())
    assert len(states_without_wal(path)) == 5
    reader[0].close()


def test_a_failed_checkpoint_does_no_harm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the WAL cannot be copied, the next commit succeeds all the same."""

    def fail(ledger: SqliteLedger) -> None:
        raise LedgerError(ledger.path, "disk I/O error", "check the disk")

    async def main() -> None:
        ledger = LedgerWriter(SqliteLedger.open(path))
        monkeypatch.setattr(SqliteLedger, "maintain", fail)
        for n in range(3):
            await complete_jobs(ledger, n, 1)
            await asyncio.sleep(MAINTENANCE_INTERVAL_S + 0.1)
        await ledger.close()

    run_virtual(main())
    assert set(ledger_states(path.parent).values()) == {"succeeded"}


# ---- another program has locked it -----------------------------------------------------------------------


class OtherProgram:
    """A connection that locks the ledger. `release` ends the lock, from any thread."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


class OnLog(logging.Handler):
    """Calls a function at the first record whose message starts with `start`, and keeps all messages."""

    def __init__(self, start: str, call: Callable[[], None]) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._start = start
        self._call: Callable[[], None] | None = call

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        if self._call and self.messages[-1].startswith(self._start):
            call, self._call = self._call, None
            call()


@contextmanager
def on_log(start: str, call: Callable[[], None]) -> Iterator[OnLog]:
    handler = OnLog(start, call)
    logging.getLogger("krea_batch").addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger("krea_batch").removeHandler(handler)


def dont_wait_in_sqlite(store: Ledger) -> None:
    assert isinstance(store, SqliteLedger)
    store._sql.execute("PRAGMA busy_timeout = 0")


def test_a_locked_ledger_is_waited_for(path: Path) -> None:
    """While another program has locked the ledger, records wait, the event loop goes on, and none is lost."""
    store = SqliteLedger.open(path)
    dont_wait_in_sqlite(store)

    async def main() -> list[int]:
        ledger = LedgerWriter(store)
        first = await record_intent(ledger, "a")
        other, seen = OtherProgram(path), threading.Event()
        with on_log("! ledger locked", seen.set) as handler:
            accepted = asyncio.ensure_future(ledger.record(Ledger.mark_accepted, first, "r-1", 2.0))
            intents = [asyncio.ensure_future(record_intent(ledger, f"{n}")) for n in range(5)]
            while not seen.is_set():  # the event loop is free meanwhile
                await asyncio.sleep(0.001)
            assert not accepted.done()
            other.release()
            assert await accepted is True
        assert str(path) in handler.messages[0]
        numbers = await asyncio.gather(*intents)
        await ledger.close()
        return numbers

    assert asyncio.run(main()) == [2, 3, 4, 5, 6]
    assert ledger_states(path.parent) == {"a": "accepted"} | {f"{n}": "submitting" for n in range(5)}


def test_a_run_waits_for_a_locked_ledger(tmp_path: Path) -> None:
    """A ledger that is locked in the middle of a run ends neither the run nor a job, and no POST is lost."""
    gateway, others = ScriptedGateway(), []

    def lock(prompt: str) -> None:
        if prompt == "j3":
            others.append(OtherProgram(tmp_path / "ledger.db"))

    def release() -> None:
        others[0].release()

    gateway.on_submit = lock

    async def main() -> None:
        async with Engine(tmp_path, gateway_client=gateway, rate="100/s") as engine:
            await engine._open_run.context.record(dont_wait_in_sqlite)
            with on_log("! ledger locked", release):
                await engine.run(make_jobs(10))

    run_virtual(main())
    assert len(others) == 1
    assert set(result_statuses(tmp_path).values()) == {"succeeded"}
    assert len(gateway.charged) == 10


def test_a_ledger_that_is_locked_for_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience is used up, callers get a LedgerError that names the cause and the next step."""
    store = SqliteLedger.open(path)
    dont_wait_in_sqlite(store)
    monkeypatch.setattr(waiting, "MAX_WAIT_S", 0.0)

    async def main() -> None:
        ledger = LedgerWriter(store)
        other = OtherProgram(path)
        with pytest.raises(LedgerError, match=r"another program has locked the ledger.*close the program"):
            await record_intent(ledger, "a")
        other.release()
        await ledger.close()

    asyncio.run(main())


def test_the_start_waits_for_a_locked_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, and a decision, that start while the ledger is locked wait for it."""
    monkeypatch.setattr("krea_batch.ledger.sqlite.database.BUSY_TIMEOUT_S", 0.0)
    gateway = ScriptedGateway()
    run_virtual(run_jobs(tmp_path, gateway, make_jobs(1)))
    other = OtherProgram(tmp_path / "ledger.db")
    with on_log("! ledger locked", other.release) as handler:
        run_virtual(run_jobs(tmp_path, gateway, make_jobs(2)))
    assert handler.messages
    other = OtherProgram(tmp_path / "ledger.db")
    with on_log("! ledger locked", other.release) as handler, AmbiguousJobs(tmp_path) as ambiguous:
        assert ambiguous.jobs == []
    assert handler.messages
    assert ledger_states(tmp_path) == {"j0": State.SUCCEEDED, "j1": State.SUCCEEDED}
