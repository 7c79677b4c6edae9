"""An event loop on which hours pass in milliseconds: when nothing is ready, the clock jumps to the next timer.

Newcomers: work for threads is done on the loop's own thread, at once or as late as a caller says the disk is, so
that a run on this loop is the same each time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack

from krea_batch.errors import InternalError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_VIRTUAL_TIME_S = 3650 * 86400.0  # chosen: longer than any forecast
MIN_STEP_S = 1e-6  # a clock that stands still is a trap for whoever waits for "just after now"


class _ClockSelector(selectors.SelectSelector):
    """Instead of sleeping, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise InternalError("everything waits for ever: nothing is ready and no timer runs")
        self.now_s += max(timeout, MIN_STEP_S)
        if self.now_s > MAX_VIRTUAL_TIME_S:
            raise InternalError(
                f"{MAX_VIRTUAL_TIME_S / 86400:.0f} days have passed: something is waited for that never comes"
            )
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`disk_s` says how many seconds each piece of work for a thread takes; it is done at the end of them."""

    def __init__(self, disk_s: Callable[[], float] | None = None) -> None:
        self._clock_selector = _ClockSelector()
        self._disk_s = disk_s
        super().__init__(self._clock_selector)

    def time(self) -> float:
        return self._clock_selector.now_s

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        if self._disk_s is None:
            self._run_call(lambda *answer: self.call_soon(_resolve, *answer), future, func, *args)
        else:
            self.call_later(self._disk_s(), self._run_call, _resolve, future, func, *args)
        return future

    def _run_call(
        self,
        resolve: Callable[..., object],
        future: asyncio.Future[T],
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> None:
        """Do it even where nobody waits for it any more, as a thread would."""
        try:
            resolve(future, func(*args), None)
        except Exception as error:  # noqa: BLE001 - a thread would hand it over, too
            resolve(future, None, error)


def _resolve(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def run_virtual(main: Coroutine[Any, Any, T], disk_s: Callable[[], float] | None = None) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(disk_s)) as runner:
        return runner.run(main)
