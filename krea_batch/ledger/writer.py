"""Writes transitions from the event loop in group commits; each caller continues when its transition is durable.

While one commit is being written, arriving transitions wait and share the next one, so that one thread keeps up with
thousands of jobs. Transitions of the same kind go to SQLite in one statement. Callers must not put two transitions of
one job into a batch, except after `record_later`: a caller that waits for a record continues only when it is durable.

A second after a commit, the WAL is copied into ledger.db, so that the file alone is never far behind and the WAL
stays small. At the same time, the ledger records how far results.jsonl goes, so that the next start after a kill
reads only the rest.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from krea_batch.errors import KreaBatchError, LedgerError
from krea_batch.jobs import Outcome
from krea_batch.ledger.opening import is_in_database
from krea_batch.ledger.paging import pages
from krea_batch.ledger.protocol import Ledger
from krea_batch.rules.lease import Lease
from krea_batch.storage.async_io import MinInterval, resolve_all, run_to_completion
from krea_batch.storage.clocks import boottime_clock
from krea_batch.storage.results_rows import mark_results
from krea_batch.storage.run_dir import RESULTS

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("krea_batch")

COMMIT_INTERVAL_S = 0.010  # chosen: minimum interval under load, so that each sync serves more transitions
BUSY_INTERVAL_S = 0.025  # measured: at 200 jobs a second, this saves a tenth of the processor time
BUSY_PER_S = 500  # chosen: transitions of 125 jobs a second; a short burst is not delayed
COMMIT_SMOOTHING = 0.125  # RFC 6298, 2: alpha
SLOW_COMMIT_WEIGHT = 0.95  # chosen: a slow commit counts for half a second or so
MAX_TRANSACTION_ROWS = 1000  # chosen: rows read in one transaction, a few milliseconds
MAINTENANCE_INTERVAL_S = 1.0  # chosen: two syncs a second cost little, and a second of work is a small loss
_MAX_BATCH = 1000  # measured: 131,000 records per second at this batch size, 7 ms per commit


class LedgerWriter:
    """The ledger of one run directory, for use on one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(1, "krea-batch-ledger")
        self._pending: list[tuple[Operation, asyncio.Future[Any]]] = []
        self._committing: asyncio.Future[Any] | None = None
        self._commit_timer = MinInterval(self._start_commit)
        self._last_batch_size = 0  # number of transitions in the last commit
        self._per_s = 0.0  # transitions per second, over about a second
        self._deferred_error: KreaBatchError | None = None  # from `record_later`
        self._maintenance_timer: asyncio.TimerHandle | None = None
        self._maintaining: asyncio.Future[None] | None = None
        self._closing = False
        self.now_s = boottime_clock(asyncio.get_running_loop())
        self._commit_begun_s = 0.0
        self._lease: Lease | None = None
        self._slow_commit_s = 0.0
        self.usual_commit_s = 0.0  # how long a commit takes on average
        self.failure: LedgerError | None = None

    async def record(self, transition: Callable[Concatenate[Ledger, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Apply a method of `Ledger`, and return its result when it is durable.

        Cancelling the caller does not undo it. Raises LedgerError if the disk fails, and from then on for every call.
        """
        future = self._enqueue(Operation(transition, args, kwargs))
        try:
            result: T = await future
        except asyncio.CancelledError:
            if not future.cancelled():  # The commit failed in the moment of the cancellation, which the caller gets.
                future.exception()
            raise
        return result

    def record_later(
        self, transition: Callable[Concatenate[Ledger, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Apply a method of `Ledger` without waiting for it. It is durable before any later `record` is.

        If it fails, every later call of `record` or `record_later` raises its error.
        """
        self._enqueue(Operation(transition, args, kwargs)).add_done_callback(self._on_deferred_done)

    def bind_run(self, run_no: int, lease: Lease | None = None) -> None:
        """Let each later transition be one of this run, and renew its lease; see `Ledger.bind_run`."""
        self._ledger.bind_run(run_no)
        self._lease = lease
        if lease:
            lease.renew(self._commit_begun_s)  # that of the record of its start

    @property
    def record_s(self) -> float:
        """How long a `record` takes at most, but for rare ones: it may have to wait for the commit before it."""
        return BUSY_INTERVAL_S + 2 * self._slow_commit_s

    def may_send(self) -> bool:
        """Return whether no other run can have taken over the jobs of this one."""
        return self._lease is None or self._lease.is_held(self.now_s())

    async def transact(self, operation: Callable[[Ledger], T]) -> T:
        """Apply an operation in a transaction of its own. It may be repeated. Raises LedgerError.

        For operations that must not be applied again because of another one in the same commit.
        """
        return await run_to_completion(
            asyncio.get_running_loop().run_in_executor(self._thread, self._ledger.transaction, operation)
        )

    async def record_late(
        self, transition: Callable[Concatenate[Ledger, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Apply a method of `Ledger` after the run was fenced, as a transaction of no run. Raises LedgerError."""

        def apply() -> T:
            self._ledger.bind_run(None)
            result: T = self._ledger.transaction(Operation(transition, args, kwargs).apply)
            return result

        return await run_to_completion(asyncio.get_running_loop().run_in_executor(self._thread, apply))

    def outcomes(self, after_job_no: int = 0) -> AsyncIterator[list[Outcome]]:
        """Yield pages of outcomes of ended jobs with numbers above `after_job_no`, in order."""
        return pages(lambda after_no: self.record(Ledger.outcomes, after_no, MAX_TRANSACTION_ROWS), after_job_no)

    async def close(self) -> None:
        """Commit what is pending, then close the file."""
        while self._pending or self._committing:
            committing = self._committing or self._start_commit()
            await asyncio.wait([committing])
        self._closing = True
        if self._maintenance_timer:
            self._maintenance_timer.cancel()
        if self._maintaining:
            await asyncio.wait([self._maintaining])
        if self.failure is None:
            await self._maintain()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._ledger.close)
        self._thread.shutdown()

    def _enqueue(self, operation: Operation) -> asyncio.Future[Any]:
        if error := self.failure or self._deferred_error:
            raise error
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append((operation, future))
        if self._committing is None and not self._commit_timer.is_scheduled:
            self._schedule_commit()
        return future

    def _schedule_commit(self) -> None:
        if self._last_batch_size <= 1:
            self._commit_timer.schedule(0.0)  # A single caller is not delayed.
        else:
            self._commit_timer.schedule(BUSY_INTERVAL_S if self._per_s > BUSY_PER_S else COMMIT_INTERVAL_S)

    def _on_deferred_done(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and isinstance(error := done.exception(), KreaBatchError):
            self._deferred_error = error

    def _start_commit(self) -> asyncio.Future[Any]:
        self._commit_timer.record_start()
        previous_s, self._commit_begun_s = self._commit_begun_s, self.now_s()
        batch, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
        operations = [operation for operation, _ in batch]
        self._last_batch_size = len(operations)
        self._per_s = self._per_s * math.exp(previous_s - self._commit_begun_s) + len(operations)
        loop = asyncio.get_running_loop()
        self._committing = loop.run_in_executor(self._thread, commit, self._ledger, operations)
        self._committing.add_done_callback(functools.partial(self._on_committed, batch))
        return self._committing

    def _on_committed(
        self,
        batch: list[tuple[Operation, asyncio.Future[Any]]],
        commit_future: asyncio.Future[list[Any]],
    ) -> None:
        self._committing = None
        took_s = self.now_s() - self._commit_begun_s
        self._slow_commit_s = max(took_s, self._slow_commit_s * SLOW_COMMIT_WEIGHT)
        self.usual_commit_s += COMMIT_SMOOTHING * (took_s - self.usual_commit_s)
        error = None if commit_future.cancelled() else commit_future.exception()
        results = [error] * len(batch) if error else commit_future.result()
        if isinstance(error, LedgerError):
            self.failure = error
            batch, self._pending = batch + self._pending, []
            results = [error] * len(batch)
        elif error is None and self._lease:
            self._lease.renew(self._commit_begun_s)
        resolve_all((future for _, future in batch), results)
        if self._pending:
            self._schedule_commit()
        if self._maintenance_timer is None and not self._closing:
            loop = asyncio.get_running_loop()
            self._maintenance_timer = loop.call_later(MAINTENANCE_INTERVAL_S, self._maintain)

    def _maintain(self) -> asyncio.Future[None]:
        self._maintenance_timer = None
        self._maintaining = asyncio.get_running_loop().run_in_executor(self._thread, maintain, self._ledger)
        return self._maintaining


def maintain(ledger: Ledger) -> None:
    """Record how far results.jsonl goes, and keep the ledger small. The next commit repeats it if it fails."""
    try:
        # Every row in the file is of a job whose end is in the ledger: rows are written after the commit.
        # For a ledger in a database, there is one on each machine, and each start reads all of it.
        mark = None if is_in_database(ledger.path.parent) else mark_results(ledger.path.with_name(RESULTS))
        if mark and [mark] != ledger.read(Ledger.results_mark):
            ledger.transaction(functools.partial(Ledger.set_results_mark, mark=mark))
        ledger.maintain()
    except (LedgerError, OSError) as error:
        log.debug("ledger not maintained path=%s error=%s", ledger.path, error)


def commit(ledger: Ledger, operations: Sequence[Operation]) -> list[Any]:
    """Apply the operations in one transaction; if one is refused, apply each in its own.

    Return a result or a KreaBatchError for each operation. Raises LedgerError if the disk fails.
    """
    try:
        return ledger.transaction(functools.partial(apply_all, operations))
    except LedgerError:
        raise
    except KreaBatchError:
        return [_apply_alone(ledger, operation) for operation in operations]


def _apply_alone(ledger: Ledger, operation: Operation) -> Any:
    try:
        return ledger.transaction(operation.apply)
    except LedgerError:
        raise
    except KreaBatchError as error:
        return error


_BULK: dict[Callable[..., Any], Callable[[Ledger, Sequence[Any]], Sequence[Any]]] = {
    Ledger.mark_finished: Ledger.mark_finished_many,
    Ledger.mark_stored: Ledger.mark_stored_many,
    Ledger.mark_accepted: Ledger.mark_accepted_many,
    Ledger.record_intent: Ledger.record_intents,
}


class Operation(NamedTuple):
    """A transition that has not been applied."""

    transition: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply(self, ledger: Ledger) -> Any:
        return self.transition(ledger, *self.args, **self.kwargs)


def apply_all(operations: Sequence[Operation], ledger: Ledger) -> list[Any]:
    """Apply all operations, and return their results in order. Raises what the first failing one raises."""
    results: list[Any] = [None] * len(operations)
    others: list[int] = []
    positions: dict[Callable[..., Any], list[int]] = {transition: [] for transition in _BULK}
    for position, operation in enumerate(operations):
        positions.get(operation.transition, others).append(position)
    for transition, same_kind in positions.items():
        if same_kind:
            kind_results = _BULK[transition](ledger, [operations[position].args for position in same_kind])
            for position, result in zip(same_kind, kind_results, strict=True):
                results[position] = result
    for position in others:
        results[position] = operations[position].apply(ledger)
    return results
