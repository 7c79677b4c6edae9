"""POST jobs to the gateway. This is the only stage that spends money.

The order of steps must not change. A submit is due; its intent is durable; the rate limiter lets the POST go; its
result is durable; only then does anything else happen. Nothing can be cancelled between the intent and the record of
the result. When the engine aborts, the wait for the answer is shortened, and jobs whose POST is still pending become
ambiguous.
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
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.emitter import log
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

# chosen: if one answer in ten is lost, one job in 100,000 reaches this limit
MAX_AMBIGUOUS_RESUBMITS = 5
POST_GRACE_S = 5.0  # chosen: most answers of pending POSTs arrive within it, and an abort stays fast
MAX_QUEUED = 1000  # chosen: one second at 1000/s; jobs behind them stay in their file and need no memory
MAX_CONCURRENT_POSTS = 256  # chosen: answers of 1 s at 256/s; a slower gateway gains nothing from more

NEXT_STEPS = {
    401: "use a valid API key, then run again to resume",
    402: "top up the wallet, then run again to resume",
    403: "check whether the API key may use this model, then run again to resume",
}
"""What a user does after a refusal that stops the run, by HTTP status."""


class Submitter:
    """Submits jobs at the rate of the run, each in a short task of its own.

    `on_accepted` takes a charged job, with the status that the answer to its POST contains. `on_ended` takes a job
    that ended here. `on_deferred` takes a job that stays in the ledger for the next run. `on_callback` takes a
    callback that arrived while the job's POST was pending.
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
        self._on_accepted = on_accepted
        self._on_ended = on_ended
        self._on_deferred = on_deferred
        self._on_callback = on_callback
        self._queue: asyncio.Queue[InFlightJob] = asyncio.Queue()
        self._queue_shrank = asyncio.Event()
        self._delayed: dict[InFlightJob, asyncio.TimerHandle] = {}
        self._post_slots = asyncio.Semaphore(MAX_CONCURRENT_POSTS)
        self._pending_posts: set[asyncio.Task[Any] | None] = set()  # tasks that wait for an answer
        self._breaker = CircuitBreaker()
        self._charged = 0  # POSTs that were charged, or may have been
        self._unsettled = 0  # POSTs whose result is not recorded, so they may be charged
        self._settled = asyncio.Event()
        self._dispatch = anyio.CancelScope()
        run.on_stopping(self._stop)

    def enqueue(self, job: InFlightJob, wait_s: float = 0.0) -> None:
        """Take a pending job, to be submitted after `wait_s` seconds at the earliest."""
        if self._run.stopped:
            self._on_deferred(job)
        elif wait_s > 0:
            self._delayed[job] = self._run.call_later(wait_s, self._enqueue_delayed, job)
        else:
            self._queue.put_nowait(job)

    async def wait_for_capacity(self, max_queued: int = MAX_QUEUED) -> None:
        """Wait until fewer than `max_queued` jobs are queued, or the run stops."""
        while self._queue.qsize() >= max_queued and not self._run.stopped:
            self._queue_shrank.clear()
            await self._queue_shrank.wait()

    def set_prior_charges(self, charged: int) -> None:
        """Count `charged` POSTs of earlier runs towards `max_charges`."""
        self._charged = charged

    @property
    def waiting(self) -> int:
        """The number of jobs that are not submitted yet."""
        return self._queue.qsize() + len(self._delayed)

    async def work(self) -> None:
        """Submit jobs until the run stops, then wait for the pending POSTs."""
        async with TaskPool() as posts:
            with self._dispatch:
                while True:
                    await self._dispatch_next(posts)
            self._drain_queue()

    def shorten_grace(self) -> None:
        """Give pending POSTs POST_GRACE_S more seconds; after that their jobs become ambiguous."""
        self._run.call_later(POST_GRACE_S, self._cancel_pending_posts)

    async def _dispatch_next(self, posts: TaskPool) -> None:
        job = await self._queue.get()
        self._queue_shrank.set()
        try:
            await self._post_slots.acquire()
            await self._wait_for_charge_budget()
            await self._run.rate_limiter.acquire()
        except asyncio.CancelledError:
            self._on_deferred(job)
            raise
        self._unsettled += 1
        posts.spawn(self._submit(job))

    async def _wait_for_charge_budget(self) -> None:
        """Wait until one more POST cannot exceed `max_charges`. If none can be sent any more, stop the run."""
        limit = self._run.settings.max_charges
        while limit is not None and self._charged + self._unsettled >= limit:
            if self._charged >= limit:
                self._run.stop(RunStopped(f"max_charges is reached ({limit})", "raise it, then run again to resume"))
            self._settled.clear()
            await self._settled.wait()

    # ---- one POST ----------------------------------------------------------------------------------------

    async def _submit(self, job: InFlightJob) -> None:
        try:
            # The intent is recorded first: after a crash from here on, the job must not be submitted again unasked.
            job.job_no = await self._run.record(
                LedgerStore.record_intent,
                job.id,
                job.body,
                job.fingerprint,
                job.metadata,
                self._run.wall_clock(),
                job.tenant,
            )
            self._run.events.emit_state_change(job, State.PENDING, State.SUBMITTING)
            sent_s = await self._run.rate_limiter.confirm()
            if sent_s is None or self._run.stopped:  # Submits were paused, or the run was stopped, since the intent.
                await self._run.record(LedgerStore.revert_intent, job.job_no, "not_sent")
                self._run.events.emit_state_change(job, State.SUBMITTING, State.PENDING)
                self.enqueue(job)
                return
            job.sent_s = sent_s
            verdict = await self._post(job)
            await self._settle(job, verdict, sent_s)
        finally:
            early_callback = self._run.early_callbacks.pop(job.job_no, None)
            self._post_slots.release()
            self._unsettled -= 1
            self._settled.set()
        if early_callback:
            self._on_callback(job.job_no, early_callback)

    async def _post(self, job: InFlightJob) -> PostVerdict:
        self._run.stats.submits += 1
        task = current_task()
        self._pending_posts.add(task)
        try:
            if not self._run.callbacks:
                return await self._run.gateway.submit(job.body)
            self._run.early_callbacks[job.job_no] = None
            callback = self._run.callbacks.url_of(job.job_no)
            verdict = await self._run.gateway.submit(job.body, callback=callback)
            return await self._confirm_by_poll(job, verdict)
        except asyncio.CancelledError:
            # The cancellation is not passed on: the result of a POST that was sent must be recorded.
            if task:
                task.uncancel()
            return Ambiguous("the run was stopped before the answer arrived")
        finally:
            self._pending_posts.discard(task)

    async def _confirm_by_poll(self, job: InFlightJob, verdict: PostVerdict) -> PostVerdict:
        """Turn an ambiguous POST into an accepted one if a callback named its request_id and a poll confirms it."""
        early_callback = self._run.early_callbacks.get(job.job_no)
        if not isinstance(verdict, Ambiguous) or early_callback is None or early_callback.request_id is None:
            return verdict
        progress = await self._run.gateway.poll(early_callback.request_id)
        return verdict if isinstance(progress, PollFailed) else Accepted(early_callback.request_id, progress)

    def _cancel_pending_posts(self) -> None:
        for task in self._pending_posts:
            if task:
                task.cancel()

    async def _settle(self, job: InFlightJob, verdict: PostVerdict, sent_s: float) -> None:
        """Record the result of a POST and hand the job to the next stage."""
        self._update_rate(verdict, sent_s)
        decision = lifecycle.after_post(verdict, refusals=job.refusals, jitter=self._run.random())
        match decision:
            case Accept(accepted):
                await self._record_accepted(job, accepted)
            case Requeue(wait_s, reason):
                await self._requeue(job, verdict, wait_s, reason)
            case StopRun(status, detail):
                await self._run.record(LedgerStore.revert_intent, job.job_no, "refused")
                self._run.events.emit_submit(job, "refused", verdict)
                self._run.events.emit_state_change(job, State.SUBMITTING, State.PENDING)
                self._run.stop(GatewayError(status, detail, NEXT_STEPS[status]))
                self._on_deferred(job)
            case EndJob(State.AMBIGUOUS, kind, message):
                await self._mark_ambiguous(job, verdict, ErrorInfo(kind, message))
            case EndJob(_, kind, message):
                outcome = await self._run.record(
                    LedgerStore.mark_rejected, job.job_no, ErrorInfo(kind, message), self._run.wall_clock()
                )
                self._run.events.emit_submit(job, "rejected", verdict)
                self._end(job, outcome)

    async def _record_accepted(self, job: InFlightJob, accepted: Accepted) -> None:
        try:
            recorded = await self._run.record(
                LedgerStore.mark_accepted, job.job_no, accepted.request_id, self._run.wall_clock()
            )
        except LedgerError:
            # The request_id exists nowhere else: with it, the user can resolve the job by hand.
            log.error("! charged but not recorded: job=%s request_id=%s", job.id, accepted.request_id)
            raise
        if not recorded:
            message = f"the gateway returned the request_id of another job, {accepted.request_id}"
            await self._mark_ambiguous(job, accepted, ErrorInfo("ambiguous", message))
            return
        self._charged += 1
        self._run.stats.accepted += 1
        job.request_id = accepted.request_id
        job.accepted_s = job.last_polled_s = self._run.now_s()
        job.body = job.metadata = job.fingerprint = b""
        job.refusals = 0
        self._run.events.emit_submit(job, "accepted", accepted)
        self._run.events.emit_state_change(job, State.SUBMITTING, State.ACCEPTED)
        self._on_accepted(job, accepted.progress)

    async def _requeue(self, job: InFlightJob, verdict: PostVerdict, wait_s: float, reason: str) -> None:
        result: Literal["not_sent", "refused"] = "not_sent" if isinstance(verdict, NotSent) else "refused"
        await self._run.record(LedgerStore.revert_intent, job.job_no, result)
        self._run.events.emit_submit(job, result, verdict)
        self._run.events.emit_state_change(job, State.SUBMITTING, State.PENDING)
        if isinstance(verdict, Refused) and verdict.refusal is Refusal.RETRYABLE and not self._breaker.is_degraded:
            job.refusals += 1  # Errors of an outage do not count against a job.
        if not (isinstance(verdict, Refused) and verdict.refusal is Refusal.RATE_LIMITED):
            wait_s = max(wait_s, self._run.retries.spend(self._run.now_s()))
        self._run.events.emit_retry(job, "submit", reason)
        self.enqueue(job, wait_s)

    async def _mark_ambiguous(self, job: InFlightJob, verdict: PostVerdict, error: ErrorInfo) -> None:
        self._charged += 1
        outcome = await self._run.record(LedgerStore.mark_ambiguous, job.job_no, error, self._run.wall_clock())
        self._run.events.emit_submit(job, "ambiguous", verdict)
        job.ambiguous_posts += 1
        resubmit = self._run.settings.ambiguous is AmbiguousPolicy.RESUBMIT
        if resubmit and job.ambiguous_posts < MAX_AMBIGUOUS_RESUBMITS and not self._run.stopped:
            await self._run.record(LedgerStore.resubmit, job.job_no)
            # Observers see one change: to them, an ambiguous job has ended.
            self._run.events.emit_state_change(job, State.SUBMITTING, State.PENDING)
            self._run.events.emit_retry(job, "submit", error.message)
            self.enqueue(job)
        else:
            self._end(job, outcome)

    def record_refund(self) -> None:
        """Count back the charge of an accepted POST that ended in ERROR, which is not charged."""
        self._charged -= 1
        self._settled.set()

    # ---- rate --------------------------------------------------------------------------------------------

    def _update_rate(self, verdict: PostVerdict, sent_s: float) -> None:
        now_s = self._run.now_s()
        controller = self._run.rate_limiter.controller
        match verdict:
            case Refused(Refusal.RATE_LIMITED, status, detail, retry_after_s):
                self._run.stats.rate_limited += status == 429
                controller.on_rate_limited(sent_s, now_s, retry_after_s)
                self._run.events.emit_rate(controller.per_s)
                self._run.events.emit_submits_paused(controller.paused_s(now_s), detail)
            case NotSent(reason):
                self._back_off(reason, None, sent_s)
            case Refused(Refusal.RETRYABLE, _, detail, retry_after_s):
                controller.on_response(sent_s, now_s)
                self._back_off(detail, retry_after_s, sent_s)
            case _:
                controller.on_response(sent_s, now_s)
                self._breaker.record_success()
        self._run.events.emit_rate(controller.per_s)

    def _back_off(self, reason: str, retry_after_s: float | None, sent_s: float) -> None:
        """Pause all submits during an outage. A single failure delays only its own job."""
        now_s, timeout_s = self._run.now_s(), self._run.settings.job_timeout_s
        pause_s = self._breaker.record_failure(sent_s, now_s, self._run.random())
        if self._breaker.is_open and now_s - self._breaker.failing_since_s >= timeout_s:
            outage = f"the gateway has accepted no request for {timeout_s:g} s ({reason})"
            self._run.stop(RunStopped(outage, "check the gateway, then run again to resume"))
        wait_s = max(pause_s, retry_after_s or 0.0)
        if wait_s > 0:
            self._run.rate_limiter.controller.pause(now_s, wait_s)
            self._run.events.emit_submits_paused(wait_s, reason)

    # ---- end of a job, end of the run --------------------------------------------------------------------

    def _end(self, job: InFlightJob, outcome: Outcome) -> None:
        self._run.events.emit_state_change(job, State.SUBMITTING, outcome.status)
        self._on_ended(job, outcome)

    def _enqueue_delayed(self, job: InFlightJob) -> None:
        del self._delayed[job]
        self.enqueue(job)

    def _stop(self) -> None:
        self._dispatch.cancel()
        self._queue_shrank.set()
        delayed, self._delayed = self._delayed, {}
        for job, timer in delayed.items():
            timer.cancel()
            self._on_deferred(job)

    def _drain_queue(self) -> None:
        while not self._queue.empty():
            self._on_deferred(self._queue.get_nowait())
