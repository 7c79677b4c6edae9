"""An event loop on which hours pass in milliseconds: when nothing is ready, the clock jumps to the next timer.

Newcomers: work for threads is done on the loop's own thread, at once or as late as a test says the disk is, so
that a run on this loop is the same each time.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import shutil
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LONGEST_S = 30 * 86400.0
TICK_S = 1e-6  # a clock that stands still is a trap for whoever waits for "just after now"


class _JumpingSelector(selectors.SelectSelector):
    """Instead of sleeping, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits for ever: nothing is ready and no timer runs")
        self.now_s += max(timeout, TICK_S)
        if self.now_s > LONGEST_S:
            raise AssertionError("a month has passed: something is waited for that never comes")
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`disk_s` says how many seconds each piece of work for a thread takes; it is done at the end of them."""

    def __init__(self, disk_s: Callable[[], float] | None = None) -> None:
        self._jumping = _JumpingSelector()
        self._disk_s = disk_s
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        if self._disk_s is None:
            self._work(lambda *answer: self.call_soon(_resolve, *answer), future, func, *args)
        else:
            self.call_later(self._disk_s(), self._work, _resolve, future, func, *args)
        return future

    def _work(
        self,
        tell: Callable[..., object],
        future: asyncio.Future[T],
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> None:
        """Do it even where nobody waits for it any more, as a thread would."""
        try:
            tell(future, func(*args), None)
        except Exception as error:  # noqa: BLE001 - a thread would hand it over, too
            tell(future, None, error)


def _resolve(future: asyncio.Future[Any], answer: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)


def run_virtual(main: Coroutine[Any, Any, T], disk_s: Callable[[], float] | None = None) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(disk_s)) as runner:
        return runner.run(main)


def run_until_killed(
    main: Coroutine[Any, Any, T],
    after_s: float,
    folder: Path,
    disk_s: Callable[[], float] | None = None,
) -> T | None:
    """Run a coroutine as a process that dies after `after_s`, and leave `folder` as it was at that moment.

    Returns None when it died, and else what the coroutine returned.
    """
    loop = VirtualTimeLoop(disk_s)
    try:
        task = loop.create_task(main)
        task.add_done_callback(_stop)
        loop.call_later(after_s, loop.stop)
        loop.run_forever()
        if task.done():
            return task.result()
        task.remove_done_callback(_stop)
        as_it_was = folder.with_name(f"{folder.name} as it was")
        shutil.copytree(folder, as_it_was)
        bury(loop)
        shutil.rmtree(folder)
        as_it_was.rename(folder)
        return None
    finally:
        loop.close()


def _stop(task: asyncio.Task[Any]) -> None:
    task.get_loop().stop()


def bury(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel everything; the dead do not complain."""
    loop.set_exception_handler(lambda *_: None)
    with warnings.catch_warnings(action="ignore"):
        _cancel_all(loop)
        gc.collect()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    while left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left))
        for task in left:
            if not task.cancelled():
                task.exception()
    loop.run_until_complete(loop.shutdown_asyncgens())
