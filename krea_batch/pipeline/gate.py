"""Submits come in; each goes out when the pace lets it.

Newcomers: aiolimiter's leaky bucket spreads the submits; `rules.pace` above it says at which rate, holds them
back after a 429, and keeps each window of one second under the ceiling, which a bucket alone does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiolimiter import AsyncLimiter

from krea_batch.rules.pace import Pace

BURST_S = 0.02  # measured: who may make up for 20 ms uses 99 % of 50–5000/s; who may not, 96 % and less


def drip(per_s: float) -> AsyncLimiter:
    """A limiter that spreads `per_s` evenly, for one waiter at a time."""
    burst = 1.0 + per_s * BURST_S
    return AsyncLimiter(burst, burst / per_s)


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock, as it goes: uvloop's stands still while callbacks run, and counts whole milliseconds.

    Who notes with it when requests left notes them too early by what the loop was busy with, and sends too many.
    """
    return time.monotonic if type(loop).__module__.partition(".")[0] == "uvloop" else loop.time


async def room(pace: Pace, now_s: Callable[[], float]) -> None:
    """Wait until the pace lets one more request go."""
    while (wait_s := pace.wait_s(now_s())) > 0:  # noqa: ASYNC110 - only the clock sets this event
        await asyncio.sleep(wait_s)


class Gate:
    """Lets submits pass in two steps: `wait` until one is due, record its intent, then `go`.

    Commits take now long, now short; were the window kept before them only, POSTs would leave in bursts after a
    long one, and past the ceiling.
    """

    def __init__(self, pace: Pace, now_s: Callable[[], float]) -> None:
        self.pace = pace
        self._now_s = now_s
        self._limiter = drip(pace.per_s)
        self._limiter_per_s = pace.per_s
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Wait until the next submit is due. Only one task may wait here."""
        if self._limiter_per_s != self.pace.per_s:
            self._limiter, self._limiter_per_s = drip(self.pace.per_s), self.pace.per_s
        await self._limiter.acquire()
        await room(self.pace, self._now_s)

    async def go(self) -> float | None:
        """Let a submit that was due leave. Returns its instant, or None where all are held by now."""
        async with self._turn:
            while (wait_s := self.pace.wait_s(self._now_s())) > 0:
                if self.pace.paused_s(self._now_s()) > 0:
                    return None
                await asyncio.sleep(wait_s)
            now_s = self._now_s()
            self.pace.sent(now_s)
            return now_s
