"""Handle callbacks of the gateway: poll the job now, or confirm an ambiguous job with a poll.

A callback is only a hint, which a poll confirms. A forged callback can cause nothing but a poll of that job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from krea_batch.events import CallbackReceived, CallbackResult
from krea_batch.gateway.wire import CallbackPayload
from krea_batch.ledger import Ledger
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.rules import lifecycle
from krea_batch.rules.lifecycle import Transition
from krea_batch.rules.verdicts import PollFailed


class CallbackHandler:
    """Takes callbacks from the start of the run.

    It is a stage of its own, because an ambiguous job may need several polls. `expedite` polls a waiting job now.
    """

    def __init__(
        self,
        run: RunContext,
        executor: TransitionExecutor,
        expedite: Callable[[int, CallbackPayload], CallbackResult],
    ) -> None:
        self._run = run
        self._executor = executor
        self._expedite = expedite
        self._tasks: TaskGroup | None = None
        self._resolving: set[int] = set()  # numbers of jobs that a callback may resolve just now
        self._expected: dict[int, float] = {}  # ambiguous jobs, and until when a callback may arrive for them
        self._adopted = asyncio.Event()
        # The latest callback of each job, until the jobs of earlier runs are resumed. An ambiguous job that is given
        # a request_id before that would be read from the ledger as an open one, and be in flight twice.
        self._before_resumed: dict[int, CallbackPayload] | None = {}

    def on_open_jobs_resumed(self) -> None:
        """Take the callbacks that arrived while the jobs of earlier runs were resumed."""
        early, self._before_resumed = self._before_resumed or {}, None
        for job_no, payload in early.items():
            self.on_callback(job_no, payload)

    def on_callback(self, job_no: int, payload: CallbackPayload) -> None:
        """Take a callback for the job with this number."""
        if self._before_resumed is not None:
            self._before_resumed[job_no] = payload
            return
        if job_no in self._run.early_callbacks:  # The job's POST is pending; the submitter passes it on.
            self._run.early_callbacks[job_no] = payload
            return
        self._run.stats.callbacks += 1
        result = self._expedite(job_no, payload)
        self._run.events.emit(CallbackReceived(result))
        if result == "not_waiting" and payload.request_id and job_no not in self._resolving and self._tasks:
            self._resolving.add(job_no)
            self._tasks.start_soon(self._resolve_ambiguous, job_no, payload.request_id)

    def expect(self, job_no: int, wait_s: float) -> None:
        """Expect a callback for an ambiguous job within `wait_s` seconds; 0 expects none."""
        if wait_s > 0:
            self._expected[job_no] = self._run.now_s() + wait_s

    @property
    def expecting(self) -> bool:
        """Whether a callback may still resolve an ambiguous job."""
        return bool(self._expected)

    async def wait(self) -> None:
        """Wait until a job is in flight again, or no callback is expected any more."""
        if not self._expected:
            return
        last_s = max(self._expected.values())
        with anyio.move_on_after(last_s - self._run.now_s()) as scope:
            while self._expected and not self._run.in_flight_limit.in_use:
                self._adopted = asyncio.Event()
                await self._adopted.wait()
        if scope.cancelled_caught:
            self._expected.clear()

    async def work(self) -> None:
        """Resolve ambiguous jobs for which callbacks arrive, forever."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await anyio.sleep_forever()
            finally:
                self._tasks = None  # If a callback arrives while this run ends, the next run resolves its job.

    async def _resolve_ambiguous(self, job_no: int, request_id: str) -> None:
        """Give an ambiguous job the request_id of a callback, if a poll finds a job with that id."""
        try:
            ambiguous = await self._run.record(Ledger.ambiguous_job, job_no)
            if ambiguous is None:
                return
            progress = await self._run.prove(request_id)
            if not isinstance(progress, PollFailed):
                await self._adopt(InFlightJob.from_ledger(ambiguous), lifecycle.adopt(request_id, progress))
        finally:
            self._resolving.discard(job_no)

    async def _adopt(self, job: InFlightJob, transition: Transition) -> None:
        job.resumed = True
        self._run.in_flight_limit.acquire_resumed()
        self._run.taken_ids.take(job.id)
        if not await self._executor.apply(job, transition):
            self._run.in_flight_limit.release()
            self._run.taken_ids.release(job.id)
            return
        self._expected.pop(job.job_no, None)
        self._adopted.set()
