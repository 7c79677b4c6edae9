"""The futures of callers who wait for jobs. Callers that submit the same job share one waiter.

A job is identified by its id, whether it is new, in flight, or in the ledger of this run or an earlier one. The first
caller starts it; later callers wait for it, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from krea_batch.errors import KreaBatchError, RunStopped
from krea_batch.events import Event, JobEnded, RetryScheduled, StateChanged
from krea_batch.jobs import FINAL, Outcome, State
from krea_batch.ledger import Ledger
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.event_stream import EventStream
from krea_batch.pipeline.in_flight_job import InFlightJob, require_same_request
from krea_batch.storage.notebook_display import show_in_notebooks

CLOSED = RunStopped("the engine is closed", "open it again to resume")


class WaiterRegistry:
    """The waiters of one run, by job id. `admit` takes a new job and queues it for admission."""

    def __init__(self, run: RunContext, admit: Callable[[InFlightJob], None]) -> None:
        self._run = run
        self._admit = admit
        self._waiters: dict[str, JobWaiter] = {}
        self._closed_by: BaseException | None = None
        self._run_dir = run.settings.out.absolute()  # The caller may change its working directory.

    # ---- for callers -------------------------------------------------------------------------------------

    async def register(self, job: InFlightJob, *, durable: bool) -> JobWaiter:
        """Start a new job, or find the one with its id. With `durable`, it is in the ledger before this returns.

        Raises JobError if another job has the id, and RunStopped.
        """
        known = await self._run.find_known([job])
        is_shared = self._run.settings.shared
        # One step of the event loop, up to the next await: no other caller takes an id that is free here.
        if fingerprint := known.get(job.id) or self._run.taken_ids.fingerprint_of(job.id):
            require_same_request(job, fingerprint)
            waiter = await self._find_known(job.id)
            if durable and not known and not waiter.outcome.done():
                await self._record(job)  # The caller that started the job may not have recorded it yet.
            return waiter
        if error := self._run.stopped or self._closed_by:
            raise error
        self._run.taken_ids.take(job.id, job.fingerprint)
        waiter = self._create(job.id)
        if durable or is_shared:
            try:
                is_new = await self._record(job)
            except KreaBatchError as error:
                self.fail(job.id, error)  # other callers may wait for it already
                raise
            if is_shared and not is_new:  # Another run has recorded it in the meantime, and has it.
                self._run.taken_ids.release(job.id)
                require_same_request(job, (await self._run.find_known([job]))[job.id])
                return waiter
        self._admit(job)
        return waiter

    def take_over(self, job: InFlightJob) -> None:
        """Take a job that a `run` did not start after all, and start it if another caller waits for it."""
        if job.id in self._waiters:
            self._admit(job)
        else:
            self._run.taken_ids.release(job.id)

    async def find(self, job_id: str) -> JobWaiter | None:
        """Return the waiter of a job that is in flight or in the ledger; None if there is no such job."""
        if await self._run.record(Ledger.fingerprints, [job_id]) or job_id in self._run.taken_ids:
            return await self._find_known(job_id)
        return None

    # ---- for the engine ----------------------------------------------------------------------------------

    def on_admitted(self, job: InFlightJob) -> None:
        """Resolve `admitted`: the job has a slot."""
        if waiter := self._waiters.get(job.id):
            waiter.mark_admitted()

    def on_accepted(self, job: InFlightJob) -> None:
        """Resolve `accepted`: the request_id is recorded."""
        if waiter := self._waiters.get(job.id):
            waiter.accept(job.request_id)

    def on_ended(self, outcome: Outcome) -> None:
        """Resolve every future of a job whose end is recorded."""
        if waiter := self._remove(outcome.id):
            show_in_notebooks(outcome, self._run_dir)
            waiter.end(outcome)

    def fail(self, job_id: str, error: BaseException | None = None) -> None:
        """Fail the waiter of a job that does not continue in this run."""
        self._run.taken_ids.release(job_id)
        if waiter := self._remove(job_id):
            waiter.fail(error or self._run.stopped or CLOSED)

    def foreign_ids(self) -> list[str]:
        """Return the ids of the jobs that callers wait for and other runs have."""
        return [job_id for job_id in self._waiters if job_id not in self._run.taken_ids]

    def on_foreign_jobs(self, rows: Sequence[Outcome]) -> None:
        """Tell the waiters how far the jobs of other runs are."""
        for row in rows:
            if (waiter := self._waiters.get(row.id)) and row.id not in self._run.taken_ids:
                self._restore(waiter, row)

    def close(self, error: BaseException) -> None:
        """Fail all remaining waiters, and those of later callers."""
        self._closed_by = error
        for job_id in list(self._waiters):
            self.fail(job_id, error)

    # ---- parts -------------------------------------------------------------------------------------------

    async def _find_known(self, job_id: str) -> JobWaiter:
        """Return the waiter of a known job. Unless this run has the job, its state is read from the ledger now."""
        waiter = self._waiters.get(job_id)
        if waiter and not (self._run.settings.shared and job_id not in self._run.taken_ids):
            return waiter
        waiter = waiter or self._create(job_id)
        row = await self._run.record(Ledger.find_job, job_id)
        if row and not waiter.outcome.done():
            self._restore(waiter, row)
        if self._closed_by and not waiter.outcome.done():
            self.fail(job_id, self._closed_by)
        return waiter

    def _restore(self, waiter: JobWaiter, row: Outcome) -> None:
        if row.status in FINAL:
            self._remove(row.id)
            show_in_notebooks(row, self._run_dir)
            waiter.end(row)
        elif row.id not in self._run.taken_ids and (self._run.stopped or not self._run.settings.shared):
            self.fail(row.id)  # A stop left the job to another run.
        elif row.status is not State.PENDING:
            waiter.restore(row)

    async def _record(self, job: InFlightJob) -> bool:
        return await self._run.record(Ledger.enqueue, *job.as_new)

    def _create(self, job_id: str) -> JobWaiter:
        if not self._waiters:
            self._run.events.add_listener(self._on_event)
        return self._waiters.setdefault(job_id, JobWaiter())

    def _remove(self, job_id: str) -> JobWaiter | None:
        waiter = self._waiters.pop(job_id, None)
        if waiter and not self._waiters:
            self._run.events.remove_listener(self._on_event)
        return waiter

    def _on_event(self, event: Event) -> None:
        if isinstance(event, (StateChanged, RetryScheduled)) and (waiter := self._waiters.get(event.job_id)):
            waiter.on_event(event)


class JobWaiter:
    """The futures of one job, and the event streams of its handles.

    `admitted` is done once the job has a slot, `accepted` once its request_id is recorded or it has ended, `outcome`
    once it has ended. All three raise the reason if the run ends before that.
    """

    def __init__(self, state: State = State.PENDING) -> None:
        loop = asyncio.get_running_loop()
        self.state = state
        self.request_id: str | None = None
        self.admitted: asyncio.Future[None] = loop.create_future()
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self._streams: list[EventStream] = []
        self._has_events = False

    def on_event(self, event: StateChanged | RetryScheduled) -> None:
        """Update the state, and pass the event on to the streams."""
        if isinstance(event, StateChanged):
            self._has_events = True
            self.state = event.new
            self.request_id = event.request_id or self.request_id
        for stream in self._streams:
            stream.push(event)

    def mark_admitted(self) -> None:
        """Resolve `admitted`. Idempotent."""
        if not self.admitted.done():
            self.admitted.set_result(None)

    def accept(self, request_id: str | None) -> None:
        """Resolve `accepted`: the job is accepted, or has ended without a request_id."""
        self.mark_admitted()
        self.request_id = request_id
        if not self.accepted.done():
            self.accepted.set_result(None)

    def restore(self, row: Outcome) -> None:
        """Set the state of a job that was in flight before anyone waited for it, unless a later event has set it."""
        self.mark_admitted()
        if not self._has_events:
            self.state, self.request_id = row.status, row.request_id
        if self.request_id:
            self.accept(self.request_id)

    def end(self, outcome: Outcome) -> None:
        """Resolve every future, and end the streams with a JobEnded."""
        self.state = outcome.status
        self.accept(outcome.request_id)
        self.outcome.set_result(outcome)
        self._end_streams(lambda stream: stream.push(JobEnded(outcome)))

    def fail(self, error: BaseException) -> None:
        """Let every future that is not done raise `error`, and end the streams."""
        for future in (self.admitted, self.accepted, self.outcome):
            if not future.done():
                future.set_exception(error)
                future.exception()  # Retrieved, because no one may be waiting for it.
        self._end_streams(lambda stream: None)

    def open_stream(self) -> EventStream:
        """Return a stream of the events from now on; of a job that has ended, only its JobEnded."""
        stream = EventStream()
        if not self.outcome.done():
            self._streams.append(stream)
        else:
            if self.outcome.exception() is None:
                stream.push(JobEnded(self.outcome.result()))
            stream.close()
        return stream

    def close_stream(self, stream: EventStream) -> None:
        """Stop passing events on to a stream."""
        if stream in self._streams:
            self._streams.remove(stream)

    def _end_streams(self, push_last: Callable[[EventStream], None]) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            push_last(stream)
            stream.close()
