"""Accepted flights come in; they go out finished, or ended, or back to the submitter (ERROR is not charged).

Newcomers: all waiting jobs lie in one heap by the instant of their next poll, and one task sleeps until the
first is due. A job costs nothing while it waits. What a poll cannot tell never changes a job's state.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Iterable
from itertools import count

import anyio
from aiolimiter import AsyncLimiter

from krea_batch.errors import GatewayError
from krea_batch.events import CallbackResult
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.jobs import ErrorInfo, Outcome, State
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.rate_limiter import even_limiter
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules import lifecycle
from krea_batch.rules.callback_reliability import CALLBACK_GRACE_S, CallbackReliability
from krea_batch.rules.lifecycle import Download, EndJob, PollAgain, Requeue
from krea_batch.rules.poll_schedule import EXPLORING_JOBS
from krea_batch.rules.poll_schedule_by_kind import PollSchedules
from krea_batch.rules.verdicts import Finished, PollFailed, PollVerdict, Progress, Waiting

MAX_CONCURRENT_POLLS = 128  # chosen: answers of 0.2 s at 640/s; more would only queue at the gateway
EXPLORED_SHARE = 0.04  # chosen: a poll more for one job in 25, and a change is seen within minutes
SUBMIT_QUOTA_SHARE = 0.5  # chosen: of a shared quota; polls are served late rather than submits, which bring them
MAX_RESCHEDULED = 10_000  # chosen: moving so many waiting polls takes the loop ten milliseconds
MAX_KEY_REFUSALS = 3  # chosen: one 401 may be a stumble of the gateway, three in a row are its word


class PollScheduler:
    """Looks at every accepted flight when the schedule says so.

    `finished` takes a flight whose images can be fetched, `again` one to be submitted once more after so many
    seconds, `ended` one that ended here, `left` one that stays on record for the next run.
    """

    def __init__(
        self,
        run: RunContext,
        *,
        on_finished: Callable[[InFlightJob], None],
        on_errored: Callable[[InFlightJob, float], None],
        on_ended: Callable[[InFlightJob, Outcome], None],
        on_deferred: Callable[[InFlightJob], None],
    ) -> None:
        self._run = run
        self._on_finished = on_finished
        self._on_errored = on_errored
        self._on_ended = on_ended
        self._on_deferred = on_deferred
        self._schedules = PollSchedules(run.settings.poll_interval_s, run.settings.poll_lag_weight)
        self._plan_version = self._schedules.version
        self._exploring_jobs = 0
        self._limiter: AsyncLimiter | None = None
        self._heap: list[tuple[float, int, InFlightJob]] = []
        self._by_job_no: dict[int, InFlightJob] = {}  # accepted flights, where callbacks may name them
        self._reliability = CallbackReliability()
        self._awaiting_callback: set[int] = set()  # jobs that ended a moment ago, and no callback came so far
        self._sequence = count()
        self._due_changed = asyncio.Event()
        self._poll_slots = asyncio.Semaphore(MAX_CONCURRENT_POLLS)
        self._tasks = TaskPool()
        self._paused_until_s = 0.0

    def put(self, flight: InFlightJob, progress: Progress) -> None:
        """Take an accepted flight, with what the answer to its POST already said."""
        self._track_callback(flight)
        if not isinstance(progress, Waiting):
            self._schedule_poll(flight, 0.0)
            return
        schedule = self._schedules.for_kind(flight.kind)
        flight.exploring = self._exploring_jobs < EXPLORING_JOBS and schedule.exploring
        self._exploring_jobs += flight.exploring
        if schedule.imprecise and self._run.random() < EXPLORED_SHARE:
            least_s = schedule.interval_s
            self._schedule_poll(flight, least_s + self._run.random() * (schedule.first_poll_s() - least_s))
        else:
            self._schedule_by_plan(flight)

    def add_past_latencies(self, latencies_s: Iterable[tuple[str, float]]) -> None:
        """Take how long jobs of earlier runs took, each with its kind."""
        for kind, latency_s in latencies_s:
            self._schedules.observe(kind, latency_s)
        self._plan_version = self._schedules.version

    def resume(self, flight: InFlightJob) -> None:
        """Take a flight that an earlier run left accepted: it is looked at at once."""
        flight.accepted_s = flight.last_polled_s = self._run.now_s()
        flight.resumed = True
        self._track_callback(flight)
        self._schedule_poll(flight, 0.0)

    def on_callback(self, job_no: int, payload: CallbackPayload) -> CallbackResult:
        """Look at a job at once, since a callback says that it has ended.

        However often the gateway calls, that brings one more poll of a job in each interval.
        """
        flight = self._by_job_no.get(job_no)
        if flight is None:
            if job_no in self._awaiting_callback:
                self._awaiting_callback.discard(job_no)
                self._record_callback(delivered=True)
                return "not_needed"
            return "not_waiting"
        now_s = self._run.now_s()
        is_other = payload.request_id not in (None, flight.request_id)
        if is_other or not payload.ended or now_s - flight.last_callback_s < self._run.settings.poll_interval_s:
            return "not_needed"
        flight.last_callback_s = now_s
        flight.on_schedule = False
        if flight.heap_seq >= 0:
            self._schedule_poll(flight, 0.0)
        else:
            flight.callback_during_poll = True  # a poll is in the air, and may have been too early
        return "expedited"

    async def work(self) -> None:
        """Poll what is due, for ever."""
        settings = self._run.settings
        if settings.poll_rate:
            self._limiter = even_limiter(settings.poll_rate.per_s)
        elif settings.shared_quota and not settings.rate.is_auto:
            self._limiter = even_limiter(settings.rate.per_s * (1.0 - SUBMIT_QUOTA_SHARE))
        async with self._tasks as polls:
            while True:
                flight = await self._next_due()
                await self._poll_slots.acquire()
                if self._limiter:
                    await self._limiter.acquire()
                if settings.shared_quota:
                    await self._run.rate_limiter.acquire_shared()
                polls.spawn(self._poll(flight))

    async def _next_due(self) -> InFlightJob:
        while True:
            now_s = self._run.now_s()
            due_s = max(self._heap[0][0], self._paused_until_s) if self._heap else now_s + 3600.0
            if self._heap and due_s <= now_s:
                _, turn, flight = heapq.heappop(self._heap)
                if turn != flight.heap_seq:
                    continue  # it was put forward
                flight.heap_seq = -1
                return flight
            self._due_changed.clear()
            with anyio.move_on_after(due_s - now_s):
                await self._due_changed.wait()

    def _schedule_by_plan(self, flight: InFlightJob) -> None:
        """Put the next poll where the plan wants it, counted from the last look, or else from the acceptance."""
        flight.on_schedule = True
        self._schedule_poll(flight, self._due_s(flight) - self._run.now_s())

    def _due_s(self, flight: InFlightJob) -> float:
        schedule = self._schedules.for_kind(flight.kind)
        if flight.exploring and schedule.exploring:
            return flight.last_polled_s + schedule.interval_s
        if self._reliability.reliable and flight.last_polled_s == flight.accepted_s:
            return flight.accepted_s + schedule.quantile_s()
        return flight.last_polled_s + schedule.next_poll_s(flight.last_polled_s - flight.accepted_s)

    def _replan(self) -> None:
        """Move the polls that wait to where a new plan wants them."""
        self._plan_version = self._schedules.version
        if len(self._heap) <= MAX_RESCHEDULED:
            self._heap = [
                (self._due_s(flight) if flight.on_schedule else due_s, turn, flight)
                for due_s, turn, flight in self._heap
                if turn == flight.heap_seq
            ]
            heapq.heapify(self._heap)
            self._due_changed.set()

    def _schedule_poll(self, flight: InFlightJob, wait_s: float) -> None:
        flight.heap_seq = next(self._sequence)
        entry = (self._run.now_s() + wait_s, flight.heap_seq, flight)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._due_changed.set()

    def callback_wait_s(self, flight: InFlightJob) -> float:
        """Seconds within which the gateway may well call for a job whose acceptance is not known."""
        if not (self._run.callbacks and self._reliability.reliable):
            return 0.0
        return min(self._schedules.for_kind(flight.kind).quantile_s(), self._run.settings.job_timeout_s)

    # ---- callbacks ---------------------------------------------------------------------------------------

    def _track_callback(self, flight: InFlightJob) -> None:
        if self._run.callbacks:
            self._by_job_no[flight.job_no] = flight

    def _untrack_callback(self, flight: InFlightJob) -> None:
        """The flight's end was seen, by whichever way."""
        if self._by_job_no.pop(flight.job_no, None) is None or flight.resumed:
            return
        if flight.last_callback_s > -math.inf:
            self._record_callback(delivered=True)
        else:
            self._awaiting_callback.add(flight.job_no)
            self._run.call_later(CALLBACK_GRACE_S, self._on_callback_missed, flight.job_no)

    def _on_callback_missed(self, n: int) -> None:
        if n in self._awaiting_callback:
            self._awaiting_callback.discard(n)
            self._record_callback(delivered=False)

    def _record_callback(self, *, delivered: bool) -> None:
        was_good = self._reliability.reliable
        if delivered:
            self._reliability.record_delivered()
        else:
            self._reliability.record_missed()
        if was_good != self._reliability.reliable:
            self._replan()

    # ---- one poll ----------------------------------------------------------------------------------------

    async def _poll(self, flight: InFlightJob) -> None:
        try:
            flight.on_schedule = False
            flight.polls += 1
            self._run.stats.polls += 1
            verdict = await self._tasks.cancellable(self._run.gateway.poll, flight.request_id)
        finally:
            self._poll_slots.release()
        self._run.emit_poll(flight, verdict)
        await self._settle(flight, verdict)

    async def _settle(self, flight: InFlightJob, verdict: PollVerdict) -> None:
        decision = lifecycle.after_poll(
            verdict,
            errors=flight.errors,
            max_attempts=self._run.settings.max_attempts,
            jitter=self._run.random(),
        )
        match decision:
            case Download(finished):
                self._untrack_callback(flight)
                self._finish(flight, finished)
            case PollAgain(trouble):
                await self._poll_again(flight, trouble)
            case Requeue(wait_s, reason):
                await self._requeue(flight, wait_s, reason)
            case EndJob(state, kind, message):
                end = LedgerStore.mark_failed if state is State.FAILED else LedgerStore.mark_errored
                why = ErrorInfo(kind, message)
                self._drop(flight)
                self._untrack_callback(flight)
                outcome = await self._run.record(end, flight.job_no, why, self._run.wall_clock(), flight.polls)
                self._end(flight, outcome)

    def _finish(self, flight: InFlightJob, finished: Finished) -> None:
        self._observe(flight, finished)
        self._run.record_later(
            LedgerStore.mark_finished, flight.job_no, finished, self._run.wall_clock(), flight.polls
        )
        flight.finished = finished
        flight.failures = 0
        self._run.emit_generation(flight, self._trusted_latency_s(flight, finished))
        self._run.emit_state_change(flight, State.ACCEPTED, State.FINISHED)
        self._on_finished(flight)

    def _observe(self, flight: InFlightJob, finished: Finished) -> None:
        """How long the job took: the gateway's word where it fits between our last two looks, else ours."""
        age_s = self._run.now_s() - flight.accepted_s
        looked_s = flight.last_polled_s - flight.accepted_s
        if flight.resumed:
            if finished.took_s is not None:
                self._schedules.observe(flight.kind, finished.took_s)
        elif (took_s := self._trusted_latency_s(flight, finished)) is not None:
            self._schedules.observe(flight.kind, took_s, looked_s)
        elif flight.last_callback_s >= flight.last_polled_s:
            self._schedules.observe(flight.kind, flight.last_callback_s - flight.accepted_s, looked_s)
        else:
            self._schedules.observe(flight.kind, age_s, looked_s, exact=False)
        if self._plan_version != self._schedules.version:
            self._replan()

    def _trusted_latency_s(self, flight: InFlightJob, finished: Finished) -> float | None:
        """The gateway's word for how long the job took, where it fits between our last two looks."""
        age_s, looked_s = self._run.now_s() - flight.accepted_s, flight.last_polled_s - flight.accepted_s
        took_s = finished.took_s
        return took_s if took_s is not None and looked_s <= took_s <= age_s else None

    async def _poll_again(self, flight: InFlightJob, trouble: PollFailed | None) -> None:
        now_s = self._run.now_s()
        schedule = self._schedules.for_kind(flight.kind)
        least_s = schedule.interval_s
        if trouble is None:
            flight.failures = flight.key_refusals = 0
            if not flight.resumed:
                looked_s = flight.last_polled_s - flight.accepted_s
                self._schedules.observe_pending(flight.kind, now_s - flight.accepted_s, looked_s)
            flight.last_polled_s = now_s
            wait_s = self._due_s(flight) - now_s
        else:
            flight.failures += 1
            self._run.emit_retry(flight, "poll", trouble.reason)
            wait_s = schedule.retry_delay_s(flight.failures, trouble.retry_after_s)
            wait_s = max(wait_s, self._run.retries.spend(now_s))
            least_s = max(least_s, trouble.retry_after_s or 0.0)
            if self._stop_if_key_refused(flight, trouble):
                return
            if trouble.status == 429:
                self._paused_until_s = max(self._paused_until_s, now_s + (trouble.retry_after_s or wait_s))
                if self._run.settings.shared_quota:
                    self._run.rate_limiter.controller.on_rate_limited(now_s, now_s, trouble.retry_after_s)
        if flight.callback_during_poll:
            flight.callback_during_poll, wait_s, least_s = False, 0.0, 0.0
        timeout_s = self._run.settings.job_timeout_s
        if now_s - flight.accepted_s >= timeout_s:
            self._drop(flight)
            self._by_job_no.pop(flight.job_no, None)
            await self._time_out(flight, trouble)
        else:
            flight.on_schedule = trouble is None and now_s + wait_s < flight.accepted_s + timeout_s
            self._schedule_poll(flight, min(wait_s, max(flight.accepted_s + timeout_s - now_s, least_s)))

    def _drop(self, flight: InFlightJob) -> None:
        """The flight ends here without having been seen finished."""
        if not flight.resumed:
            self._schedules.withdraw(flight.kind, flight.last_polled_s - flight.accepted_s)

    def _stop_if_key_refused(self, flight: InFlightJob, trouble: PollFailed) -> bool:
        """Leave the flight to the next run when the gateway no longer answers to this key."""
        flight.key_refusals = flight.key_refusals + 1 if trouble.status in (401, 403) else 0
        if flight.key_refusals < MAX_KEY_REFUSALS:
            return False
        next_step = "give a valid key, then run the same command again"
        self._run.stop(GatewayError(trouble.status, trouble.reason, next_step))
        self._by_job_no.pop(flight.job_no, None)
        self._on_deferred(flight)
        return True

    async def _time_out(self, flight: InFlightJob, trouble: PollFailed | None) -> None:
        waited = f"not finished after {self._run.settings.job_timeout_s:g} s"
        message = f"{waited} ({trouble.reason})" if trouble else waited
        why = ErrorInfo("timed_out", message)
        outcome = await self._run.record(
            LedgerStore.mark_timed_out, flight.job_no, why, self._run.wall_clock(), flight.polls
        )
        self._end(flight, outcome)

    async def _requeue(self, flight: InFlightJob, wait_s: float, reason: str) -> None:
        self._drop(flight)
        self._untrack_callback(flight)
        flight.last_callback_s = -math.inf
        await self._run.record(LedgerStore.requeue_errored, flight.job_no, flight.polls)
        flight.errors += 1
        flight.failures = flight.key_refusals = 0
        flight.body, flight.fingerprint, flight.metadata = await self._run.record(
            LedgerStore.request_of, flight.job_no
        )
        self._run.emit_retry(flight, "poll", reason)
        self._run.emit_state_change(flight, State.ACCEPTED, State.PENDING)
        self._on_errored(flight, wait_s)

    def _end(self, flight: InFlightJob, outcome: Outcome) -> None:
        self._run.emit_state_change(flight, State.ACCEPTED, outcome.status)
        self._on_ended(flight, outcome)
