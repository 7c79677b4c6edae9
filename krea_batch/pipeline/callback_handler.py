"""The gateway's callbacks come in; polls that are put forward go out, and ambiguous jobs that a poll has proven.

Newcomers: a call is a hint and a poll is the proof. The worst that a forged one can do is a poll of that very job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from krea_batch.events import CallbackReceived, CallbackResult
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.jobs import State
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.rules.verdicts import PollFailed, Progress

MAX_CONFIRM_POLLS = (
    3  # chosen: a poll that fails proves nothing, three of them little, and the gateway may call again
)


class CallbackHandler:
    """Hears of calls, from the start of the run on. A stage of its own, since a doubt takes several polls.

    `hasten` puts the poll of a waiting job forward; `adopted` takes a flight that was ambiguous, and a poll's word.
    """

    def __init__(
        self,
        run: RunContext,
        *,
        expedite: Callable[[int, CallbackPayload], CallbackResult],
        on_adopted: Callable[[InFlightJob, Progress], None],
    ) -> None:
        self._run = run
        self._hasten = expedite
        self._adopted = on_adopted
        self._tasks: TaskGroup | None = None
        self._doubted: set[int] = set()  # jobs that a call may bring out of doubt just now
        self._hopes: dict[int, float] = {}  # ambiguous jobs, and until when a call may come for them
        self._hoped = asyncio.Event()

    def on_callback(self, job_no: int, payload: CallbackPayload) -> None:
        """Take a call for the job of that number."""
        if job_no in self._run.early_callbacks:
            self._run.early_callbacks[job_no] = payload  # its POST is in the air
            return
        self._run.stats.callbacks += 1
        result = self._hasten(job_no, payload)
        self._run.emit(CallbackReceived(result))
        if result == "not_waiting" and payload.request_id and job_no not in self._doubted and self._tasks:
            self._doubted.add(job_no)
            self._tasks.start_soon(self._resolve_ambiguous, job_no, payload.request_id)

    def expect(self, job_no: int, wait_s: float) -> None:
        """The job is ambiguous, and the gateway may call for it within that time."""
        if wait_s > 0:
            self._hopes[job_no] = self._run.now_s() + wait_s

    @property
    def expecting(self) -> bool:
        """Whether there is any job that a call may bring out of doubt."""
        return bool(self._hopes)

    async def wait(self) -> None:
        """Give the gateway time to call, until something is on its way again or the last hope is gone."""
        if not self._hopes:
            return
        last_s = max(self._hopes.values())
        with anyio.move_on_after(last_s - self._run.now_s()) as scope:
            while self._hopes and not self._run.in_flight_limit.in_use:
                self._hoped = asyncio.Event()
                await self._hoped.wait()
        if scope.cancelled_caught:
            self._hopes.clear()

    async def work(self) -> None:
        """Look after doubts, for ever."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await anyio.sleep_forever()
            finally:
                self._tasks = None  # calls that come while the run ends are the next one's

    async def _resolve_ambiguous(self, n: int, request_id: str) -> None:
        """Give an ambiguous job the request_id that a call names, if a poll says that there is one."""
        try:
            job = await self._run.record(LedgerStore.ambiguous_job, n)
            if job is None:
                return
            progress = await self._proven(request_id)
            if progress is None or not await self._run.record(
                LedgerStore.adopt, n, request_id, self._run.wall_clock()
            ):
                return
        finally:
            self._doubted.discard(n)
        flight = InFlightJob.from_ledger(job)
        flight.request_id = request_id
        flight.accepted_s = flight.last_polled_s = self._run.now_s()
        flight.resumed = True
        self._run.in_flight_limit.acquire_resumed()
        self._run.in_flight_fingerprints[job.job_id] = b""  # the ledger has its fingerprint
        ended = self._run.stats.ended_by_state
        ended[State.AMBIGUOUS] = max(0, ended[State.AMBIGUOUS] - 1)
        self._hopes.pop(n, None)
        self._hoped.set()
        self._run.emit_state_change(flight, State.AMBIGUOUS, State.ACCEPTED)
        self._adopted(flight, progress)

    async def _proven(self, request_id: str) -> Progress | None:
        """What the gateway says of a request that a call named; None where it knows of none."""
        for _ in range(MAX_CONFIRM_POLLS):
            progress = await self._run.gateway.poll(request_id)
            self._run.stats.polls += 1
            if not isinstance(progress, PollFailed):
                return progress
            await asyncio.sleep(self._run.settings.poll_interval_s)
        return None
