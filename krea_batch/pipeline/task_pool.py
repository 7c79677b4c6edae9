"""The supervised tasks of a stage: one for each request or worker. The first failure cancels the stage.

A job's step from one record to the next must not be interrupted. So a task is not cancelled with its stage, except
while it awaits `cancellable`. anyio's shields and task groups would do this at three times the cost, and these are
the most frequent tasks of the engine.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Self, TypeVar

import anyio

P = ParamSpec("P")
T = TypeVar("T")


class TaskPool:
    """The tasks of one stage; an async context manager whose body is cancelled when a task fails.

    On exit, cancelled or not, it cancels the tasks that allow it, waits for the others to end, and raises the first
    exception of a task.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancellable: set[asyncio.Task[Any]] = set()
        self._cancelled = False
        self._failure: BaseException | None = None
        self._body = anyio.CancelScope()

    async def __aenter__(self) -> Self:
        self._body.__enter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        with anyio.CancelScope(shield=True):
            self.cancel_all()
            while self._tasks:
                await asyncio.wait(self._tasks)
        swallowed = self._body.__exit__(kind, error, trace)
        if self._failure:
            raise self._failure
        return swallowed

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task of the pool."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def cancellable(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `work(…)` in a task of the pool, which may be cancelled meanwhile."""
        if self._cancelled:
            raise asyncio.CancelledError
        task = current_task()
        assert task  # noqa: S101 - a coroutine runs in a task
        self._cancellable.add(task)
        try:
            return await work(*args, **kwargs)
        finally:
            self._cancellable.discard(task)

    def cancel_all(self) -> None:
        """Cancel the tasks that are in `cancellable`, and from now on every task that enters it."""
        self._cancelled = True
        for task in self._cancellable:
            task.cancel()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failure = self._failure or error
            self._body.cancel()
