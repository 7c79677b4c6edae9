"""Submits come in, of one engine or of several; each goes out when the pace lets it.

Newcomers: aiolimiter's leaky bucket spreads the submits; `rules.pace` above it says at which rate, holds them
back after a 429, and keeps each window of one second under the ceiling, which a bucket alone does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiolimiter import AsyncLimiter

from krea_batch.errors import SettingsError
from krea_batch.rules.rate_control import RateController as PaceRule
from krea_batch.settings import Rate

BURST_S = 0.02  # measured: who may make up for 20 ms uses 99 % of 50–5000/s; who may not, 96 % and less


def even_limiter(per_s: float) -> AsyncLimiter:
    """A limiter that spreads `per_s` evenly, for one waiter at a time."""
    burst = 1.0 + per_s * BURST_S
    return AsyncLimiter(burst, burst / per_s)


def monotonic_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock, as it goes: uvloop's stands still while callbacks run, and counts whole milliseconds.

    Who notes with it when requests left notes them too early by what the loop was busy with, and sends too many.
    """
    return time.monotonic if type(loop).__module__.partition(".")[0] == "uvloop" else loop.time


class RateLimiter:
    """A rate of submits, as `--rate` takes it ("10/s", "600/min", "auto"), that engines of one event loop share.

        pace = Pace("10/s")
        async with Engine("runs/cats", pace=pace) as cats, Engine("runs/dogs", pace=pace) as dogs: ...

    What the gateway says to one of them (429, Retry-After) then holds for all; who waits is served in turn. An engine
    without one makes its own, which `Engine.share` hands out. Raises SettingsError.
    """

    # Submits pass in two steps: `wait` until one is due, record its intent, then `go`. Commits take now long, now
    # short; were the window kept before them only, POSTs would leave in bursts after a long one, past the ceiling.

    def __init__(self, rate: Rate | str) -> None:
        self.rate = rate if isinstance(rate, Rate) else Rate.parse(rate)
        self.controller = PaceRule(self.rate.per_s, discover=self.rate.is_auto)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter = even_limiter(self.controller.per_s)
        self._limiter_per_s = self.controller.per_s
        self._queue_lock = asyncio.Lock()
        self._confirm_lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Pace({self.rate.text!r})"

    def bind_loop(self) -> None:
        """Belong to the running loop. Raises SettingsError where it belongs to another."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._now_s = monotonic_clock(loop)
        if self._loop is not loop:
            raise SettingsError("rate_limiter", "bound to a different event loop", "create one for each event loop")

    async def acquire(self) -> None:
        """Wait until the next submit is due, behind those who came before."""
        async with self._queue_lock:
            if self._limiter_per_s != self.controller.per_s:
                self._limiter, self._limiter_per_s = even_limiter(self.controller.per_s), self.controller.per_s
            await self._limiter.acquire()
            await self._wait_for_window()

    async def confirm(self) -> float | None:
        """Let a submit that was due leave. Returns its instant, or None where all are held by now."""
        async with self._confirm_lock:
            while (wait_s := self.controller.wait_s(self._now_s())) > 0:
                if self.controller.paused_s(self._now_s()) > 0:
                    return None
                await asyncio.sleep(wait_s)
            now_s = self._now_s()
            self.controller.on_sent(now_s)
            return now_s

    async def acquire_shared(self) -> None:
        """Wait until a request of another kind may go, which counts against the same limit, and count it."""
        await self._wait_for_window()
        self.controller.on_other_request(self._now_s())

    async def _wait_for_window(self) -> None:
        """Wait until the rule lets one more request go."""
        while (wait_s := self.controller.wait_s(self._now_s())) > 0:  # noqa: ASYNC110 - only the clock sets this event
            await asyncio.sleep(wait_s)
