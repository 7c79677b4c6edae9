"""Submits come in one after another; each goes out when the pace lets it.

Newcomers: aiolimiter's leaky bucket spreads the submits; `rules.pace` above it says at which rate, holds them
back after a 429, and keeps each window of one second under the ceiling, which a bucket alone does not.
"""

from __future__ import annotations

import asyncio

from aiolimiter import AsyncLimiter

from krea_batch.rules.pace import Pace

BURST_S = 0.02  # measured: bursts of 20 ms use 100 % of 100–5000/s; single drips 97 % and less


def drip(per_s: float) -> AsyncLimiter:
    """A limiter that spreads `per_s` evenly, for one waiter at a time."""
    burst = max(1.0, per_s * BURST_S)
    return AsyncLimiter(burst, burst / per_s)


class Gate:
    """Lets one submit pass at a time. Only one task may wait at it."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._limiter = drip(pace.per_s)
        self._limiter_per_s = pace.per_s

    async def wait(self) -> float:
        """Wait for the next permission to submit, and use it. Returns its instant (loop time)."""
        loop = asyncio.get_running_loop()
        if self._limiter_per_s != self.pace.per_s:
            self._limiter, self._limiter_per_s = drip(self.pace.per_s), self.pace.per_s
        await self._limiter.acquire()
        while (wait_s := self.pace.wait_s(loop.time())) > 0:
            await asyncio.sleep(wait_s)
        now_s = loop.time()
        self.pace.sent(now_s)
        return now_s
