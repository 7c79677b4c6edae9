"""Flights come in; they go out accepted, or ended, or back to pending. The only stage that spends money.

Newcomers: the order is law. One is due; the intent is on disk; the pace lets the POST leave; what it came to is
on disk; then, and only then, anything else. From the intent to the record of the answer nothing can be
cancelled. A stop in a hurry shortens the wait for the answer, and what was still in the air becomes ambiguous.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Callable
from typing import Any, Literal

import anyio

from krea_batch.errors import GatewayError, LedgerError, RunStopped
from krea_batch.gateway.wire import Told
from krea_batch.jobs import Outcome, State, Trouble
from krea_batch.ledger import Store
from krea_batch.pipeline.context import Run, log
from krea_batch.pipeline.in_flight_job import Flight
from krea_batch.pipeline.task_pool import Crew
from krea_batch.rules import lifecycle
from krea_batch.rules.circuit_breaker import Outage
from krea_batch.rules.lifecycle import Again, End, Go, Stop
from krea_batch.rules.verdicts import Accepted, NotSent, PollTrouble, PostVerdict, Progress, Refusal, Refused, Unclear
from krea_batch.settings import Ambiguous

MOST_UNCLEAR = 5  # chosen: at one answer in ten lost, a job in 100,000 is not resubmitted any more
GRACE_S = 5.0  # chosen: a POST in the air is worth a short wait even to somebody in a hurry
MOST_QUEUED = 1000  # chosen: a second at 1000/s; those behind are still in their file, and need no memory
MOST_IN_AIR = 256  # chosen: answers of 1 s at 256/s; a gateway slower than that needs no more of us


class Submitter:
    """Lets flights go at the run's pace, each in a short task of its own.

    `accepted` takes a paid flight with what is already known of it, `ended` one that ended here, `left` one
    that stays on record for the next run, and `called` what a callback told while a POST was in the air.
    """

    def __init__(
        self,
        run: Run,
        *,
        accepted: Callable[[Flight, Progress], None],
        ended: Callable[[Flight, Outcome], None],
        left: Callable[[Flight], None],
        called: Callable[[int, Told], None],
    ) -> None:
        self._run = run
        self._accepted = accepted
        self._ended = ended
        self._left = left
        self._called = called
        self._queue: asyncio.Queue[Flight] = asyncio.Queue()
        self._taken = asyncio.Event()
        self._later: dict[Flight, asyncio.TimerHandle] = {}
        self._seats = asyncio.Semaphore(MOST_IN_AIR)
        self._in_air: set[asyncio.Task[Any] | None] = set()  # tasks that wait for an answer
        self._outage = Outage()
        self._charged = 0  # POSTs that are paid, or may be
        self._unsettled = 0  # POSTs that may yet turn out to be
        self._settled = asyncio.Event()
        self._dispatch = anyio.CancelScope()
        run.when_stopping(self._stop)

    def put(self, flight: Flight, wait_s: float = 0.0) -> None:
        """Take a pending flight, to be submitted once `wait_s` seconds have passed."""
        if self._run.stopped:
            self._left(flight)
        elif wait_s > 0:
            self._later[flight] = self._run.after(wait_s, self._due, flight)
        else:
            self._queue.put_nowait(flight)

    async def room(self, most: int = MOST_QUEUED) -> None:
        """Wait until fewer flights than that wait to be submitted, or the run stops."""
        while self._queue.qsize() >= most and not self._run.stopped:
            self._taken.clear()
            await self._taken.wait()

    def begin_with(self, charged: int) -> None:
        """Count `charged` POSTs of earlier runs towards --max-charges."""
        self._charged = charged

    @property
    def waiting(self) -> int:
        """Flights that are not submitted yet."""
        return self._queue.qsize() + len(self._later)

    async def work(self) -> None:
        """Let flights go until the run stops, then see those in the air home."""
        async with Crew() as posts:
            with self._dispatch:
                while True:
                    await self._let_go(posts)
            self._leave_queue()

    def hurry(self) -> None:
        """Give the POSTs in the air a few seconds more, then call them ambiguous."""
        self._run.after(GRACE_S, self._leave_air)

    async def _let_go(self, posts: Crew) -> None:
        flight = await self._queue.get()
        self._taken.set()
        try:
            await self._seats.acquire()
            await self._room_for_a_charge()
            await self._run.pace.wait()
        except asyncio.CancelledError:
            self._left(flight)
            raise
        self._unsettled += 1
        posts.start(self._submit(flight))

    async def _room_for_a_charge(self) -> None:
        """Wait until one more POST cannot pass --max-charges. Where none ever can, stop the run."""
        most = self._run.settings.max_charges
        while most is not None and self._charged + self._unsettled >= most:
            if self._charged >= most:
                next_step = "raise it and run the same command again"
                self._run.stop(RunStopped(f"--max-charges {most} is reached", next_step))
            self._settled.clear()
            await self._settled.wait()

    # ---- one POST ----------------------------------------------------------------------------------------

    async def _submit(self, flight: Flight) -> None:
        try:
            # Intent first: a crash from here on must not pay twice.
            flight.n = await self._run.record(
                Store.intend,
                flight.id,
                flight.body,
                flight.fingerprint,
                flight.metadata,
                self._run.at(),
                flight.tenant,
            )
            self._run.moved(flight, State.PENDING, State.SUBMITTING)
            sent_s = await self._run.pace.go()
            if sent_s is None or self._run.stopped:  # since the intent was formed
                await self._run.record(Store.take_back, flight.n, "not_sent")
                self._run.moved(flight, State.SUBMITTING, State.PENDING)
                self.put(flight)
                return
            flight.sent_s = sent_s
            verdict = await self._post(flight)
            await self._settle(flight, verdict, sent_s)
        finally:
            told = self._run.told.pop(flight.n, None)
            self._seats.release()
            self._unsettled -= 1
            self._settled.set()
        if told:
            self._called(flight.n, told)

    async def _post(self, flight: Flight) -> PostVerdict:
        self._run.stats.submits += 1
        task = current_task()
        self._in_air.add(task)
        try:
            if not self._run.callbacks:
                return await self._run.gateway.submit(flight.body)
            self._run.told[flight.n] = None
            callback = self._run.callbacks.address_of(flight.n)
            verdict = await self._run.gateway.submit(flight.body, callback=callback)
            return await self._made_clear(flight, verdict)
        except asyncio.CancelledError:  # what it came to has to be on record all the same
            if task:
                task.uncancel()
            return Unclear("the run was stopped before the answer came")
        finally:
            self._in_air.discard(task)

    async def _made_clear(self, flight: Flight, verdict: PostVerdict) -> PostVerdict:
        """A POST whose answer was lost, but for which the gateway has called, was accepted, if a poll says so."""
        told = self._run.told.get(flight.n)
        if not isinstance(verdict, Unclear) or told is None or told.request_id is None:
            return verdict
        progress = await self._run.gateway.poll(told.request_id)
        return verdict if isinstance(progress, PollTrouble) else Accepted(told.request_id, progress)

    def _leave_air(self) -> None:
        for task in self._in_air:
            if task:
                task.cancel()

    async def _settle(self, flight: Flight, verdict: PostVerdict, sent_s: float) -> None:
        self._pace(verdict, sent_s)
        decision = lifecycle.after_post(verdict, refusals=flight.refusals, chance=self._run.chance())
        match decision:
            case Go(accepted):
                await self._go(flight, accepted)
            case Again(wait_s, reason):
                await self._again(flight, verdict, wait_s, reason)
            case Stop(status, said):
                await self._run.record(Store.take_back, flight.n, "refused")
                self._run.posted(flight, "refused", verdict)
                self._run.moved(flight, State.SUBMITTING, State.PENDING)
                self._run.stop(GatewayError(status, said, NEXT_STEP[status]))
                self._left(flight)
            case End(State.AMBIGUOUS, kind, message):
                await self._unclear(flight, verdict, Trouble(kind, message))
            case End(_, kind, message):
                outcome = await self._run.record(Store.reject, flight.n, Trouble(kind, message), self._run.at())
                self._run.posted(flight, "rejected", verdict)
                self._end(flight, outcome)

    async def _go(self, flight: Flight, accepted: Accepted) -> None:
        try:
            taken = await self._run.record(Store.accept, flight.n, accepted.request_id, self._run.at())
        except LedgerError:
            log.error("! paid, but not on record: job=%s request_id=%s", flight.id, accepted.request_id)
            raise
        if not taken:
            said = f"the gateway gave it the request_id of another job, {accepted.request_id}"
            await self._unclear(flight, accepted, Trouble("ambiguous", said))
            return
        self._charged += 1
        self._run.stats.accepted += 1
        flight.request_id = accepted.request_id
        flight.accepted_s = flight.looked_s = self._run.now_s()
        flight.body = flight.metadata = flight.fingerprint = b""
        flight.refusals = 0
        self._run.posted(flight, "accepted", accepted)
        self._run.moved(flight, State.SUBMITTING, State.ACCEPTED)
        self._accepted(flight, accepted.progress)

    async def _again(self, flight: Flight, verdict: PostVerdict, wait_s: float, reason: str) -> None:
        came_to: Literal["not_sent", "refused"] = "not_sent" if isinstance(verdict, NotSent) else "refused"
        await self._run.record(Store.take_back, flight.n, came_to)
        self._run.posted(flight, came_to, verdict)
        self._run.moved(flight, State.SUBMITTING, State.PENDING)
        if isinstance(verdict, Refused) and verdict.refusal is Refusal.TRY_AGAIN and not self._outage.is_near:
            flight.refusals += 1  # an outage is nobody's job's fault
        if not (isinstance(verdict, Refused) and verdict.refusal is Refusal.SLOW_DOWN):
            wait_s = max(wait_s, self._run.retries.spend(self._run.now_s()))
        self._run.troubled(flight, "submit", reason)
        self.put(flight, wait_s)

    async def _unclear(self, flight: Flight, verdict: PostVerdict, why: Trouble) -> None:
        self._charged += 1
        outcome = await self._run.record(Store.hold, flight.n, why, self._run.at())
        self._run.posted(flight, "ambiguous", verdict)
        flight.unclear += 1
        again = self._run.settings.ambiguous is Ambiguous.RESUBMIT
        if again and flight.unclear < MOST_UNCLEAR and not self._run.stopped:
            await self._run.record(Store.resubmit, flight.n)
            self._run.moved(flight, State.SUBMITTING, State.PENDING)
            self._run.troubled(flight, "submit", why.message)
            self.put(flight)
        else:
            self._end(flight, outcome)

    def refunded(self) -> None:
        """An accepted POST came to ERROR, which is not charged."""
        self._charged -= 1
        self._settled.set()

    # ---- pace --------------------------------------------------------------------------------------------

    def _pace(self, verdict: PostVerdict, sent_s: float) -> None:
        now_s = self._run.now_s()
        pace = self._run.pace.rule
        match verdict:
            case Refused(Refusal.SLOW_DOWN, status, said, retry_after_s):
                self._run.stats.rate_limited += status == 429
                pace.refused(sent_s, now_s, retry_after_s)
                self._run.paced(pace.per_s)
                self._run.held(pace.paused_s(now_s), said)
            case NotSent(reason):
                self._back_off(reason, None, sent_s)
            case Refused(Refusal.TRY_AGAIN, _, said, retry_after_s):
                pace.let_through(sent_s, now_s)
                self._back_off(said, retry_after_s, sent_s)
            case _:
                pace.let_through(sent_s, now_s)
                self._outage.worked()
        self._run.paced(pace.per_s)

    def _back_off(self, reason: str, retry_after_s: float | None, sent_s: float) -> None:
        """Hold every submit back while the gateway is away; one failure alone delays only its own job."""
        now_s, longest_s = self._run.now_s(), self._run.settings.job_timeout_s
        pause_s = self._outage.failed(sent_s, now_s, self._run.chance())
        if self._outage.is_on and now_s - self._outage.since_s >= longest_s:
            away = f"the gateway has taken nothing for {longest_s:g} s ({reason})"
            self._run.stop(RunStopped(away, "see what is wrong, then run the same command again"))
        wait_s = max(pause_s, retry_after_s or 0.0)
        if wait_s > 0:
            self._run.pace.rule.hold(now_s, wait_s)
            self._run.held(wait_s, reason)

    # ---- ends --------------------------------------------------------------------------------------------

    def _end(self, flight: Flight, outcome: Outcome) -> None:
        self._run.moved(flight, State.SUBMITTING, outcome.status)
        self._ended(flight, outcome)

    def _due(self, flight: Flight) -> None:
        del self._later[flight]
        self.put(flight)

    def _stop(self) -> None:
        self._dispatch.cancel()
        self._taken.set()
        later, self._later = self._later, {}
        for flight, timer in later.items():
            timer.cancel()
            self._left(flight)

    def _leave_queue(self) -> None:
        while not self._queue.empty():
            self._left(self._queue.get_nowait())


NEXT_STEP = {
    401: "give a valid key, then run the same command again",
    402: "top up the wallet, then run the same command again",
    403: "see why the key may not use this model, then run the same command again",
}
