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
from typing import Any

import anyio
import msgspec

from krea_batch.errors import RunStopped
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.pipeline.charge_budget import ChargeBudget
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.protocols import Stages
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules import lifecycle
from krea_batch.rules.circuit_breaker import CircuitBreaker
from krea_batch.rules.lifecycle import Transition
from krea_batch.rules.verdicts import Accepted, Ambiguous, NotSent, PollFailed, PostVerdict, Refusal, Refused
from krea_batch.settings import AmbiguousPolicy

POST_GRACE_S = 5.0  # chosen: most answers of pending POSTs arrive within it, and an abort stays fast
MAX_QUEUED = 1000  # chosen: one second at 1000/s; jobs behind them stay in their file and need no memory
MAX_CONCURRENT_POSTS = 256  # chosen: answers of 1 s at 256/s; a slower gateway gains nothing from more


class Submitter:
    """Submits jobs at the rate of the run, each in a short task of its own.

    `on_callback` takes a callback that arrived while the job's POST was pending.
    """

    def __init__(
        self,
        run: RunContext,
        executor: TransitionExecutor,
        stages: Stages,
        budget: ChargeBudget,
        on_callback: Callable[[int, CallbackPayload], None],
    ) -> None:
        self._run = run
        self._executor = executor
        self._stages = stages
        self._budget = budget
        self._on_callback = on_callback
        self._queue: asyncio.Queue[InFlightJob] = asyncio.Queue()
        self._queue_shrank = asyncio.Event()
        self._delayed: dict[InFlightJob, asyncio.TimerHandle] = {}
        self._post_slots = asyncio.Semaphore(MAX_CONCURRENT_POSTS)
        self._pending_posts: set[asyncio.Task[Any] | None] = set()  # tasks that wait for an answer
        self._breaker = CircuitBreaker()
        self._dispatch = anyio.CancelScope()
        run.on_stopping(self._stop)

    def enqueue(self, job: InFlightJob, wait_s: float = 0.0) -> None:
        """Take a pending job, to be submitted after `wait_s` seconds at the earliest."""
        if self._run.stopped:
            self._stages.defer(job)
        elif wait_s > 0:
            self._delayed[job] = self._run.call_later(wait_s, self._enqueue_delayed, job)
        else:
            self._queue.put_nowait(job)

    async def wait_for_capacity(self, max_queued: int = MAX_QUEUED) -> None:
        """Wait until fewer than `max_queued` jobs are queued, or the run stops."""
        while self._queue.qsize() >= max_queued and not self._run.stopped:
            self._queue_shrank.clear()
            await self._queue_shrank.wait()

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
            await self._budget.wait()
            await self._run.rate_limiter.acquire()
        except asyncio.CancelledError:
            self._stages.defer(job)
            raise
        self._budget.reserve()
        posts.spawn(self._submit(job))

    # ---- one POST ----------------------------------------------------------------------------------------

    async def _submit(self, job: InFlightJob) -> None:
        try:
            # The intent is recorded first: after a crash from here on, the job must not be submitted again unasked.
            await self._executor.apply(job, lifecycle.SUBMIT)
            sent_s = await self._run.rate_limiter.confirm()
            if sent_s is None or self._run.stopped:  # Submits were paused, or the run was stopped, since the intent.
                await self._executor.apply(job, lifecycle.REVERT)
                return
            job.sent_s = sent_s
            verdict = await self._post(job)
            await self._settle(job, verdict)
        finally:
            early_callback = self._run.early_callbacks.pop(job.job_no, None)
            self._post_slots.release()
            self._budget.release()
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

    async def _settle(self, job: InFlightJob, verdict: PostVerdict) -> None:
        """Record the result of a POST and hand the job to the next stage."""
        report = self._update_rate(verdict, job.sent_s)
        transition = self._decide(job, verdict)
        if not await self._executor.apply(job, transition):
            message = f"the gateway returned the request_id of another job, {transition.request_id}"
            await self._executor.apply(job, self._decide(job, Ambiguous(message)))
        report()

    def _decide(self, job: InFlightJob, verdict: PostVerdict) -> Transition:
        resubmit = self._run.settings.ambiguous is AmbiguousPolicy.RESUBMIT and not self._run.stopped
        transition = lifecycle.after_post(
            verdict, refusals=job.refusals, jitter=self._run.random(), resubmit_ambiguous=resubmit
        )
        is_rate_limited = isinstance(verdict, Refused) and verdict.refusal is Refusal.RATE_LIMITED
        if transition.retry_reason and not is_rate_limited:
            is_outage = not isinstance(verdict, Ambiguous) and self._breaker.is_degraded
            if not isinstance(verdict, NotSent) and not is_outage:  # Errors of an outage do not count against a job.
                job.refusals += 1
            wait_s = max(transition.wait_s, self._run.retries.spend(self._run.now_s()))
            return msgspec.structs.replace(transition, wait_s=wait_s)
        return transition

    # ---- rate --------------------------------------------------------------------------------------------

    def _update_rate(self, verdict: PostVerdict, sent_s: float) -> Callable[[], None]:
        """Adjust the rate to the result of a POST. Return a function that reports the changes to observers.

        The rate is adjusted immediately, because other POSTs may be about to be sent. Observers are told after the
        result is recorded.
        """
        now_s = self._run.now_s()
        controller, events = self._run.rate_limiter.controller, self._run.events
        pause: tuple[float, str] | None = None
        match verdict:
            case Refused(Refusal.RATE_LIMITED, status, detail, retry_after_s):
                self._run.stats.rate_limited += status == 429
                controller.on_rate_limited(sent_s, now_s, retry_after_s)
                pause = (controller.paused_s(now_s), detail)
            case NotSent(reason):
                pause = self._back_off(reason, None, sent_s)
            case Refused(Refusal.RETRYABLE, _, detail, retry_after_s):
                controller.on_response(sent_s, now_s)
                pause = self._back_off(detail, retry_after_s, sent_s)
            case _:
                controller.on_response(sent_s, now_s)
                self._breaker.record_success()
        per_s = controller.per_s

        def report() -> None:
            events.emit_rate(per_s)
            if pause:
                events.emit_submits_paused(*pause)

        return report

    def _back_off(self, reason: str, retry_after_s: float | None, sent_s: float) -> tuple[float, str] | None:
        """Pause all submits during an outage; a single failure delays only its own job.

        Return seconds and reason of the pause, or None.
        """
        now_s, timeout_s = self._run.now_s(), self._run.settings.job_timeout_s
        pause_s = self._breaker.record_failure(sent_s, now_s, self._run.random())
        if self._breaker.is_open and now_s - self._breaker.failing_since_s >= timeout_s:
            outage = f"the gateway has accepted no request for {timeout_s:g} s ({reason})"
            self._run.stop(RunStopped(outage, "check the gateway, then run again to resume"))
        wait_s = max(pause_s, retry_after_s or 0.0)
        if wait_s <= 0:
            return None
        self._run.rate_limiter.controller.pause(now_s, wait_s)
        return wait_s, reason

    # ---- the end of the run ------------------------------------------------------------------------------

    def _enqueue_delayed(self, job: InFlightJob) -> None:
        del self._delayed[job]
        self.enqueue(job)

    def _stop(self) -> None:
        self._dispatch.cancel()
        self._queue_shrank.set()
        delayed, self._delayed = self._delayed, {}
        for job, timer in delayed.items():
            timer.cancel()
            self._stages.defer(job)

    def _drain_queue(self) -> None:
        while not self._queue.empty():
            self._stages.defer(self._queue.get_nowait())
