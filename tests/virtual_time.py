"""An event loop on which hours pass in milliseconds: when nothing is ready, the clock jumps to the next timer.

Newcomers: work for threads is done at once, on the loop's own thread, so that a run on this loop is the same
each time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

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
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            self.call_soon(_resolve, future, func(*args), None)
        except Exception as error:  # noqa: BLE001 - a thread would hand it over, too
            self.call_soon(_resolve, future, None, error)
        return future


def _resolve(future: asyncio.Future[Any], answer: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
