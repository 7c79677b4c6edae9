"""POST jobs to the gateway. This is the only stage that spends money.

The order of steps must not change: a submit is due, its intent is recorded, the rate limiter allows the POST, the
POST is sent, and its result is recorded. Nothing else happens before the result is durable. Nothing can be cancelled
between the intent and the record of the result. When the engine aborts, the wait for the answer is shortened, and
jobs whose POST is still pending become ambiguous.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Callable
from typing import Any

import anyio
import msgspec

from krea_batch.errors import FencedError, LedgerError, RunStopped
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.pipeline.charge_budget import Budget
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.protocols import Stages
from krea_batch.pipeline.reference_uploads import ReferenceUploads
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules import lifecycle
from krea_batch.rules.circuit_breaker import CircuitBreaker
from krea_batch.rules.lifecycle import Transition
from krea_batch.rules.pending_limit import PendingLimit
from krea_batch.rules.verdicts import Accepted, Ambiguous, NotSent, PollFailed, PostVerdict, Refusal, Refused
from krea_batch.settings import AmbiguousPolicy

POST_GRACE_S = 5.0  # chosen: most answers of pending POSTs arrive within it, and an abort stays fast
MAX_QUEUED = 1000  # chosen: one second at 1000/s; jobs behind them stay in their file and need no memory
MAX_CONCURRENT_POSTS = 256  # chosen: answers of 1 s at 256/s; a slower gateway gains nothing from more
FOUND_LIMIT_INTERVAL_S = 10.0  # chosen: a killed run knows its limit as of ten seconds ago
NEVER_REACHED_S = 20.0  # chosen: enough for a network that is just coming up, and little for a mistyped address
HOLD_REPORT_S = 60.0  # chosen: how often listeners are told that submits are held


class Submitter:
    """Submits jobs at the rate of the run, each in a short task of its own.

    `on_callback` takes a callback that arrived while the job's POST was pending.
    """

    def __init__(
        self,
        run: RunContext,
        executor: TransitionExecutor,
        stages: Stages,
        budget: Budget,
        references: ReferenceUploads,
        on_callback: Callable[[int, CallbackPayload], None],
    ) -> None:
        self._run = run
        self._references = references
        self._executor = executor
        self._stages = stages
        self._budget = budget
        self._on_callback = on_callback
        self._queue: asyncio.Queue[InFlightJob] = asyncio.Queue()
        self._queue_shrank = asyncio.Event()
        self._delayed: dict[InFlightJob, asyncio.TimerHandle] = {}
        self._is_dispatching = False  # whether a job was taken from the queue and waits for its turn
        self._pending = 0  # jobs that are being submitted: from the intent to the record of the result
        self._pending_posts: set[asyncio.Task[Any] | None] = set()  # tasks that wait for an answer
        self._pending_limit = PendingLimit(MAX_CONCURRENT_POSTS)
        self._breaker = CircuitBreaker(identical_refusals=run.settings.max_identical_failures != 0)
        self._was_reached = False  # whether a POST of this run was sent
        self._conditions_changed = asyncio.Event()
        self._dispatch = anyio.CancelScope()
        run.on_stopping(self._stop)

    def enqueue(self, job: InFlightJob, wait_s: float = 0.0) -> None:
        """Take a pending job, to be submitted after `wait_s` seconds at the earliest."""
        if self._run.stopped:
            self._stages.defer(job)
            return
        self._references.start(job)
        if wait_s > 0:
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
        return self._queue.qsize() + len(self._delayed) + self._is_dispatching

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
        self._is_dispatching = True
        try:
            await self._wait_for_conditions()
            await self._budget.wait()
            await self._references.prepare(job)
            await self._run.rate_limiter.acquire()
        except asyncio.CancelledError:
            self._stages.defer(job)
            raise
        finally:
            self._is_dispatching = False
        self._budget.reserve()
        self._pending += 1
        posts.spawn(self._submit(job))

    async def _wait_for_conditions(self) -> None:
        """Wait until another POST may be pending, and its image could be stored."""
        while not self._may_submit():
            if self._run.delivery.is_failing:
                reason = f"no image can be stored: {self._run.delivery.reason}"
                self._run.events.emit_submits_paused(HOLD_REPORT_S, reason)
            self._conditions_changed.clear()
            with anyio.move_on_after(HOLD_REPORT_S):
                await self._conditions_changed.wait()

    def _may_submit(self) -> bool:
        controller = self._run.rate_limiter.controller
        max_pending = 1 if self._breaker.is_open else self._pending_limit.max_pending(controller.pace_per_s)
        in_flight = self._run.in_flight_limit.in_use - self.waiting
        return self._pending < max_pending and self._run.delivery.may_submit(in_flight, controller.per_s)

    def recheck(self) -> None:
        """Check again whether a POST may be sent: a job has ended, so an image may be stored."""
        self._conditions_changed.set()

    # ---- one POST ----------------------------------------------------------------------------------------

    async def _submit(self, job: InFlightJob) -> None:
        started_s = self._run.now_s()
        is_let_through = True
        try:
            # The intent is recorded first: after a crash from here on, only the user may submit the job again.
            await self._executor.apply(job, lifecycle.SUBMIT)
            is_let_through = False
            sent_s = await self._run.rate_limiter.confirm()
            # Submits were paused, the run was stopped, or this process stalled, since the intent was recorded.
            if sent_s is None or self._run.stopped or not self._run.ledger.may_send():
                if sent_s is not None:
                    self._run.rate_limiter.controller.on_not_sent(sent_s)
                await self._executor.apply(job, lifecycle.REVERT)
                return
            job.sent_s = sent_s
            verdict, doubt = await self._post(job)
            if isinstance(verdict, Accepted | Refused):
                self._pending_limit.record_answer(self._run.now_s() - started_s)
            await self._settle(job, verdict, doubt)
        finally:
            if is_let_through:
                self._run.rate_limiter.give_up()
            early_callback = self._run.early_callbacks.pop(job.job_no, None)
            self._pending -= 1
            self._budget.release()
            self.recheck()
        if early_callback:
            self._on_callback(job.job_no, early_callback)

    async def _post(self, job: InFlightJob) -> tuple[PostVerdict, str]:
        """Send the POST of a job. Return its result, and why it was ambiguous before a poll proved it, else ""."""
        task = current_task()
        self._pending_posts.add(task)
        sending = False
        verdict: PostVerdict = Ambiguous("the run was stopped before the answer arrived")

        async def on_sending() -> str | None:
            nonlocal sending
            await self._run.rate_limiter.hold(job.sent_s, self._run.now_s() - connecting_s)
            if not self._run.ledger.may_send():
                return "this process stalled for too long, so its jobs may have been taken over"
            sending = True
            self._run.stats.submits += 1
            return None

        try:
            callback = ""
            if self._run.callbacks:
                self._run.early_callbacks[job.job_no] = None
                callback = self._run.callbacks.url_of(job.job_no)
            body = job.signed_body or job.body
            connecting_s = self._run.now_s()
            verdict = await self._run.gateway.submit(body, callback=callback, on_sending=on_sending)
            if not isinstance(verdict, Ambiguous):
                return verdict, ""
            return await self._prove(job, verdict), self._name_candidates(job, verdict).reason
        except asyncio.CancelledError:
            # The cancellation is not passed on: the result of a POST that was sent must be recorded.
            if task:
                task.uncancel()
            if not sending:
                return NotSent("the run was stopped before anything was sent"), ""
            assert isinstance(verdict, Ambiguous)  # noqa: S101 - nothing is awaited after the others
            return self._name_candidates(job, verdict), ""
        finally:
            self._pending_posts.discard(task)

    async def _prove(self, job: InFlightJob, verdict: Ambiguous) -> PostVerdict:
        """Turn an ambiguous POST into an accepted one if polls find the request_id that is likely its own."""
        polled = [(request_id, await self._run.prove(request_id)) for request_id in verdict.request_ids]
        accepted = lifecycle.prove_one(polled)
        if accepted and len(polled) > 1:
            # In an outage, the gateway may deny every request_id. So it must still know this one.
            accepted = lifecycle.prove_one([(accepted.request_id, await self._run.prove(accepted.request_id))])
        if accepted:
            return accepted
        if request_id := self._called_back(job):
            progress = await self._run.prove(request_id)
            if not isinstance(progress, PollFailed):
                return Accepted(request_id, progress)
        return self._name_candidates(job, verdict)

    def _name_candidates(self, job: InFlightJob, verdict: Ambiguous) -> Ambiguous:
        """Add the request_ids that an ambiguous POST may have to its reason, since they are stored nowhere else."""
        if candidates := self._candidates(job, verdict):
            reason = f"{verdict.reason}; its request_id may be {' or '.join(candidates)}"
            return Ambiguous(reason, verdict.answer)
        return verdict

    def _candidates(self, job: InFlightJob, verdict: Ambiguous) -> list[str]:
        """Return the request_ids that an ambiguous POST may have.

        They are from an answer that is otherwise damaged, and from a callback with the token of the job.
        """
        named = (*verdict.request_ids, self._called_back(job))
        return list(dict.fromkeys(request_id for request_id in named if request_id))

    def _called_back(self, job: InFlightJob) -> str | None:
        """Return the request_id of a callback that arrived while the POST was pending, or None."""
        early_callback = self._run.early_callbacks.get(job.job_no)
        return early_callback.request_id if early_callback else None

    def _cancel_pending_posts(self) -> None:
        for task in self._pending_posts:
            if task:
                task.cancel()

    async def _settle(self, job: InFlightJob, verdict: PostVerdict, doubt: str) -> None:
        """Record the result of a POST, as `_post` returns it, and hand the job to the next stage."""
        report = self._update_rate(verdict, job.sent_s)
        if isinstance(verdict, Accepted):
            self._run.count_in_process(job)
        transition = self._decide(job, verdict)
        try:
            is_recorded = await self._executor.apply(job, transition)
        except FencedError:
            if doubt:  # If another job has the request_id that a poll has proven, the reason names all candidates.
                await self._executor.record_late(job, self._decide(job, Ambiguous(doubt)))
            raise
        except LedgerError:
            if doubt:  # The request_id that a poll has proven may be that of another POST.
                self._executor.report_doubt(job, doubt)
            raise
        if not is_recorded:
            self._run.end_in_process(job)
            message = f"the gateway returned the request_id of another job, {transition.request_id}"
            await self._executor.apply(job, self._decide(job, Ambiguous(f"{doubt}; {message}" if doubt else message)))
        report()

    def _decide(self, job: InFlightJob, verdict: PostVerdict) -> Transition:
        resubmit = self._run.settings.ambiguous is AmbiguousPolicy.RESUBMIT and not self._run.stopped
        transition = lifecycle.after_post(
            verdict,
            refusals=job.refusals,
            jitter=self._run.random(),
            resubmit_ambiguous=resubmit,
            is_outage=self._breaker.is_open,
        )
        is_rate_limited = isinstance(verdict, Refused) and verdict.refusal is Refusal.RATE_LIMITED
        if not transition.retry_reason or is_rate_limited:
            return transition
        counts = isinstance(verdict, Ambiguous) or (isinstance(verdict, Refused) and not self._breaker.is_degraded)
        job.refusals += counts  # Refusals during an outage do not count against a job.
        wait_s = max(transition.wait_s, self._run.retries.spend(self._run.now_s()))
        return msgspec.structs.replace(transition, wait_s=wait_s)

    # ---- rate --------------------------------------------------------------------------------------------

    def _update_rate(self, verdict: PostVerdict, sent_s: float) -> Callable[[], None]:
        """Adjust the rate to the result of a POST. Return a function that reports the changes to listeners.

        The rate is adjusted immediately, because other POSTs may be about to be sent. Listeners are told after the
        result is recorded.
        """
        now_s = self._run.now_s()
        controller, events = self._run.rate_limiter.controller, self._run.events
        pause_s, reason = self._breaker.record(verdict, sent_s, now_s, self._run.random()), ""
        self._was_reached = self._was_reached or not isinstance(verdict, NotSent)
        match verdict:
            case Refused(Refusal.RATE_LIMITED, status, reason, retry_after_s):
                self._run.stats.rate_limited += status == 429
                controller.on_rate_limited(sent_s, now_s, retry_after_s)
                pause_s = controller.paused_s(now_s)
            case NotSent(reason):
                controller.on_not_sent(sent_s)
                pause_s = self._pause_for_outage(pause_s, reason)
            case Refused(_, _, reason, retry_after_s):
                controller.on_response(sent_s, now_s, accepted=False)
                pause_s = self._pause_for_outage(max(pause_s, retry_after_s or 0.0), reason)
            case Ambiguous(reason):
                controller.on_response(sent_s, now_s, accepted=False)
                pause_s = self._pause_for_outage(pause_s, reason)
            case Accepted():  # the last one
                controller.on_response(sent_s, now_s)
        per_s, found = controller.per_s, controller.found

        def report() -> None:
            # Not earlier: this raises if the ledger has failed, and the request_id has to be kept before that.
            self._run.record_found_limit(found, FOUND_LIMIT_INTERVAL_S)
            events.emit_rate(per_s, found)
            if pause_s > 0:
                events.emit_submits_paused(pause_s, reason)

        return report

    def _pause_for_outage(self, pause_s: float, reason: str) -> float:
        """Pause all submits for `pause_s` seconds, and stop the run if an outage lasts too long. Return `pause_s`."""
        now_s, timeout_s = self._run.now_s(), self._run.settings.job_timeout_s
        if self._breaker.is_open and now_s - self._breaker.failing_since_s >= timeout_s:
            outage = f"the gateway has accepted no request for {timeout_s:g} s ({reason})"
            self._run.stop(RunStopped(outage, "check the gateway, then run again to resume"))
        if self._breaker.is_open and not self._was_reached:
            pause_s = self._stop_if_never_reached(pause_s, now_s, reason)
        if pause_s > 0:
            self._run.rate_limiter.controller.pause(now_s, pause_s)
        return pause_s

    def _stop_if_never_reached(self, pause_s: float, now_s: float, reason: str) -> float:
        """Stop the run if it could not send a first POST for NEVER_REACHED_S. Return the pause."""
        remaining_s = self._breaker.failing_since_s + NEVER_REACHED_S - now_s
        if remaining_s <= 0:
            next_step = "check the gateway's address and the network with krea-batch doctor, then run again"
            self._run.stop(RunStopped(f"no request has reached the gateway ({reason})", next_step))
        return min(pause_s, max(0.0, remaining_s))

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
