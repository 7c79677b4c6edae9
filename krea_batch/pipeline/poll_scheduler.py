"""Poll accepted jobs until they are completed or end.

All waiting jobs are in one heap, ordered by the time of their next poll, and one task sleeps until the first is due.
A waiting job costs no CPU time. A poll whose answer cannot be read never changes the state of a job. A job that ended
in ERROR, which is not charged, goes back to the submitter.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Iterable
from itertools import count

import anyio
from aiolimiter import AsyncLimiter

from krea_batch.errors import GatewayError
from krea_batch.events import CallbackResult
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.jobs import ErrorInfo, State
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.protocols import Stages
from krea_batch.pipeline.rate_limiter import even_limiter
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules import lifecycle
from krea_batch.rules.callback_reliability import CALLBACK_GRACE_S, CallbackReliability
from krea_batch.rules.poll_schedule_by_kind import PollSchedules
from krea_batch.rules.verdicts import Finished, PollFailed, PollVerdict, Progress, Waiting

MAX_CONCURRENT_POLLS = 128  # chosen: answers of 0.2 s at 640/s; more would only queue at the gateway
EXPLORED_SHARE = 0.04  # chosen: one more poll for one job in 25, and a change is noticed within minutes
SUBMIT_QUOTA_SHARE = 0.5  # chosen: of a shared quota; late polls cost less than late submits, which cause the polls
MAX_RESCHEDULED = 10_000  # chosen: rescheduling this many polls blocks the event loop for ten milliseconds
MAX_KEY_REFUSALS = 3  # chosen: one 401 may be an error of the gateway, three consecutive ones are not
IDLE_S = 3600.0  # chosen: how long to sleep while nothing is scheduled; an event ends the sleep sooner


class PollScheduler:
    """Polls every accepted job when its schedule says so."""

    def __init__(self, run: RunContext, executor: TransitionExecutor, stages: Stages) -> None:
        self._run = run
        self._executor = executor
        self._stages = stages
        self._schedules = PollSchedules(
            run.settings.poll_interval_s, run.settings.poll_lag_weight, timeout_s=run.settings.job_timeout_s
        )
        self._plan_version = self._schedules.version
        self._limiter: AsyncLimiter | None = None
        self._heap: list[tuple[float, int, InFlightJob]] = []
        self._by_job_no: dict[int, InFlightJob] = {}  # accepted jobs, if callbacks may name them
        self._reliability = CallbackReliability()
        self._awaiting_callback: set[int] = set()  # jobs that ended recently, without a callback so far
        self._sequence = count()
        self._due_changed = asyncio.Event()
        self._poll_slots = asyncio.Semaphore(MAX_CONCURRENT_POLLS)
        self._tasks = TaskPool()
        self._paused_until_s = 0.0

    def put(self, job: InFlightJob, progress: Progress) -> None:
        """Take an accepted job, with the status that the answer to its POST contained."""
        self._track_callback(job)
        if not isinstance(progress, Waiting):
            self._schedule_poll(job, 0.0)
            return
        exploring_poll_s = self._schedules.first_exploring_poll_s(job.kind)
        job.exploring = exploring_poll_s is not None
        if exploring_poll_s is not None:
            self._schedule_poll(job, exploring_poll_s)
        else:
            wait_s, job.on_schedule = self._next_poll(job)
            self._schedule_poll(job, wait_s)

    def add_past_latencies(self, latencies_s: Iterable[tuple[str, float]]) -> None:
        """Add latencies of earlier runs, each with the kind of its job."""
        for kind, latency_s in latencies_s:
            if latency_s <= self._run.settings.job_timeout_s:  # Longer ones cannot be seen within one run.
                self._schedules.observe(kind, latency_s)
        self._plan_version = self._schedules.version

    def resume(self, job: InFlightJob) -> None:
        """Take a job that an earlier run left accepted, and poll it now."""
        job.accepted_s = job.last_polled_s = self._run.now_s()
        job.resumed = True
        self._track_callback(job)
        self._schedule_poll(job, 0.0)

    def on_callback(self, job_no: int, payload: CallbackPayload) -> CallbackResult:
        """Poll a job now, if a callback says that it has ended.

        However many callbacks arrive, they cause at most one additional poll of a job in each interval.
        """
        job = self._by_job_no.get(job_no)
        if job is None:
            if job_no in self._awaiting_callback:
                self._awaiting_callback.discard(job_no)
                self._record_callback(delivered=True)
                return "not_needed"
            return "not_waiting"
        now_s = self._run.now_s()
        names_another_job = payload.request_id not in (None, job.request_id)
        is_repeated = now_s - job.last_callback_s < self._run.settings.poll_interval_s
        if names_another_job or not payload.ended or is_repeated:
            return "not_needed"
        job.last_callback_s = now_s
        job.on_schedule = False
        if job.heap_seq >= 0:
            self._schedule_poll(job, 0.0)
        else:
            job.callback_during_poll = True  # A poll is pending, and may have been sent too early.
        return "expedited"

    async def work(self) -> None:
        """Poll the jobs that are due, forever."""
        settings = self._run.settings
        if settings.poll_rate:
            self._limiter = even_limiter(settings.poll_rate.per_s)
        elif settings.shared_quota and not settings.rate.is_auto:
            self._limiter = even_limiter(settings.rate.per_s * (1.0 - SUBMIT_QUOTA_SHARE))
        async with self._tasks as polls:
            while True:
                job = await self._next_due()
                await self._poll_slots.acquire()
                if self._limiter:
                    await self._limiter.acquire()
                if settings.shared_quota:
                    await self._run.rate_limiter.acquire_shared()
                polls.spawn(self._poll(job))

    # ---- when to poll ------------------------------------------------------------------------------------

    async def _next_due(self) -> InFlightJob:
        while True:
            now_s = self._run.now_s()
            due_s = max(self._heap[0][0], self._paused_until_s) if self._heap else now_s + IDLE_S
            if self._heap and due_s <= now_s:
                _, heap_seq, job = heapq.heappop(self._heap)
                if heap_seq != job.heap_seq:
                    continue  # The poll was rescheduled; this entry is stale.
                job.heap_seq = -1
                return job
            self._due_changed.clear()
            with anyio.move_on_after(due_s - now_s):
                await self._due_changed.wait()

    def _next_poll(self, job: InFlightJob) -> tuple[float, bool]:
        """Return the seconds from the last poll or the acceptance to the next one, and whether it is as planned.

        Exploring jobs are polled sooner than planned, and so are a few others if the gateway reports no latencies.
        """
        schedule, planned_s = self._schedules.for_kind(job.kind), self._planned_wait_s(job)
        age_s = job.last_polled_s - job.accepted_s
        if job.exploring:
            job.exploring = schedule.is_worth_exploring(age_s)
            wait_s = schedule.exploring_poll_s(age_s) if job.exploring else planned_s
        elif schedule.estimate.imprecise and not job.resumed and self._run.random() < EXPLORED_SHARE:
            wait_s = schedule.interval_s + self._run.random() * (planned_s - schedule.interval_s)
        else:
            wait_s = planned_s
        return wait_s, wait_s >= planned_s

    def _planned_wait_s(self, job: InFlightJob) -> float:
        """Return the seconds from the last poll, or from the acceptance, to the next poll of the plan."""
        schedule = self._schedules.for_kind(job.kind)
        if self._reliability.reliable and job.last_polled_s == job.accepted_s:
            return schedule.quantile_s()
        return schedule.next_poll_s(job.last_polled_s - job.accepted_s)

    def _replan_if_changed(self) -> None:
        if self._plan_version != self._schedules.version:
            self._replan()

    def _replan(self) -> None:
        """Reschedule the waiting polls by the current plan."""
        self._plan_version = self._schedules.version
        if len(self._heap) <= MAX_RESCHEDULED:
            self._heap = [
                (job.last_polled_s + self._planned_wait_s(job) if job.on_schedule else due_s, heap_seq, job)
                for due_s, heap_seq, job in self._heap
                if heap_seq == job.heap_seq
            ]
            heapq.heapify(self._heap)
            self._due_changed.set()

    def _schedule_poll(self, job: InFlightJob, wait_s: float) -> None:
        """Poll the job in `wait_s` seconds, in place of the poll that is scheduled for it."""
        job.heap_seq = next(self._sequence)
        entry = (self._run.now_s() + wait_s, job.heap_seq, job)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._due_changed.set()

    # ---- callbacks ---------------------------------------------------------------------------------------

    def callback_wait_s(self, job: InFlightJob) -> float:
        """Return for how many seconds to expect a callback for an ambiguous job; 0 if none is likely."""
        if not (self._run.callbacks and self._reliability.reliable):
            return 0.0
        return min(self._schedules.for_kind(job.kind).quantile_s(), self._run.settings.job_timeout_s)

    def _track_callback(self, job: InFlightJob) -> None:
        if self._run.callbacks:
            self._by_job_no[job.job_no] = job

    def _untrack_callback(self, job: InFlightJob) -> None:
        """Record whether a callback arrived for a job that ended, now or after CALLBACK_GRACE_S."""
        if self._by_job_no.pop(job.job_no, None) is None or job.resumed:
            return
        if job.last_callback_s > -math.inf:
            self._record_callback(delivered=True)
        else:
            self._awaiting_callback.add(job.job_no)
            self._run.call_later(CALLBACK_GRACE_S, self._on_callback_missed, job.job_no)

    def _on_callback_missed(self, job_no: int) -> None:
        if job_no in self._awaiting_callback:
            self._awaiting_callback.discard(job_no)
            self._record_callback(delivered=False)

    def _record_callback(self, *, delivered: bool) -> None:
        was_reliable = self._reliability.reliable
        self._reliability.record(delivered=delivered)
        if was_reliable != self._reliability.reliable:
            self._replan()

    # ---- one poll ----------------------------------------------------------------------------------------

    async def _poll(self, job: InFlightJob) -> None:
        try:
            job.on_schedule = False
            job.polls += 1
            self._run.stats.polls += 1
            verdict = await self._tasks.cancellable(self._run.gateway.poll, job.request_id)
        finally:
            self._poll_slots.release()
        self._run.events.emit_poll(job, verdict)
        await self._settle(job, verdict)

    async def _settle(self, job: InFlightJob, verdict: PollVerdict) -> None:
        """Record the result of a poll and hand the job to the next stage, or schedule its next poll."""
        transition = lifecycle.after_poll(
            verdict,
            errors=job.errors,
            max_attempts=self._run.settings.max_attempts,
            jitter=self._run.random(),
        )
        if transition is None:
            assert isinstance(verdict, Waiting | PollFailed)  # noqa: S101 - all others have a transition
            await self._poll_again(job, verdict)
            return
        if isinstance(verdict, Finished):
            self._observe(job, verdict)
            self._run.events.emit_generation(job, self._trusted_latency_s(job, verdict))
        else:
            self._withdraw(job)
        self._untrack_callback(job)
        self._run.end_in_process(job)
        await self._executor.apply(job, transition)

    def _observe(self, job: InFlightJob, finished: Finished) -> None:
        """Add the job's latency to the schedules: the gateway's value if it is plausible, else our own.

        Our own value is the time of the callback, or an upper bound, the time of the poll.
        """
        age_s = self._run.now_s() - job.accepted_s
        last_polled_s = job.last_polled_s - job.accepted_s
        if job.resumed:
            if finished.took_s is not None and 0 <= finished.took_s <= self._run.wall_clock() - job.accepted_at:
                self._schedules.observe(job.kind, finished.took_s)
        elif (took_s := self._trusted_latency_s(job, finished)) is not None:
            self._schedules.observe(job.kind, took_s, last_polled_s)
        elif job.last_callback_s >= job.last_polled_s:
            self._schedules.observe(job.kind, job.last_callback_s - job.accepted_s, last_polled_s)
        else:
            self._schedules.observe(job.kind, age_s, last_polled_s, exact=False)
        self._replan_if_changed()

    def _trusted_latency_s(self, job: InFlightJob, finished: Finished) -> float | None:
        """Return the gateway's latency if it says that the job ended between the last two polls; else None."""
        age_s, last_polled_s = self._run.now_s() - job.accepted_s, job.last_polled_s - job.accepted_s
        took_s = finished.took_s
        return took_s if took_s is not None and last_polled_s <= took_s <= age_s else None

    async def _poll_again(self, job: InFlightJob, verdict: Waiting | PollFailed) -> None:
        """Schedule the next poll of an unfinished job, or end it after `job_timeout_s`."""
        failure = verdict if isinstance(verdict, PollFailed) else None
        now_s = self._run.now_s()
        schedule = self._schedules.for_kind(job.kind)
        min_wait_s = schedule.interval_s
        if failure is None:
            job.failures = job.key_refusals = 0
            if not job.resumed:
                last_polled_s = job.last_polled_s - job.accepted_s
                self._schedules.observe_pending(job.kind, now_s - job.accepted_s, last_polled_s)
            job.last_polled_s = now_s
            self._replan_if_changed()
            wait_s, on_schedule = self._next_poll(job)
        else:
            on_schedule = False
            job.failures += 1
            self._run.events.emit_retry(job, "poll", failure.reason)
            wait_s = schedule.retry_delay_s(job.failures, failure.retry_after_s)
            wait_s = max(wait_s, self._run.retries.spend(now_s))
            min_wait_s = max(min_wait_s, failure.retry_after_s or 0.0)
            if self._stop_if_key_refused(job, failure):
                return
            if failure.status == 429:
                self._paused_until_s = max(self._paused_until_s, now_s + (failure.retry_after_s or wait_s))
                if self._run.settings.shared_quota:
                    self._run.rate_limiter.controller.on_rate_limited(now_s, now_s, failure.retry_after_s)
        if job.callback_during_poll:
            job.callback_during_poll, wait_s, min_wait_s = False, 0.0, 0.0
        job.hopeless_polls = job.hopeless_polls + 1 if lifecycle.is_hopeless(verdict) else 0
        timeout_s = self._run.settings.job_timeout_s
        if now_s - job.accepted_s >= timeout_s or self._is_given_up(job):
            self._withdraw(job)
            self._by_job_no.pop(job.job_no, None)
            self._run.end_in_process(job)
            await self._time_out(job, verdict)
        else:
            job.on_schedule = on_schedule and now_s + wait_s < job.accepted_s + timeout_s
            self._schedule_poll(job, min(wait_s, max(job.accepted_s + timeout_s - now_s, min_wait_s)))

    def _withdraw(self, job: InFlightJob) -> None:
        """Remove from the schedules a job that leaves this stage without having been completed."""
        if not job.resumed:
            self._schedules.withdraw(job.kind, job.last_polled_s - job.accepted_s)

    def _stop_if_key_refused(self, job: InFlightJob, failure: PollFailed) -> bool:
        """Stop the run if the gateway keeps refusing the API key. The job is left to the next run."""
        job.key_refusals = job.key_refusals + 1 if failure.status in (401, 403) else 0
        if job.key_refusals < MAX_KEY_REFUSALS:
            return False
        self._run.stop(GatewayError(failure.status, failure.reason, "use a valid API key, then run again to resume"))
        self._by_job_no.pop(job.job_no, None)
        self._run.end_in_process(job)
        self._stages.defer(job)
        return True

    def _is_given_up(self, job: InFlightJob) -> bool:
        """Return whether an earlier run gave up a job, and it still shows no sign that it will end."""
        return (
            job.was_accepted_earlier
            and self._run.wall_clock() - job.accepted_at >= self._run.settings.job_timeout_s
            and job.hopeless_polls >= lifecycle.MAX_HOPELESS_POLLS
        )

    async def _time_out(self, job: InFlightJob, verdict: Waiting | PollFailed) -> None:
        waited_s = self._run.settings.job_timeout_s
        if self._is_given_up(job):
            waited_s = self._run.wall_clock() - job.accepted_at
        message = f"not finished after {waited_s:.0f} s ({lifecycle.describe_poll(verdict)})"
        await self._executor.apply(job, lifecycle.time_out(State.ACCEPTED, ErrorInfo("timed_out", message)))
