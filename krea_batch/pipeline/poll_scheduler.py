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
from krea_batch.events import CallResult
from krea_batch.gateway.wire import Told
from krea_batch.jobs import Outcome, State, Trouble
from krea_batch.ledger import Store
from krea_batch.pipeline.context import Run
from krea_batch.pipeline.in_flight_job import Flight
from krea_batch.pipeline.rate_limiter import drip
from krea_batch.pipeline.task_pool import Crew
from krea_batch.rules import lifecycle
from krea_batch.rules.callback_reliability import GRACE_S, Word
from krea_batch.rules.lifecycle import Again, End, Fetch, LookAgain
from krea_batch.rules.poll_schedule import SCOUTS
from krea_batch.rules.poll_schedule_by_kind import Schedules
from krea_batch.rules.verdicts import Finished, PollTrouble, PollVerdict, Progress, Waiting

MOST_POLLS_IN_AIR = 128  # chosen: answers of 0.2 s at 640/s; more would only queue at the gateway
EXPLORED_SHARE = 0.04  # chosen: a poll more for one job in 25, and a change is seen within minutes
KEPT_FOR_SUBMITS = 0.5  # chosen: of a shared quota; polls are served late rather than submits, which bring them
MOST_MOVED = 10_000  # chosen: moving so many waiting polls takes the loop ten milliseconds
KEY_REFUSED_TIMES = 3  # chosen: one 401 may be a stumble of the gateway, three in a row are its word


class PollScheduler:
    """Looks at every accepted flight when the schedule says so.

    `finished` takes a flight whose pictures can be fetched, `again` one to be submitted once more after so many
    seconds, `ended` one that ended here, `left` one that stays on record for the next run.
    """

    def __init__(
        self,
        run: Run,
        *,
        finished: Callable[[Flight], None],
        again: Callable[[Flight, float], None],
        ended: Callable[[Flight, Outcome], None],
        left: Callable[[Flight], None],
    ) -> None:
        self._run = run
        self._finished = finished
        self._again = again
        self._ended = ended
        self._left = left
        self._schedules = Schedules(run.settings.poll_interval_s, run.settings.poll_lag_weight)
        self._plan = self._schedules.version
        self._scouts = 0
        self._limiter: AsyncLimiter | None = None
        self._heap: list[tuple[float, int, Flight]] = []
        self._by_n: dict[int, Flight] = {}  # accepted flights, where callbacks may name them
        self._word = Word()
        self._uncalled: set[int] = set()  # jobs that ended a moment ago, and no callback came so far
        self._order = count()
        self._earlier = asyncio.Event()
        self._seats = asyncio.Semaphore(MOST_POLLS_IN_AIR)
        self._crew = Crew()
        self._held_until_s = 0.0

    def put(self, flight: Flight, progress: Progress) -> None:
        """Take an accepted flight, with what the answer to its POST already said."""
        self._expect_call(flight)
        if not isinstance(progress, Waiting):
            self._look_in(flight, 0.0)
            return
        schedule = self._schedules.of(flight.kind)
        flight.scout = self._scouts < SCOUTS and schedule.scouting
        self._scouts += flight.scout
        if schedule.vague and self._run.chance() < EXPLORED_SHARE:
            least_s = schedule.interval_s
            self._look_in(flight, least_s + self._run.chance() * (schedule.first_s() - least_s))
        else:
            self._look_as_planned(flight)

    def learn(self, latencies_s: Iterable[tuple[str, float]]) -> None:
        """Take how long jobs of earlier runs took, each with its kind."""
        for kind, latency_s in latencies_s:
            self._schedules.learn(kind, latency_s)
        self._plan = self._schedules.version

    def take_over(self, flight: Flight) -> None:
        """Take a flight that an earlier run left accepted: it is looked at at once."""
        flight.accepted_s = flight.looked_s = self._run.now_s()
        flight.taken_over = True
        self._expect_call(flight)
        self._look_in(flight, 0.0)

    def called(self, n: int, told: Told) -> CallResult:
        """Look at a job at once, since a callback says that it has ended.

        However often the gateway calls, that brings one more poll of a job in each interval.
        """
        flight = self._by_n.get(n)
        if flight is None:
            if n in self._uncalled:
                self._uncalled.discard(n)
                self._keep_word(came=True)
                return "idle"
            return "elsewhere"
        now_s = self._run.now_s()
        is_other = told.request_id not in (None, flight.request_id)
        if is_other or not told.over or now_s - flight.called_s < self._run.settings.poll_interval_s:
            return "idle"
        flight.called_s = now_s
        flight.planned = False
        if flight.turn >= 0:
            self._look_in(flight, 0.0)
        else:
            flight.calls = True  # a poll is in the air, and may have been too early
        return "hastened"

    async def work(self) -> None:
        """Poll what is due, for ever."""
        settings = self._run.settings
        if settings.poll_rate:
            self._limiter = drip(settings.poll_rate.per_s)
        elif settings.shared_quota and not settings.rate.is_auto:
            self._limiter = drip(settings.rate.per_s * (1.0 - KEPT_FOR_SUBMITS))
        async with self._crew as polls:
            while True:
                flight = await self._next_due()
                await self._seats.acquire()
                if self._limiter:
                    await self._limiter.acquire()
                if settings.shared_quota:
                    await self._run.pace.let_by()
                polls.start(self._poll(flight))

    async def _next_due(self) -> Flight:
        while True:
            now_s = self._run.now_s()
            due_s = max(self._heap[0][0], self._held_until_s) if self._heap else now_s + 3600.0
            if self._heap and due_s <= now_s:
                _, turn, flight = heapq.heappop(self._heap)
                if turn != flight.turn:
                    continue  # it was put forward
                flight.turn = -1
                return flight
            self._earlier.clear()
            with anyio.move_on_after(due_s - now_s):
                await self._earlier.wait()

    def _look_as_planned(self, flight: Flight) -> None:
        """Put the next poll where the plan wants it, counted from the last look, or else from the acceptance."""
        flight.planned = True
        self._look_in(flight, self._due_s(flight) - self._run.now_s())

    def _due_s(self, flight: Flight) -> float:
        schedule = self._schedules.of(flight.kind)
        if flight.scout and schedule.scouting:
            return flight.looked_s + schedule.interval_s
        if self._word.good and flight.looked_s == flight.accepted_s:
            return flight.accepted_s + schedule.late_s()
        return flight.looked_s + schedule.next_s(flight.looked_s - flight.accepted_s)

    def _plan_anew(self) -> None:
        """Move the polls that wait to where a new plan wants them."""
        self._plan = self._schedules.version
        if len(self._heap) <= MOST_MOVED:
            self._heap = [
                (self._due_s(flight) if flight.planned else due_s, turn, flight)
                for due_s, turn, flight in self._heap
                if turn == flight.turn
            ]
            heapq.heapify(self._heap)
            self._earlier.set()

    def _look_in(self, flight: Flight, wait_s: float) -> None:
        flight.turn = next(self._order)
        entry = (self._run.now_s() + wait_s, flight.turn, flight)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._earlier.set()

    def hope_s(self, flight: Flight) -> float:
        """Seconds within which the gateway may well call for a job whose acceptance is not known."""
        if not (self._run.callbacks and self._word.good):
            return 0.0
        return min(self._schedules.of(flight.kind).late_s(), self._run.settings.job_timeout_s)

    # ---- callbacks ---------------------------------------------------------------------------------------

    def _expect_call(self, flight: Flight) -> None:
        if self._run.callbacks:
            self._by_n[flight.n] = flight

    def _expect_none(self, flight: Flight) -> None:
        """The flight's end was seen, by whichever way."""
        if self._by_n.pop(flight.n, None) is None or flight.taken_over:
            return
        if flight.called_s > -math.inf:
            self._keep_word(came=True)
        else:
            self._uncalled.add(flight.n)
            self._run.after(GRACE_S, self._miss_call, flight.n)

    def _miss_call(self, n: int) -> None:
        if n in self._uncalled:
            self._uncalled.discard(n)
            self._keep_word(came=False)

    def _keep_word(self, *, came: bool) -> None:
        was_good = self._word.good
        if came:
            self._word.came()
        else:
            self._word.missed()
        if was_good != self._word.good:
            self._plan_anew()

    # ---- one poll ----------------------------------------------------------------------------------------

    async def _poll(self, flight: Flight) -> None:
        try:
            flight.planned = False
            flight.polls += 1
            self._run.stats.polls += 1
            verdict = await self._crew.exposed(self._run.gateway.poll, flight.request_id)
        finally:
            self._seats.release()
        self._run.polled(flight, verdict)
        await self._settle(flight, verdict)

    async def _settle(self, flight: Flight, verdict: PollVerdict) -> None:
        decision = lifecycle.after_poll(
            verdict,
            errors=flight.errors,
            max_attempts=self._run.settings.max_attempts,
            chance=self._run.chance(),
        )
        match decision:
            case Fetch(finished):
                self._expect_none(flight)
                self._fetch(flight, finished)
            case LookAgain(trouble):
                await self._look_again(flight, trouble)
            case Again(wait_s, reason):
                await self._submit_again(flight, wait_s, reason)
            case End(state, kind, message):
                end = Store.fail if state is State.FAILED else Store.error
                why = Trouble(kind, message)
                self._forget(flight)
                self._expect_none(flight)
                outcome = await self._run.record(end, flight.n, why, self._run.at(), flight.polls)
                self._end(flight, outcome)

    def _fetch(self, flight: Flight, finished: Finished) -> None:
        self._learn(flight, finished)
        self._run.note(Store.finish, flight.n, finished, self._run.at(), flight.polls)
        flight.finished = finished
        flight.troubles = 0
        self._run.generated(flight, self._believed_s(flight, finished))
        self._run.moved(flight, State.ACCEPTED, State.FINISHED)
        self._finished(flight)

    def _learn(self, flight: Flight, finished: Finished) -> None:
        """How long the job took: the gateway's word where it fits between our last two looks, else ours."""
        age_s = self._run.now_s() - flight.accepted_s
        looked_s = flight.looked_s - flight.accepted_s
        if flight.taken_over:
            if finished.took_s is not None:
                self._schedules.learn(flight.kind, finished.took_s)
        elif (took_s := self._believed_s(flight, finished)) is not None:
            self._schedules.learn(flight.kind, took_s, looked_s)
        elif flight.called_s >= flight.looked_s:
            self._schedules.learn(flight.kind, flight.called_s - flight.accepted_s, looked_s)
        else:
            self._schedules.learn(flight.kind, age_s, looked_s, exact=False)
        if self._plan != self._schedules.version:
            self._plan_anew()

    def _believed_s(self, flight: Flight, finished: Finished) -> float | None:
        """The gateway's word for how long the job took, where it fits between our last two looks."""
        age_s, looked_s = self._run.now_s() - flight.accepted_s, flight.looked_s - flight.accepted_s
        took_s = finished.took_s
        return took_s if took_s is not None and looked_s <= took_s <= age_s else None

    async def _look_again(self, flight: Flight, trouble: PollTrouble | None) -> None:
        now_s = self._run.now_s()
        schedule = self._schedules.of(flight.kind)
        least_s = schedule.interval_s
        if trouble is None:
            flight.troubles = flight.key_refusals = 0
            if not flight.taken_over:
                looked_s = flight.looked_s - flight.accepted_s
                self._schedules.unfinished(flight.kind, now_s - flight.accepted_s, looked_s)
            flight.looked_s = now_s
            wait_s = self._due_s(flight) - now_s
        else:
            flight.troubles += 1
            self._run.troubled(flight, "poll", trouble.reason)
            wait_s = schedule.after_trouble_s(flight.troubles, trouble.retry_after_s)
            wait_s = max(wait_s, self._run.retries.spend(now_s))
            least_s = max(least_s, trouble.retry_after_s or 0.0)
            if self._key_is_refused(flight, trouble):
                return
            if trouble.status == 429:
                self._held_until_s = max(self._held_until_s, now_s + (trouble.retry_after_s or wait_s))
                if self._run.settings.shared_quota:
                    self._run.pace.rule.refused(now_s, now_s, trouble.retry_after_s)
        if flight.calls:
            flight.calls, wait_s, least_s = False, 0.0, 0.0
        timeout_s = self._run.settings.job_timeout_s
        if now_s - flight.accepted_s >= timeout_s:
            self._forget(flight)
            self._by_n.pop(flight.n, None)
            await self._time_out(flight, trouble)
        else:
            flight.planned = trouble is None and now_s + wait_s < flight.accepted_s + timeout_s
            self._look_in(flight, min(wait_s, max(flight.accepted_s + timeout_s - now_s, least_s)))

    def _forget(self, flight: Flight) -> None:
        """The flight ends here without having been seen finished."""
        if not flight.taken_over:
            self._schedules.lost(flight.kind, flight.looked_s - flight.accepted_s)

    def _key_is_refused(self, flight: Flight, trouble: PollTrouble) -> bool:
        """Leave the flight to the next run when the gateway no longer answers to this key."""
        flight.key_refusals = flight.key_refusals + 1 if trouble.status in (401, 403) else 0
        if flight.key_refusals < KEY_REFUSED_TIMES:
            return False
        next_step = "give a valid key, then run the same command again"
        self._run.stop(GatewayError(trouble.status, trouble.reason, next_step))
        self._by_n.pop(flight.n, None)
        self._left(flight)
        return True

    async def _time_out(self, flight: Flight, trouble: PollTrouble | None) -> None:
        waited = f"not finished after {self._run.settings.job_timeout_s:g} s"
        message = f"{waited} ({trouble.reason})" if trouble else waited
        why = Trouble("timed_out", message)
        outcome = await self._run.record(Store.time_out, flight.n, why, self._run.at(), flight.polls)
        self._end(flight, outcome)

    async def _submit_again(self, flight: Flight, wait_s: float, reason: str) -> None:
        self._forget(flight)
        self._expect_none(flight)
        flight.called_s = -math.inf
        await self._run.record(Store.error_again, flight.n, flight.polls)
        flight.errors += 1
        flight.troubles = flight.key_refusals = 0
        flight.body, flight.fingerprint, flight.metadata = await self._run.record(Store.sending, flight.n)
        self._run.troubled(flight, "poll", reason)
        self._run.moved(flight, State.ACCEPTED, State.PENDING)
        self._again(flight, wait_s)

    def _end(self, flight: Flight, outcome: Outcome) -> None:
        self._run.moved(flight, State.ACCEPTED, outcome.status)
        self._ended(flight, outcome)
