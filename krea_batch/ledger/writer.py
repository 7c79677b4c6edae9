"""Transitions come in from the event loop, many at once; each caller goes on when its own is durable.

Newcomers: while one commit is on its way to the disk, the transitions that arrive wait together and share the
next one. That is all there is to group commit, and it is why one thread keeps up with thousands of jobs.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from krea_batch.errors import KreaBatchError, LedgerError
from krea_batch.jobs import Outcome
from krea_batch.ledger.paging import pages
from krea_batch.ledger.transitions import LedgerStore
from krea_batch.storage.async_io import MinInterval, resolve_all

P = ParamSpec("P")
T = TypeVar("T")

COMMIT_INTERVAL_S = 0.010  # chosen: between the begins of two commits where many come; a sync serves more of them
PAGE_ROWS = 1000  # chosen: rows in one transaction; a few milliseconds
_MAX_BATCH = 1000  # chosen: 131,000 records a second were measured at this group size, at 7 ms a commit


class LedgerWriter:
    """The ledger of one run folder, for use on one event loop."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "krea-batch-ledger")
        self._pending: list[tuple[Operation, asyncio.Future[Any]]] = []
        self._committing: asyncio.Future[Any] | None = None
        self._commit_timer = MinInterval(self._start_commit)
        self._last_batch_size = 0  # by the last commit
        self._deferred_error: KreaBatchError | None = None  # a note
        self.failure: LedgerError | None = None

    @classmethod
    def open(cls, path: Path) -> LedgerWriter:
        """Open or make the ledger at `path`. Raises RunFolderError for a stranger's or newer file."""
        return cls(LedgerStore.open(path))

    async def record(
        self, transition: Callable[Concatenate[LedgerStore, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Carry out one method of `Store` and return its answer once it is durable.

        A caller that is cancelled while waiting does not undo it. Raises LedgerError when the disk fails, from
        then on for every call.
        """
        result: T = await self._enqueue(Operation(transition, args, kwargs))
        return result

    def record_later(
        self, transition: Callable[Concatenate[LedgerStore, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """The same for what nobody waits for: it is durable before any later `record` is. Raises as `record`.

        Where it fails, every later call does.
        """
        self._enqueue(Operation(transition, args, kwargs)).add_done_callback(self._on_deferred_done)

    def outcomes(self, after_job_no: int = 0) -> AsyncIterator[list[Outcome]]:
        """Result rows of all ended jobs after that number, in the order of their first submits, some at a time."""
        return pages(lambda after_n: self.record(LedgerStore.outcomes, after_n, PAGE_ROWS), after_job_no)

    async def close(self) -> None:
        """Wait for what is on its way, then close the file."""
        while self._pending or self._committing:
            committing = self._committing or self._start_commit()
            await asyncio.wait([committing])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown()  # it has nothing left to do

    def _enqueue(self, operation: Operation) -> asyncio.Future[Any]:
        if error := self.failure or self._deferred_error:
            raise error
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append((operation, future))
        if self._committing is None and not self._commit_timer.is_set:
            self._schedule_commit()
        return future

    def _schedule_commit(self) -> None:
        self._commit_timer.next(
            COMMIT_INTERVAL_S if self._last_batch_size > 1 else 0.0
        )  # who comes alone waits for nobody

    def _on_deferred_done(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and isinstance(error := done.exception(), KreaBatchError):
            self._deferred_error = error

    def _start_commit(self) -> asyncio.Future[Any]:
        self._commit_timer.begun()
        batch, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
        operations = [operation for operation, _ in batch]
        self._last_batch_size = len(operations)
        loop = asyncio.get_running_loop()
        self._committing = loop.run_in_executor(self._thread, commit, self._store, operations)
        self._committing.add_done_callback(functools.partial(self._on_committed, batch))
        return self._committing

    def _on_committed(
        self,
        batch: list[tuple[Operation, asyncio.Future[Any]]],
        commit_future: asyncio.Future[list[Any]],
    ) -> None:
        self._committing = None
        error = None if commit_future.cancelled() else commit_future.exception()
        results = [error] * len(batch) if error else commit_future.result()
        if isinstance(error, LedgerError):
            self.failure = error
            batch, self._pending = batch + self._pending, []
            results = [error] * len(batch)
        resolve_all((future for _, future in batch), results)
        if self._pending:
            self._schedule_commit()


def commit(store: LedgerStore, operations: Sequence[Operation]) -> list[Any]:
    """Carry out the calls in one transaction; where one of them is refused, each in its own.

    Returns an answer or a KreaBatchError for each call. Raises LedgerError when the disk fails.
    """
    try:
        try:
            return store.transaction([functools.partial(apply_all, operations)])[0]
        except KreaBatchError:
            return [_apply_alone(store, operation) for operation in operations]
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(
            store.path,
            f"the ledger cannot be written ({error})",
            "free the disk or mend it, then run the same command again",
        ) from error


def _apply_alone(store: LedgerStore, operation: Operation) -> Any:
    try:
        return store.transaction([operation.apply])[0]
    except KreaBatchError as error:
        return error


_BULK: dict[Callable[..., Any], Callable[[LedgerStore, Sequence[Any]], Sequence[Any]]] = {
    LedgerStore.mark_finished: LedgerStore.mark_finished_many,
    LedgerStore.mark_stored: LedgerStore.mark_stored_many,
    LedgerStore.mark_accepted: LedgerStore.mark_accepted_many,
    LedgerStore.record_intent: LedgerStore.record_intents,
}


class Operation(NamedTuple):
    """One transition, still to be carried out."""

    transition: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply(self, store: LedgerStore) -> Any:
        return self.transition(store, *self.args, **self.kwargs)


def apply_all(operations: Sequence[Operation], store: LedgerStore) -> list[Any]:
    """Carry out all of them. Gives their answers, in the order of `calls`; raises what the first to fail raises."""
    results: list[Any] = [None] * len(operations)
    others: list[int] = []
    positions: dict[Callable[..., Any], list[int]] = {transition: [] for transition in _BULK}
    for position, operation in enumerate(operations):
        positions.get(operation.transition, others).append(position)
    for transition, same_kind in positions.items():
        if same_kind:
            kind_results = _BULK[transition](store, [operations[place].args for place in same_kind])
            for position, result in zip(same_kind, kind_results, strict=True):
                results[position] = result
    for position in others:
        results[position] = operations[position].apply(store)
    return results
