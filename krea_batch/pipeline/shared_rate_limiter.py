"""When the next POST may be sent, if several runs share a directory: one rate for all of them, kept in the ledger.

Each run takes slots for the jobs that it has to submit, a tenth of a second ahead, and publishes what the gateway has
answered; `rules.rate_log` has what the runs agree on. Slots are exchanged in transactions of their own, so that every
run applies the same events in the same order.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import anyio
import msgspec

from krea_batch.ledger import Ledger, LedgerWriter
from krea_batch.rules.found_limit import FoundLimit, recent_limit
from krea_batch.rules.rate_log import (
    Answered,
    Event,
    JobsEnded,
    JobsResumed,
    Late,
    Paused,
    RateLimited,
    RateLog,
    RateView,
    Restart,
    Unused,
    recent_slots,
)
from krea_batch.settings import Rate
from krea_batch.storage.clocks import monotonic_clock

AHEAD_S = 0.1  # chosen: slots for so long are taken together: twenty transactions a second, whatever the rate is
MAX_AHEAD_S = 0.25  # chosen: a delay is known before the slot of a second later is taken
SLOW_AHEAD = 2.0  # measured: of the time that a commit takes; the other half of the slots lasts until it has ended
SEARCHING_AHEAD_S = 0.05  # measured: while a limit is searched, a third fewer submits are refused
PUBLISH_DELAY_S = 0.08  # chosen: how long an event waits at most; usually, slots are taken before
SEARCHING_PUBLISH_DELAY_S = 0.02  # chosen: while a limit is searched, answers decide what the other runs submit
IDLE_S = 0.25  # chosen: how often a run that waits for a slot asks for one
MIN_INTERVAL_S = 0.02  # chosen: transactions of one run are not closer, so that others get their turn
LEAD_S = 0.03  # chosen: intents are recorded so long before their slot, or as long before it as a record takes
MAX_LEAD_S = 0.1  # measured: a slot that is used late makes the slot of a second later late as well
MAX_LATE_S = 0.3  # chosen: a slot that is older is given back, unless the ledger is slow
MAX_LATE_COMMITS = 4.0  # chosen: a record waits for up to three others; one pause alone counts for half of its time
REPORTED_LATE_S = 0.002  # chosen: a smaller delay does not matter to a limiter
RESTART_SLOTS_S = 1.1  # chosen: slots before a restart that are still in a window of a second


class _Slot(NamedTuple):
    """A slot of this run. `restarts` is how often all runs had started again when it was taken."""

    at_s: float
    restarts: int


class _Log(NamedTuple):
    """A log, and the number of the last row that was applied to it."""

    rate: RateLog
    event_no: int


class _Exchanged(NamedTuple):
    """What an exchange has brought: the log, whether all runs have started again, and slots for both purposes."""

    log: _Log
    has_restarted: bool
    slots: list[float]
    others: list[float]
    view: RateView
    offset_s: float


class SharedRateLimiter:
    """The submit rate of all runs of a directory. It has the methods of `RateLimiter`, and is its own controller.

    `wall_clock` returns the seconds since 1970. Set `demand` to a function that returns how many jobs wait to be
    submitted by this run.
    """

    def __init__(self, rate: Rate, ledger: LedgerWriter, wall_clock: Callable[[], float]) -> None:
        self.rate = rate
        self._ledger = ledger
        self._now_s = monotonic_clock(asyncio.get_running_loop())
        self._wall_clock = wall_clock
        self._log: _Log | None = None  # None: the next exchange lets all runs start again
        self._must_restart = False
        self._restarts = 0  # how often all runs have started again, as far as this run knows
        self._offset_s = 0.0  # of the shared clock; all slots are instants of that clock
        first = RateLog(rate.per_s, discover=rate.is_auto)
        self._view: RateView = first.view(0.0)
        self._held_until_s = -math.inf  # a pause that the other runs, and so the view, do not know yet
        self._pending: list[Event] = []  # not published to the other runs yet
        self._is_urgent = False
        self._publish_timer: asyncio.TimerHandle | None = None
        self._in_process = 0
        self._slots: deque[_Slot] = deque()  # of this run, not used
        self._asked = 0  # slots that the exchange under way has asked for
        self._other_slots: deque[float] = deque()
        self._acquired: deque[_Slot] = deque()  # those whose intents are being recorded
        self._slot_of: dict[float, _Slot] = {}  # by send time
        self._waiting = self._waiting_others = 0
        self._queue_lock = asyncio.Lock()
        self._confirm_lock = asyncio.Lock()
        self._needs_exchange = asyncio.Event()
        self._exchanged = asyncio.Event()
        self.demand: Callable[[], int] = lambda: 0

    def bind_loop(self) -> None:
        """Do nothing: it is created on its loop."""

    # ---- the exchange with other runs --------------------------------------------------------------------

    async def work(self) -> None:
        """Exchange slots and events with the other runs, forever."""
        while True:
            await self._needs_exchange.wait()
            if not self._is_urgent:
                await asyncio.sleep(MIN_INTERVAL_S)
            self._needs_exchange.clear()
            await self._exchange()

    def restart(self) -> None:
        """Let all runs start again, since one of them has ended without publishing what became of its slots."""
        self._must_restart = True
        self._needs_exchange.set()

    async def _exchange(self) -> None:
        self._is_urgent = False
        if self._publish_timer:
            self._publish_timer.cancel()
            self._publish_timer = None
        pending, self._pending = self._pending, []
        wants = self._missing_slots(), max(0, self._waiting_others - len(self._other_slots))
        self._asked = wants[0]
        in_process = self._in_process
        self._view = msgspec.structs.replace(self._view, paused_until_s=self._paused_until_s)
        self._held_until_s = -math.inf
        logs = [self._log] if self._log and not self._must_restart else []
        self._log, self._must_restart = None, False
        # If the transaction is repeated or fails, what was applied to the log has been rolled back.
        exchanged = await self._ledger.transact(
            lambda ledger: self._apply(ledger, logs.pop() if logs else None, pending, wants, in_process)
        )
        self._log, self._view, self._offset_s = exchanged.log, exchanged.view, exchanged.offset_s
        self._restarts += exchanged.has_restarted
        self._asked = 0
        self._slots.extend(_Slot(slot_s, self._restarts) for slot_s in exchanged.slots)
        self._other_slots.extend(exchanged.others)
        self._give_up_slots()
        self._exchanged.set()

    def _apply(
        self, ledger: Ledger, log: _Log | None, pending: list[Event], wants: tuple[int, int], in_process: int
    ) -> _Exchanged:
        """Apply what the other runs have added, add what is pending, and take slots. In the ledger's thread."""
        shared_s, own_s = ledger.clock_s(), self._now_s()  # in this order: no slot is used too early
        now_s = own_s if shared_s is None else shared_s
        rows = ledger.rate_events(log.event_no if log else 0)
        if log and (not rows or rows[0][0] == log.event_no + 1):
            rate = log.rate
            restarts = rate.restarts
            for _, data in rows:
                rate.apply(data)
            has_restarted = rate.restarts > restarts
        else:
            rate = RateLog(self.rate.per_s, discover=self.rate.is_auto)
            found = recent_limit(ledger.found_limit(), self._wall_clock())
            slots_s = recent_slots((data for _, data in rows), now_s - RESTART_SLOTS_S)
            rate.add(Restart(found, slots_s))
            has_restarted = True
        if has_restarted:  # `in_process` has all jobs that the pending events are about.
            pending = [event for event in pending if not isinstance(event, (JobsEnded, JobsResumed))]
            rate.add(JobsResumed(in_process))
        for event in pending:
            rate.add(event)
        slots, others = rate.take_slots(now_s, *wants)
        event_no = ledger.add_rate_events(rate.take_events())
        return _Exchanged(_Log(rate, event_no), has_restarted, slots, others, rate.view(now_s), now_s - own_s)

    def _missing_slots(self) -> int:
        return max(0, min(self._slots_ahead, self.demand() + self._waiting) - len(self._slots))

    @property
    def _slots_ahead(self) -> int:
        """How many slots to take in one transaction."""
        ahead_s = SEARCHING_AHEAD_S if self._is_searching else AHEAD_S
        ahead_s = max(ahead_s, min(SLOW_AHEAD * self._ledger.record_s, MAX_AHEAD_S))
        return max(1, round(self.pace_per_s * (ahead_s + self._lead_s - LEAD_S)))

    @property
    def _is_searching(self) -> bool:
        """Whether the gateway has a limit below the configured rate."""
        return self.per_s < self.rate.per_s

    @property
    def _lead_s(self) -> float:
        """How long before its slot an intent is recorded."""
        return min(MAX_LEAD_S, max(LEAD_S, self._ledger.record_s))

    @property
    def _max_late_s(self) -> float:
        """How late a slot may be used. A ledger that is always slow makes all slots late."""
        return max(MAX_LATE_S, MAX_LATE_COMMITS * self._ledger.usual_commit_s)

    def _give_up_slots(self) -> None:
        """Give back the slots that come before the end of the current pause."""
        while self._slots and self._slots[0].at_s < self._paused_until_s:
            self._give_back(self._slots.popleft())

    def _give_back(self, slot: _Slot) -> None:
        self._publish(Unused(slot.at_s))

    def _publish(self, event: Event, *, urgent: bool = False) -> None:
        self._pending.append(event)
        if urgent:
            self._is_urgent = True
            self._needs_exchange.set()
        elif self._publish_timer is None:
            wait_s = SEARCHING_PUBLISH_DELAY_S if self._is_searching else PUBLISH_DELAY_S
            self._publish_timer = asyncio.get_running_loop().call_later(wait_s, self._needs_exchange.set)

    # ---- as RateLimiter ----------------------------------------------------------------------------------

    @property
    def controller(self) -> SharedRateLimiter:
        """The part that takes the results of submits: this object."""
        return self

    async def acquire(self) -> None:
        """Wait until the next submit is nearly due, first come, first served. `confirm` or `give_up` follows."""
        async with self._queue_lock:
            self._waiting = 1
            try:
                while (wait_s := await self._next_slot_s() - self._lead_s - self._shared_s()) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(wait_s)  # A pause may take the slot away.
            finally:
                self._waiting = 0
            self._acquired.append(self._slots.popleft())
            if 2 * (len(self._slots) + self._asked) < self._slots_ahead and self.demand():
                self._needs_exchange.set()

    async def confirm(self) -> float | None:
        """Count a submit that is due and return its send time; None if it would now have to wait for long."""
        async with self._confirm_lock:
            slot = self._acquired.popleft()
            await asyncio.sleep(max(0.0, slot.at_s - self._shared_s()))
            now_s = self._now_s()
            late_s = now_s + self._offset_s - slot.at_s
            if late_s > self._max_late_s or self.paused_s(now_s) > 0:
                self._give_back(slot)
                return None
            if late_s > REPORTED_LATE_S:
                self._publish(Late(slot.at_s, late_s))
            while now_s in self._slot_of:
                now_s = math.nextafter(now_s, math.inf)
            self._slot_of[now_s] = slot
            return now_s

    async def hold(self, sent_s: float, connect_s: float) -> None:
        """Do nothing: the time between two submits of different runs cannot be kept exactly."""

    def give_up(self) -> None:
        """Forget a submit that was let through and will not be sent."""
        if self._acquired:
            self._give_back(self._acquired.popleft())

    async def acquire_shared(self) -> None:
        """Wait until another request that counts against the same limit may be sent, and count it."""
        self._waiting_others += 1
        try:
            while not self._other_slots:
                await self._ask()
        finally:
            self._waiting_others -= 1
        slot_s = self._other_slots.popleft()
        await asyncio.sleep(max(0.0, slot_s - self._shared_s()))

    def on_job_resumed(self) -> None:
        """Count a job in process that an earlier run submitted."""
        self._in_process += 1
        self._publish(JobsResumed(1))

    def on_job_ended(self) -> None:
        """Record that a job is not in process any more."""
        self._in_process -= 1
        self._publish(JobsEnded(1))

    def _shared_s(self) -> float:
        """Return the instant of the shared clock."""
        return self._now_s() + self._offset_s

    async def _next_slot_s(self) -> float:
        """Return the next slot, once there is one. Those that have passed are given back."""
        while True:
            while self._slots and self._shared_s() - self._slots[0].at_s > self._max_late_s:
                self._give_back(self._slots.popleft())
            if self._slots:
                return self._slots[0].at_s
            await self._ask()

    async def _ask(self) -> None:
        """Ask for slots, and wait for an answer; if there is no slot yet, also until it is worth to ask again."""
        self._exchanged.clear()
        self._needs_exchange.set()
        await self._exchanged.wait()
        if not self._slots and not self._other_slots:
            self._exchanged.clear()
            with anyio.move_on_after(min(IDLE_S, max(MIN_INTERVAL_S, self.paused_s(self._now_s())))):
                await self._exchanged.wait()

    async def close(self) -> None:
        """Give back what this run has not used, and its jobs in process: another run may take them over."""
        while self._slots:
            self._give_back(self._slots.popleft())
        self._publish(JobsEnded(self._in_process))
        self._in_process = 0
        await self._exchange()

    # ---- as RateController -------------------------------------------------------------------------------

    @property
    def per_s(self) -> float:
        """The rate of all runs now."""
        return self._view.per_s

    @property
    def pace_per_s(self) -> float:
        """The rate of submits that follow each other."""
        return self._view.pace_per_s

    @property
    def found(self) -> FoundLimit | None:
        """The limit of the gateway, if refusals have shown one below the configured rate."""
        return self._view.found

    def resume(self, found: FoundLimit) -> None:
        """Do nothing: the first exchange reads the limit that an earlier run has found."""

    def paused_s(self, now_s: float) -> float:
        """Return for how many more seconds all submits are paused."""
        return max(0.0, self._paused_until_s - self._offset_s - now_s)

    def pause(self, now_s: float, wait_s: float) -> None:
        """Pause all submits for `wait_s` seconds, without a change of the rate."""
        self._hold(now_s + wait_s)
        self._publish(Paused(now_s + self._offset_s, wait_s), urgent=True)

    def on_response(self, sent_s: float, now_s: float, *, accepted: bool = True) -> None:
        """Record an answer, other than 429, to a submit sent at `sent_s`."""
        slot = self._slot_of.pop(sent_s)
        if accepted:
            self._in_process += 1
        if slot.restarts == self._restarts:
            self._publish(Answered(slot.at_s, slot.at_s + now_s - sent_s, accepted))
        elif accepted:
            self._publish(JobsResumed(1))

    def on_not_sent(self, sent_s: float) -> None:
        """Record that a submit was not sent after all."""
        self._give_back(self._slot_of.pop(sent_s))

    def on_rate_limited(self, sent_s: float, now_s: float, retry_after_s: float | None) -> None:
        """Record a 429 for a submit sent at `sent_s`, or for another request, and pause all submits."""
        slot = self._slot_of.pop(sent_s, _Slot(sent_s + self._offset_s, self._restarts))
        self._hold(now_s + (retry_after_s or MIN_INTERVAL_S))
        self._publish(RateLimited(slot.at_s, now_s + self._offset_s, retry_after_s), urgent=True)

    def _hold(self, until_s: float) -> None:
        """Let this run send nothing until then, although the other runs do not know of it yet."""
        self._held_until_s = max(self._held_until_s, until_s + self._offset_s)
        self._give_up_slots()

    @property
    def _paused_until_s(self) -> float:
        return max(self._view.paused_until_s, self._held_until_s)
