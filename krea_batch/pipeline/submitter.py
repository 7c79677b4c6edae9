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
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.jobs import ErrorInfo, Outcome, State
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline.context import RunContext, log
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules import lifecycle
from krea_batch.rules.circuit_breaker import CircuitBreaker
from krea_batch.rules.lifecycle import Accept, EndJob, Requeue, StopRun
from krea_batch.rules.verdicts import (
    Accepted,
    Ambiguous,
    NotSent,
    PollFailed,
    PostVerdict,
    Progress,
    Refusal,
    Refused,
)
from krea_batch.settings import AmbiguousPolicy

MAX_AMBIGUOUS_RESUBMITS = 5  # chosen: at one answer in ten lost, a job in 100,000 is not resubmitted any more
POST_GRACE_S = 5.0  # chosen: a POST in the air is worth a short wait even to somebody in a hurry
MAX_QUEUED = 1000  # chosen: a second at 1000/s; those behind are still in their file, and need no memory
MAX_CONCURRENT_POSTS = 256  # chosen: answers of 1 s at 256/s; a gateway slower than that needs no more of us


class Submitter:
    """Lets flights go at the run's pace, each in a short task of its own.

    `accepted` takes a paid flight with what is already known of it, `ended` one that ended here, `left` one
    that stays on record for the next run, and `called` what a callback told while a POST was in the air.
    """

    def __init__(
        self,
        run: RunContext,
        *,
        on_accepted: Callable[[InFlightJob, Progress], None],
        on_ended: Callable[[InFlightJob, Outcome], None],
        on_deferred: Callable[[InFlightJob], None],
        on_callback: Callable[[int, CallbackPayload], None],
    ) -> None:
        self._run = run
        self._accepted = on_accepted
        self._on_ended = on_ended
        self._on_deferred = on_deferred
        self._on_callback = on_callback
        self._queue: asyncio.Queue[InFlightJob] = asyncio.Queue()
        self._queue_shrank = asyncio.Event()
        self._delayed: dict[InFlightJob, asyncio.TimerHandle] = {}
        self._post_slots = asyncio.Semaphore(MAX_CONCURRENT_POSTS)
        self._pending_posts: set[asyncio.Task[Any] | None] = set()  # tasks that wait for an answer
        self._breaker = CircuitBreaker()
        self._charged = 0  # POSTs that are paid, or may be
        self._unsettled = 0  # POSTs that may yet turn out to be
        self._settled = asyncio.Event()
        self._dispatch = anyio.CancelScope()
        run.on_stopping(self._stop)

    def enqueue(self, flight: InFlightJob, wait_s: float = 0.0) -> None:
        """Take a pending flight, to be submitted once `wait_s` seconds have passed."""
        if self._run.stopped:
            self._on_deferred(flight)
        elif wait_s > 0:
            self._delayed[flight] = self._run.call_later(wait_s, self._due, flight)
        else:
            self._queue.put_nowait(flight)

    async def wait_for_capacity(self, max_queued: int = MAX_QUEUED) -> None:
        """Wait until fewer flights than that wait to be submitted, or the run stops."""
        while self._queue.qsize() >= max_queued and not self._run.stopped:
            self._queue_shrank.clear()
            await self._queue_shrank.wait()

    def set_prior_charges(self, charged: int) -> None:
        """Count `charged` POSTs of earlier runs towards --max-charges."""
        self._charged = charged

    @property
    def waiting(self) -> int:
        """Flights that are not submitted yet."""
        return self._queue.qsize() + len(self._delayed)

    async def work(self) -> None:
        """Let flights go until the run stops, then see those in the air home."""
        async with TaskPool() as posts:
            with self._dispatch:
                while True:
                    await self._dispatch_next(posts)
            self._drain_queue()

    def shorten_grace(self) -> None:
        """Give the POSTs in the air a few seconds more, then call them ambiguous."""
        self._run.call_later(POST_GRACE_S, self._cancel_pending_posts)

    async def _dispatch_next(self, posts: TaskPool) -> None:
        flight = await self._queue.get()
        self._queue_shrank.set()
        try:
            await self._post_slots.acquire()
            await self._wait_for_charge_budget()
            await self._run.rate_limiter.acquire()
        except asyncio.CancelledError:
            self._on_deferred(flight)
            raise
        self._unsettled += 1
        posts.spawn(self._submit(flight))

    async def _wait_for_charge_budget(self) -> None:
        """Wait until one more POST cannot pass --max-charges. Where none ever can, stop the run."""
        most = self._run.settings.max_charges
        while most is not None and self._charged + self._unsettled >= most:
            if self._charged >= most:
                next_step = "raise it and run the same command again"
                self._run.stop(RunStopped(f"--max-charges {most} is reached", next_step))
            self._settled.clear()
            await self._settled.wait()

    # ---- one POST ----------------------------------------------------------------------------------------

    async def _submit(self, flight: InFlightJob) -> None:
        try:
            # Intent first: a crash from here on must not pay twice.
            flight.job_no = await self._run.record(
                LedgerStore.record_intent,
                flight.id,
                flight.body,
                flight.fingerprint,
                flight.metadata,
                self._run.wall_clock(),
                flight.tenant,
            )
            self._run.emit_state_change(flight, State.PENDING, State.SUBMITTING)
            sent_s = await self._run.rate_limiter.confirm()
            if sent_s is None or self._run.stopped:  # since the intent was formed
                await self._run.record(LedgerStore.revert_intent, flight.job_no, "not_sent")
                self._run.emit_state_change(flight, State.SUBMITTING, State.PENDING)
                self.enqueue(flight)
                return
            flight.sent_s = sent_s
            verdict = await self._post(flight)
            await self._settle(flight, verdict, sent_s)
        finally:
            told = self._run.early_callbacks.pop(flight.job_no, None)
            self._post_slots.release()
            self._unsettled -= 1
            self._settled.set()
        if told:
            self._on_callback(flight.job_no, told)

    async def _post(self, flight: InFlightJob) -> PostVerdict:
        self._run.stats.submits += 1
        task = current_task()
        self._pending_posts.add(task)
        try:
            if not self._run.callbacks:
                return await self._run.gateway.submit(flight.body)
            self._run.early_callbacks[flight.job_no] = None
            callback = self._run.callbacks.url_of(flight.job_no)
            verdict = await self._run.gateway.submit(flight.body, callback=callback)
            return await self._confirm_by_poll(flight, verdict)
        except asyncio.CancelledError:  # what it came to has to be on record all the same
            if task:
                task.uncancel()
            return Ambiguous("the run was stopped before the answer came")
        finally:
            self._pending_posts.discard(task)

    async def _confirm_by_poll(self, flight: InFlightJob, verdict: PostVerdict) -> PostVerdict:
        """A POST whose answer was lost, but for which the gateway has called, was accepted, if a poll says so."""
        told = self._run.early_callbacks.get(flight.job_no)
        if not isinstance(verdict, Ambiguous) or told is None or told.request_id is None:
            return verdict
        progress = await self._run.gateway.poll(told.request_id)
        return verdict if isinstance(progress, PollFailed) else Accepted(told.request_id, progress)

    def _cancel_pending_posts(self) -> None:
        for task in self._pending_posts:
            if task:
                task.cancel()

    async def _settle(self, flight: InFlightJob, verdict: PostVerdict, sent_s: float) -> None:
        self._update_rate(verdict, sent_s)
        decision = lifecycle.after_post(verdict, refusals=flight.refusals, jitter=self._run.random())
        match decision:
            case Accept(accepted):
                await self._record_accepted(flight, accepted)
            case Requeue(wait_s, reason):
                await self._requeue(flight, verdict, wait_s, reason)
            case StopRun(status, said):
                await self._run.record(LedgerStore.revert_intent, flight.job_no, "refused")
                self._run.emit_submit(flight, "refused", verdict)
                self._run.emit_state_change(flight, State.SUBMITTING, State.PENDING)
                self._run.stop(GatewayError(status, said, NEXT_STEPS[status]))
                self._on_deferred(flight)
            case EndJob(State.AMBIGUOUS, kind, message):
                await self._mark_ambiguous(flight, verdict, ErrorInfo(kind, message))
            case EndJob(_, kind, message):
                outcome = await self._run.record(
                    LedgerStore.mark_rejected, flight.job_no, ErrorInfo(kind, message), self._run.wall_clock()
                )
                self._run.emit_submit(flight, "rejected", verdict)
                self._end(flight, outcome)

    async def _record_accepted(self, flight: InFlightJob, accepted: Accepted) -> None:
        try:
            taken = await self._run.record(
                LedgerStore.mark_accepted, flight.job_no, accepted.request_id, self._run.wall_clock()
            )
        except LedgerError:
            log.error("! paid, but not on record: job=%s request_id=%s", flight.id, accepted.request_id)
            raise
        if not taken:
            said = f"the gateway gave it the request_id of another job, {accepted.request_id}"
            await self._mark_ambiguous(flight, accepted, ErrorInfo("ambiguous", said))
            return
        self._charged += 1
        self._run.stats.accepted += 1
        flight.request_id = accepted.request_id
        flight.accepted_s = flight.last_polled_s = self._run.now_s()
        flight.body = flight.metadata = flight.fingerprint = b""
        flight.refusals = 0
        self._run.emit_submit(flight, "accepted", accepted)
        self._run.emit_state_change(flight, State.SUBMITTING, State.ACCEPTED)
        self._accepted(flight, accepted.progress)

    async def _requeue(self, flight: InFlightJob, verdict: PostVerdict, wait_s: float, reason: str) -> None:
        came_to: Literal["not_sent", "refused"] = "not_sent" if isinstance(verdict, NotSent) else "refused"
        await self._run.record(LedgerStore.revert_intent, flight.job_no, came_to)
        self._run.emit_submit(flight, came_to, verdict)
        self._run.emit_state_change(flight, State.SUBMITTING, State.PENDING)
        if isinstance(verdict, Refused) and verdict.refusal is Refusal.RETRYABLE and not self._breaker.is_degraded:
            flight.refusals += 1  # an outage is nobody's job's fault
        if not (isinstance(verdict, Refused) and verdict.refusal is Refusal.RATE_LIMITED):
            wait_s = max(wait_s, self._run.retries.spend(self._run.now_s()))
        self._run.emit_retry(flight, "submit", reason)
        self.enqueue(flight, wait_s)

    async def _mark_ambiguous(self, flight: InFlightJob, verdict: PostVerdict, why: ErrorInfo) -> None:
        self._charged += 1
        outcome = await self._run.record(LedgerStore.mark_ambiguous, flight.job_no, why, self._run.wall_clock())
        self._run.emit_submit(flight, "ambiguous", verdict)
        flight.ambiguous_posts += 1
        again = self._run.settings.ambiguous is AmbiguousPolicy.RESUBMIT
        if again and flight.ambiguous_posts < MAX_AMBIGUOUS_RESUBMITS and not self._run.stopped:
            await self._run.record(LedgerStore.resubmit, flight.job_no)
            self._run.emit_state_change(flight, State.SUBMITTING, State.PENDING)
            self._run.emit_retry(flight, "submit", why.message)
            self.enqueue(flight)
        else:
            self._end(flight, outcome)

    def record_refund(self) -> None:
        """An accepted POST came to ERROR, which is not charged."""
        self._charged -= 1
        self._settled.set()

    # ---- pace --------------------------------------------------------------------------------------------

    def _update_rate(self, verdict: PostVerdict, sent_s: float) -> None:
        now_s = self._run.now_s()
        pace = self._run.rate_limiter.controller
        match verdict:
            case Refused(Refusal.RATE_LIMITED, status, said, retry_after_s):
                self._run.stats.rate_limited += status == 429
                pace.on_rate_limited(sent_s, now_s, retry_after_s)
                self._run.emit_rate(pace.per_s)
                self._run.emit_submits_paused(pace.paused_s(now_s), said)
            case NotSent(reason):
                self._back_off(reason, None, sent_s)
            case Refused(Refusal.RETRYABLE, _, said, retry_after_s):
                pace.on_response(sent_s, now_s)
                self._back_off(said, retry_after_s, sent_s)
            case _:
                pace.on_response(sent_s, now_s)
                self._breaker.record_success()
        self._run.emit_rate(pace.per_s)

    def _back_off(self, reason: str, retry_after_s: float | None, sent_s: float) -> None:
        """Hold every submit back while the gateway is away; one failure alone delays only its own job."""
        now_s, longest_s = self._run.now_s(), self._run.settings.job_timeout_s
        pause_s = self._breaker.record_failure(sent_s, now_s, self._run.random())
        if self._breaker.is_open and now_s - self._breaker.failing_since_s >= longest_s:
            away = f"the gateway has taken nothing for {longest_s:g} s ({reason})"
            self._run.stop(RunStopped(away, "see what is wrong, then run the same command again"))
        wait_s = max(pause_s, retry_after_s or 0.0)
        if wait_s > 0:
            self._run.rate_limiter.controller.pause(now_s, wait_s)
            self._run.emit_submits_paused(wait_s, reason)

    # ---- ends --------------------------------------------------------------------------------------------

    def _end(self, flight: InFlightJob, outcome: Outcome) -> None:
        self._run.emit_state_change(flight, State.SUBMITTING, outcome.status)
        self._on_ended(flight, outcome)

    def _due(self, flight: InFlightJob) -> None:
        del self._delayed[flight]
        self.enqueue(flight)

    def _stop(self) -> None:
        self._dispatch.cancel()
        self._queue_shrank.set()
        later, self._delayed = self._delayed, {}
        for flight, timer in later.items():
            timer.cancel()
            self._on_deferred(flight)

    def _drain_queue(self) -> None:
        while not self._queue.empty():
            self._on_deferred(self._queue.get_nowait())


NEXT_STEPS = {
    401: "give a valid key, then run the same command again",
    402: "top up the wallet, then run the same command again",
    403: "see why the key may not use this model, then run the same command again",
}
