"""Coroutines come in, one a request or a worker; what one of them raises ends the stage that runs them.

Newcomers: a job's step from one record to the next must not be cut in two, so tasks here are not cancelled when
their stage is, but where they say that they may be: in `exposed`. anyio's shields and task groups do the same, at
three times the cost, and these are the engine's most frequent tasks.
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
    """The tasks of one stage; an async context manager whose body, the stage, ends when a task fails.

    Leaving it, cancelled or not, cancels the tasks that are exposed, waits for the others to end, and raises
    what the first of them raised.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._exposed: set[asyncio.Task[Any]] = set()
        self._over = False
        self._failed: BaseException | None = None
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
        if self._failed:
            raise self._failed
        return swallowed

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def cancellable(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something in a task of the crew that may be cancelled at it."""
        if self._over:
            raise asyncio.CancelledError
        task = current_task()
        assert task  # noqa: S101 - a coroutine runs in one
        self._exposed.add(task)
        try:
            return await work(*args, **kwargs)
        finally:
            self._exposed.discard(task)

    def cancel_all(self) -> None:
        """Cancel what is exposed, now and from now on."""
        self._over = True
        for task in self._exposed:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failed = self._failed or error
            self._body.cancel()
