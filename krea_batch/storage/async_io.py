"""Asyncio helpers for file work: threads, uncancellable waits, a minimum interval, and resolving many futures."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DiskThreads:
    """Threads for file work, which would block the event loop."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Start `work` in a thread. Cancelling the future does not undo the work."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._executor, functools.partial(work, *args, **kwargs))


async def run_to_completion(work: asyncio.Future[T]) -> T:
    """Wait for work in a thread. A cancel waits, too: whoever comes next may not meet it at the same file."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


class MinInterval:
    """Has something begin, but not sooner than some seconds after it last began."""

    def __init__(self, begin: Callable[[], object]) -> None:
        self._begin = begin
        self._began_s = -math.inf  # the last time; the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether it is going to begin."""
        return self._timer is not None

    def next(self, apart_s: float) -> None:
        """Begin now, or once `apart_s` seconds have passed since the last time."""
        loop = asyncio.get_running_loop()
        wait_s = self._began_s + apart_s - loop.time()
        if wait_s > 0:
            self._timer = loop.call_later(wait_s, self._due)
        else:
            self._begin()

    def begun(self) -> None:
        """It has begun, in whichever way."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._began_s = asyncio.get_running_loop().time()

    def _due(self) -> None:
        self._timer = None
        self._begin()


def resolve_all(futures: Iterable[asyncio.Future[Any]], answers: Iterable[Any]) -> None:
    """Give each future its answer, errors as what is raised; one that nobody waits for any more is left alone."""
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
