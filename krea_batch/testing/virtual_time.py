"""An event loop with a virtual clock: when nothing is ready, the clock jumps to the next timer.

    import asyncio
    from krea_batch.testing import run_virtual

    def test_a_day_passes():
        run_virtual(asyncio.sleep(86400))  # returns within milliseconds

Work for executors runs on the loop's own thread, so a run on this loop is the same each time. There is no network:
use it together with a `ScriptedGateway`.

Threads of anyio, in which web frameworks run plain functions and read files, are real: the clock stands still until
they are done, for 10 s at most. It does not know of other threads.
"""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter

from krea_batch.errors import InternalError

__all__ = ["VirtualTimeLoop", "run_virtual"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_VIRTUAL_TIME_S = 3650 * 86400.0  # chosen: longer than any forecast
MAX_THREAD_WAIT_S = 10.0  # chosen: a thread that takes longer may itself be waiting for a timer of this loop
NO_NETWORK = "there is no network in virtual time; use a ScriptedGateway"
MIN_STEP_S = 1e-6  # code that waits for "just after now" would wait forever on a clock that does not move


class _ClockSelector(selectors.SelectSelector):
    """Moves the clock instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.threads: CapacityLimiter | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout != 0 and self.threads and self.threads.borrowed_tokens and (ready := self._wait_for_a_thread()):
            return ready
        if timeout is None:
            raise InternalError("deadlock: every task is waiting, and there is no timer")
        self.now_s += max(timeout, MIN_STEP_S)
        if self.now_s > MAX_VIRTUAL_TIME_S:
            raise InternalError(
                f"{MAX_VIRTUAL_TIME_S / 86400:.0f} days have passed: a task waits for something that never happens"
            )
        return super().select(0)

    def _wait_for_a_thread(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Return when a thread has woken the loop up, in real time."""
        return super().select(MAX_THREAD_WAIT_S)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock. `time` starts at 1000 s.

    `thread_duration_s` returns how many seconds a call in an executor takes; the call runs at the end of that time.
    Without it the call runs immediately.
    """

    def __init__(self, thread_duration_s: Callable[[], float] | None = None) -> None:
        self._clock_selector = _ClockSelector()
        self._thread_duration_s = thread_duration_s
        super().__init__(self._clock_selector)

    def run_forever(self) -> None:
        if self._clock_selector.threads is None:
            self.create_task(self._find_threads())
        super().run_forever()

    def time(self) -> float:
        return self._clock_selector.now_s

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        if self._thread_duration_s is None:
            self._run_call(lambda *answer: self.call_soon(_resolve, *answer), future, func, *args)
        else:
            self.call_later(self._thread_duration_s(), self._run_call, _resolve, future, func, *args)
        return future

    async def getaddrinfo(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raise the error of a machine without network: a real name server would be waited for in real time."""
        raise socket.gaierror(socket.EAI_AGAIN, NO_NETWORK)

    async def sock_connect(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raise the error of a machine without network: every time-out would pass before a real server answers."""
        raise OSError(errno.ENETUNREACH, NO_NETWORK)

    async def _find_threads(self) -> None:
        self._clock_selector.threads = current_default_thread_limiter()

    def _run_call(
        self,
        resolve: Callable[..., object],
        future: asyncio.Future[T],
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> None:
        """Run the call even if its future is cancelled, as a thread would."""
        try:
            resolve(future, func(*args), None)
        except Exception as error:  # noqa: BLE001 - a thread would pass it on, too
            resolve(future, None, error)


def _resolve(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def run_virtual(main: Coroutine[Any, Any, T], thread_duration_s: Callable[[], float] | None = None) -> T:
    """Run a coroutine on a `VirtualTimeLoop` and return its result. Virtual time is free; computing is not."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(thread_duration_s)) as runner:
        return runner.run(main)
