"""Asyncio helpers for file work: threads, uncancellable waits, a minimum interval, and resolving many futures."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

import anyio

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
    """Await work in a thread. A cancellation waits for it, too, so that nothing else uses the same file meanwhile.

    If the work fails after a cancellation, its error has no one to go to: the caller ends for another reason.
    """
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):  # anyio cancels a task again and again until it leaves its scope
            await asyncio.wait([work])
        if not work.cancelled():
            work.exception()
        raise
    return work.result()


class MinInterval:
    """Starts something, but not sooner than a number of seconds after its last start."""

    def __init__(self, start: Callable[[], object]) -> None:
        self._start = start
        self._started_s = -math.inf  # the last start, on the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_scheduled(self) -> bool:
        """Whether a start is scheduled."""
        return self._timer is not None

    def schedule(self, interval_s: float) -> None:
        """Start now, or when `interval_s` seconds have passed since the last start."""
        loop = asyncio.get_running_loop()
        wait_s = self._started_s + interval_s - loop.time()
        if wait_s > 0:
            self._timer = loop.call_later(wait_s, self._due)
        else:
            self._start()

    def record_start(self) -> None:
        """Record a start, and cancel a scheduled one."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._started_s = asyncio.get_running_loop().time()

    def _due(self) -> None:
        self._timer = None
        self._start()


def resolve_all(futures: Iterable[asyncio.Future[Any]], results: Iterable[Any]) -> None:
    """Set the result of each future, or its exception. Futures that are done (cancelled) are skipped."""
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
