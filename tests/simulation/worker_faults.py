"""What happens to the files of a worker: they are released when it crashes, and its ledger may be cut off."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from krea_batch.ledger import writer
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.rules.lease import FailureDetector
from krea_batch.storage import directory_lock
from krea_batch.storage.process_lock import ProcessLock, remove_lock_file
from krea_batch.storage.run_dir import RunDir
from tests.simulation.worker_loop import SimulatedWorker, WorkerLoop, current_worker


class WorkerFiles:
    """The ledgers and directories that a worker has opened and locked.

    `run_no` is that of its run, and `closed_runs` has those whose process locks it released after it had closed their
    ledgers. From `cut_off_s` on, its ledger raises; with `commits_once`, not before it has committed an acceptance,
    which it does not admit. After a number of commits, the worker stalls for some seconds (`pause_after`). With
    `wakes_when_dead` it goes on in the moment in which another one has seen it stand still for long enough. With
    `loses_lock_file`, a program that cleans up has removed the file of its process lock.
    """

    def __init__(
        self,
        worker: SimulatedWorker,
        *,
        cut_off_s: float,
        commits_once: bool,
        pause_after: tuple[int, float],
        wakes_when_dead: bool,
        loses_lock_file: bool,
    ) -> None:
        self.worker = worker
        self.wakes_when_dead = wakes_when_dead
        self.loses_lock_file = loses_lock_file
        self.run_no: int | None = None
        self.closed_runs: set[int | None] = set()
        self._cut_off_s = cut_off_s
        self._commits_once = commits_once
        self._pause_after = pause_after
        self._commits = 0
        self.was_cut_off = False
        self.was_alone_at_end = False
        self._ledgers: set[SqliteLedger] = set()
        self._run_dirs: list[RunDir] = []
        self._process_locks: list[ProcessLock] = []

    @property
    def is_opening_alone(self) -> bool:
        """Whether it is opening a directory that no other worker has."""
        return any(directory.is_alone for directory in self._run_dirs)

    def release(self) -> None:
        """Close and unlock them, as the operating system does when a process is killed."""
        for ledger in list(self._ledgers):
            ledger.close()
        for directory in self._run_dirs:
            directory.unlock()
        for lock in self._process_locks:
            lock.release()

    def add_ledger(self, ledger: SqliteLedger) -> None:
        self._ledgers.add(ledger)

    def add_run_dir(self, directory: RunDir) -> None:
        self._run_dirs.append(directory)

    def add_process_lock(self, lock: ProcessLock) -> None:
        self._process_locks.append(lock)
        if self.loses_lock_file:
            remove_lock_file(lock.name)

    def on_ledger_closed(self, ledger: SqliteLedger) -> None:
        self._ledgers.discard(ledger)

    def on_lock_released(self) -> None:
        if not self._ledgers:
            self.closed_runs.add(self.run_no)

    def attempt(self, now_s: float, ledger: SqliteLedger, attempt: Callable[[], Any]) -> Any:
        """Commit a transaction, or fail."""
        if now_s < self._cut_off_s:
            result = attempt()
            self._commits += 1
            if self._commits == self._pause_after[0]:
                self.worker.stand_still(self._pause_after[1])
            return result
        if self._commits_once and not self.was_cut_off:
            before = _count_accepted(ledger)
            result = attempt()
            if _count_accepted(ledger) == before:
                return result
        self.was_cut_off = self.worker.gives_up_early = True
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR, "SQLITE_IOERR"
        raise error


def _count_accepted(ledger: SqliteLedger) -> int:
    (count,) = ledger._sql.execute("SELECT count(*) FROM submissions WHERE result = 'accepted'").fetchone()
    return int(count)


@contextmanager
def watched_files(
    loop: WorkerLoop,
    files: dict[SimulatedWorker, WorkerFiles],
    on_commit: Callable[[WorkerFiles, int | None], None],
    temporary: Path,
) -> Iterator[None]:
    """Watch what the workers open, and inject their faults. Their process locks are in the folder `temporary`.

    `on_commit` is called after each commit, with the run whose beat it is.
    """
    find_dead = FailureDetector.find_dead

    def watched_find_dead(
        detector: FailureDetector, now_s: float, beats: Mapping[int, int], ended: Collection[int]
    ) -> list[int]:
        dead = find_dead(detector, now_s, beats, ended)
        for own in files.values():
            if own.wakes_when_dead and own.run_no in dead:
                own.worker.wake()
        return dead

    with (
        _watched_ledgers(loop, files, on_commit),
        _watched_run_dirs(files),
        _watched_process_locks(files),
        patch.object(tempfile, "tempdir", str(temporary)),
        patch.object(FailureDetector, "find_dead", watched_find_dead),
        patch.object(writer, "boottime_clock", lambda _: loop.time),
    ):
        yield


@contextmanager
def _watched_ledgers(
    loop: WorkerLoop,
    files: dict[SimulatedWorker, WorkerFiles],
    on_commit: Callable[[WorkerFiles, int | None], None],
) -> Iterator[None]:
    init, attempt, close = SqliteLedger.__init__, SqliteLedger._attempt, SqliteLedger.close

    def watched_init(ledger: SqliteLedger, *args: Any) -> None:
        init(ledger, *args)
        if worker := current_worker():
            files[worker].add_ledger(ledger)

    def watched_attempt(ledger: SqliteLedger, operation: Callable[[SqliteLedger], Any]) -> Any:
        worker = current_worker()
        if worker is None or worker.is_cancelled:
            return attempt(ledger, operation)
        own, beat_of = files[worker], None
        try:
            if worker.is_gone:  # What it has sent to the disk is written all the same.
                result = attempt(ledger, operation)
            else:
                result = own.attempt(loop.time(), ledger, lambda: attempt(ledger, operation))
            beat_of = ledger._run_no
        finally:  # also if its first transaction finds that it was fenced, or if it is not told of its commit
            own.run_no = ledger._run_no or own.run_no
            on_commit(own, beat_of)
        return result

    def watched_close(ledger: SqliteLedger) -> None:
        close(ledger)
        for own in files.values():
            own.on_ledger_closed(ledger)

    with (
        patch.object(SqliteLedger, "close", watched_close),
        patch.object(SqliteLedger, "__init__", watched_init),
        patch.object(SqliteLedger, "_attempt", watched_attempt),
    ):
        yield


@contextmanager
def _watched_run_dirs(files: dict[SimulatedWorker, WorkerFiles]) -> Iterator[None]:
    lock, try_to_be_alone = RunDir.lock, RunDir.try_to_be_alone

    def watched_lock(directory: RunDir, *, shared: bool = False) -> None:
        lock(directory, shared=shared)
        if worker := current_worker():
            files[worker].add_run_dir(directory)

    def watched_try_to_be_alone(directory: RunDir) -> bool:
        is_alone = try_to_be_alone(directory)
        if worker := current_worker():
            files[worker].was_alone_at_end = is_alone
        return is_alone

    with (
        patch.object(RunDir, "lock", watched_lock),
        patch.object(RunDir, "try_to_be_alone", watched_try_to_be_alone),
        patch.object(directory_lock, "LOCK_RETRY_S", 0.0),
    ):
        yield


@contextmanager
def _watched_process_locks(files: dict[SimulatedWorker, WorkerFiles]) -> Iterator[None]:
    acquire, release = ProcessLock.acquire, ProcessLock.release

    def watched_acquire(lock: ProcessLock) -> None:
        acquire(lock)
        if worker := current_worker():
            files[worker].add_process_lock(lock)

    def watched_release(lock: ProcessLock) -> None:
        release(lock)
        if worker := current_worker():
            files[worker].on_lock_released()

    with (
        patch.object(ProcessLock, "acquire", watched_acquire),
        patch.object(ProcessLock, "release", watched_release),
    ):
        yield
