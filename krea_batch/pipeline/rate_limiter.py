"""When the next POST may be sent. One rate limiter can be shared by several engines.

aiolimiter's leaky bucket spreads the submits. `rules.rate_control` above it decides the rate, pauses submits after a
429, caps the jobs in process if their number is limited, and keeps each window of one second under the rate, which a
leaky bucket alone does not.
"""

from __future__ import annotations

import asyncio
from collections import deque

from aiolimiter import AsyncLimiter

from krea_batch.errors import SettingsError
from krea_batch.ledger.writer import COMMIT_SMOOTHING
from krea_batch.rules.answer_latency import LATE_VARIATIONS, AnswerLatency
from krea_batch.rules.rate_control import RateController
from krea_batch.rules.send_window import BURST_S
from krea_batch.settings import Rate
from krea_batch.storage.clocks import monotonic_clock

LEAD = 2.0  # chosen: intents that take twice as long as usual still do not delay their POST
MIN_LEAD_S, MAX_LEAD_S = 0.02, 0.1  # measured: an intent is durable after 10 to 20 ms; on a slow disk after 60 ms
MAX_UNSENT_S = 10.0  # chosen: a submit that was let through before so long is not going to be sent any more
MAX_CONFIRM_S = 1.0  # chosen: a submit that has to wait longer gives up its intent, as after a pause
TIMER_ERROR_S = 0.001  # measured: timers of uvloop, which have a resolution of a millisecond, are late by up to this
IMMEDIATE_S = 0.0004  # measured: uvloop takes a timer of less than half a millisecond for one that is due
MAX_CONNECT_S = 0.1  # chosen: no server closes a connection that waits for so short a time
MAX_SLEEP_S = 1.0  # chosen: a limit may be raised while a submit waits for it


def even_limiter(per_s: float) -> AsyncLimiter:
    """Return a limiter that spreads `per_s` evenly, for one waiter at a time."""
    burst = 1.0 + per_s * BURST_S
    return AsyncLimiter(burst, burst / per_s)


class RateLimiter:
    """A submit rate, as `--rate` takes it ("10/s", "600/min", "auto"). Engines on one event loop can share it.

        limiter = RateLimiter("10/s")
        async with Engine("runs/cats", rate_limiter=limiter) as cats:
            async with Engine("runs/dogs", rate_limiter=limiter) as dogs: ...

    A 429 or Retry-After for one engine then applies to all of them, and waiting submits are served in order. An
    engine without a rate limiter creates one, available as `Engine.rate_limiter`. Raises SettingsError for an invalid
    rate.
    """

    # A submit passes in two steps: `acquire` waits until it is nearly due, then its intent is recorded, and `confirm`
    # waits until it is due. The time of a commit varies. If only `acquire` waited, POSTs would leave in a burst after
    # a long commit, above the rate. `acquire` returns early by the time that a commit usually takes, but no earlier,
    # because a job whose intent is recorded is ambiguous after a crash.

    def __init__(self, rate: Rate | str) -> None:
        self.rate = rate if isinstance(rate, Rate) else Rate.parse(rate)
        self.controller = RateController(self.rate.per_s, discover=self.rate.is_auto)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter = even_limiter(self.controller.per_s)
        self._limiter_per_s = self.controller.per_s
        self._queue_lock = asyncio.Lock()
        self._confirm_lock = asyncio.Lock()
        self._changed = asyncio.Event()  # a submit was confirmed or given up, or a job has ended
        self._unsent_s: deque[float] = deque()  # when submits were let through that are not confirmed yet
        self._connection = AnswerLatency()  # how long connections take
        self._commit_s = MIN_LEAD_S / LEAD  # the usual time from `acquire` to `confirm`

    def __repr__(self) -> str:
        return f"RateLimiter({self.rate.text!r})"

    def bind_loop(self) -> None:
        """Bind to the running event loop. Idempotent. Raises SettingsError if bound to another one."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._now_s = monotonic_clock(loop)
        if self._loop is not loop:
            raise SettingsError("rate_limiter", "bound to a different event loop", "create one for each event loop")

    async def acquire(self) -> None:
        """Wait until the next submit is nearly due, first come, first served. `confirm` or `give_up` follows."""
        async with self._queue_lock:
            if self._limiter_per_s != (pace_per_s := self.controller.pace_per_s):
                self._limiter, self._limiter_per_s = even_limiter(pace_per_s), pace_per_s
            await self._limiter.acquire()
            while (wait_s := self._lead_wait_s()) > 0:
                await self._sleep_or_change(min(wait_s, MAX_SLEEP_S))
            self._unsent_s.append(self._now_s())

    async def confirm(self) -> float | None:
        """Count a submit that is due and return its send time; None if it would now have to wait for long.

        If the time between two submits counts, the send time is a little later than now: see `hold`.
        """
        acquired_s = self._unsent_s[0] if self._unsent_s else self._now_s()
        self._commit_s += COMMIT_SMOOTHING * (min(self._now_s() - acquired_s, MAX_LEAD_S) - self._commit_s)
        try:
            async with self._confirm_lock:
                while (wait_s := self.controller.wait_s(self._now_s()) - self._connect_s()) > 0:
                    if wait_s > MAX_CONFIRM_S or self.controller.paused_s(self._now_s()) > 0:
                        return None
                    await asyncio.sleep(wait_s)
                now_s = self._now_s()
                sent_s = now_s + (self.controller.wait_s(now_s) or self._connect_s())
                self.controller.on_sent(sent_s)
                return sent_s
        finally:
            self.give_up()

    async def hold(self, sent_s: float, connect_s: float) -> None:
        """Wait until the send time of a submit, as `confirm` returned it. Its connection took `connect_s`.

        Connections take different times, so two submits would otherwise arrive closer together than they were sent.
        """
        self._connection.observe(connect_s, self.controller.pace_per_s)
        while (wait_s := sent_s - self._now_s()) > 0:  # noqa: ASYNC110 - only the clock ends it
            await asyncio.sleep(min(wait_s, max(wait_s - TIMER_ERROR_S, IMMEDIATE_S)))

    def _connect_s(self) -> float:
        """Return how long before its send time a submit connects."""
        if not self.controller.is_spaced:
            return 0.0
        return min(self._connection.usual_s + LATE_VARIATIONS * self._connection.variation_s, MAX_CONNECT_S)

    def give_up(self) -> None:
        """Forget a submit that was let through and will not be sent."""
        if self._unsent_s:
            self._unsent_s.popleft()
        self._changed.set()

    def on_job_resumed(self) -> None:
        """Count a job in process that an earlier run submitted."""
        self.controller.on_job_resumed()

    def on_job_ended(self) -> None:
        """Record that a job is not in process any more."""
        self.controller.on_job_ended()
        self._changed.set()

    async def acquire_shared(self) -> None:
        """Wait until another request that counts against the same limit may be sent, and count it."""
        while (wait_s := self.controller.wait_s(self._now_s())) > 0:  # noqa: ASYNC110 - only the clock sets this event
            await asyncio.sleep(wait_s)
        self.controller.on_other_request(self._now_s())

    async def _sleep_or_change(self, wait_s: float) -> None:
        """Wait until something changes, but not longer than `wait_s`."""
        self._changed.clear()
        timer = asyncio.get_running_loop().call_later(wait_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    def _lead_wait_s(self) -> float:
        """Return how long the next submit has to wait before its intent is recorded."""
        now_s = self._now_s()
        while self._unsent_s and self._unsent_s[0] < now_s - MAX_UNSENT_S:
            self._unsent_s.popleft()
        unsent = len(self._unsent_s)
        if not self.controller.has_room(now_s, unsent):
            self.controller.on_full(now_s)
            return MAX_UNSENT_S
        if (paused_s := self.controller.paused_s(now_s)) > 0:
            return paused_s
        lead_s = min(max(LEAD * self._commit_s, MIN_LEAD_S), MAX_LEAD_S)
        return self.controller.wait_s(now_s, unsent) + unsent / self.controller.pace_per_s - lead_s
