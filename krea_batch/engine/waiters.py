"""Jobs come in from callers, many of them the same job; one watch goes out for all who wait for it.

Newcomers: a job is known by its id, be it new, on its way, or on record of this run or an earlier one. Whoever brings
it first has it put on its way; those who come later wait with him.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from krea_batch.engine.event_stream import EventStream
from krea_batch.errors import RunStopped
from krea_batch.events import Event, JobEnded, RetryScheduled, StateChanged
from krea_batch.jobs import FINAL, Outcome, State
from krea_batch.ledger import LedgerStore
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob, require_same_request

CLOSED = RunStopped("the engine is closed", "open it again to go on")


class WaiterRegistry:
    """The watches of one run. `board` takes a new flight, which waits for its turn."""

    def __init__(self, run: RunContext, board: Callable[[InFlightJob], None]) -> None:
        self._run = run
        self._admit = board
        self._waiters: dict[str, JobWaiter] = {}

    # ---- a caller asks -----------------------------------------------------------------------------------

    async def register(self, flight: InFlightJob, *, durable: bool) -> JobWaiter:
        """Put a new job on its way, or find the one of its id. With `on_record`, it is durable before its turn.

        Raises JobError where the id is another job's, and RunStopped.
        """
        fingerprint = await self._known(flight.id) or self._run.in_flight_fingerprints.get(flight.id)
        if fingerprint:
            require_same_request(flight, fingerprint)
        elif self._run.stopped:
            raise self._run.stopped
        else:
            self._run.in_flight_fingerprints[flight.id] = flight.fingerprint
            watch = self._watch(flight.id)
            if durable:
                await self._put_on_record(flight)
            self._admit(flight)
            return watch
        if durable:  # whoever brought it first may not have got so far
            await self._put_on_record(flight)
        return await self._find(flight.id)

    async def find(self, job_id: str) -> JobWaiter | None:
        """The watch of a job that is on its way or on record; None where there is none."""
        if await self._known(job_id) or job_id in self._run.in_flight_fingerprints:
            return await self._find(job_id)
        return None

    # ---- something happens to a job ----------------------------------------------------------------------

    def on_admitted(self, flight: InFlightJob) -> None:
        """Its turn has come."""
        if watch := self._waiters.get(flight.id):
            watch.mark_admitted()

    def on_accepted(self, flight: InFlightJob) -> None:
        """Its request_id is on record."""
        if watch := self._waiters.get(flight.id):
            watch.accept(flight.request_id)

    def on_ended(self, outcome: Outcome) -> None:
        """Its end is on record."""
        if watch := self._unwatch(outcome.id):
            watch.end(outcome)

    def fail(self, job_id: str, why: BaseException | None = None) -> None:
        """This run brings it no further."""
        self._run.in_flight_fingerprints.pop(job_id, None)
        if watch := self._unwatch(job_id):
            watch.fail(why or self._run.stopped or CLOSED)

    def fail_all(self, why: BaseException) -> None:
        """This run brings none any further."""
        for job_id in list(self._waiters):
            self.fail(job_id, why)

    # ---- parts -------------------------------------------------------------------------------------------

    async def _find(self, job_id: str) -> JobWaiter:
        """The watch of a job that is on its way or on record, told what the ledger knows of it."""
        if watch := self._waiters.get(job_id):
            return watch
        watch = self._watch(job_id)
        row = await self._run.record(LedgerStore.find_job, job_id)
        if row and not watch.outcome.done():
            self._tell_known(watch, row)
        return watch

    def _tell_known(self, watch: JobWaiter, row: Outcome) -> None:
        if row.status in FINAL:
            self._unwatch(row.id)
            watch.end(row)
        elif row.id not in self._run.in_flight_fingerprints:
            self.fail(row.id)  # the stop left it to the next run
        elif row.status is not State.PENDING:
            watch.restore(row)

    async def _put_on_record(self, flight: InFlightJob) -> None:
        body = (flight.id, flight.body, flight.fingerprint, flight.metadata)
        await self._run.record(LedgerStore.enqueue, *body, flight.tenant)

    async def _known(self, job_id: str) -> bytes | None:
        """The fingerprint that the ledger has for this id, if any."""
        return (await self._run.record(LedgerStore.fingerprints, [job_id])).get(job_id)

    def _watch(self, job_id: str) -> JobWaiter:
        if not self._waiters:
            self._run.events.add_listener(self._on_event)
        return self._waiters.setdefault(job_id, JobWaiter())

    def _unwatch(self, job_id: str) -> JobWaiter | None:
        watch = self._waiters.pop(job_id, None)
        if watch and not self._waiters:
            self._run.events.remove_listener(self._on_event)
        return watch

    def _on_event(self, event: Event) -> None:
        if isinstance(event, (StateChanged, RetryScheduled)) and (watch := self._waiters.get(event.job_id)):
            watch.on_event(event)


class JobWaiter:
    """What is told to those who wait for one job.

    `boarded` is done once the job had its turn, `accepted` once its request_id is on record or its end has come,
    `outcome` at its end; all three raise what kept the run from bringing it so far.
    """

    def __init__(self, state: State = State.PENDING) -> None:
        loop = asyncio.get_running_loop()
        self.state = state
        self.request_id: str | None = None
        self.admitted: asyncio.Future[None] = loop.create_future()
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self._streams: list[EventStream] = []

    def on_event(self, event: StateChanged | RetryScheduled) -> None:
        """Something happened to the job."""
        if isinstance(event, StateChanged):
            self.state = event.new
            self.request_id = event.request_id or self.request_id
        for reader in self._streams:
            reader.push(event)

    def mark_admitted(self) -> None:
        """The job had its turn."""
        if not self.admitted.done():
            self.admitted.set_result(None)

    def accept(self, request_id: str | None) -> None:
        """The job is accepted, or ended without a request_id."""
        self.mark_admitted()
        self.request_id = request_id
        if not self.accepted.done():
            self.accepted.set_result(None)

    def restore(self, row: Outcome) -> None:
        """The job was on its way before anybody watched it."""
        self.state = row.status
        self.mark_admitted()
        if row.request_id:
            self.accept(row.request_id)

    def end(self, outcome: Outcome) -> None:
        """The job's end is on record."""
        self.state = outcome.status
        self.accept(outcome.request_id)
        self.outcome.set_result(outcome)
        self._tell_readers(lambda reader: reader.push(JobEnded(outcome)))

    def fail(self, why: BaseException) -> None:
        """This run brings the job no further."""
        for future in (self.admitted, self.accepted, self.outcome):
            if not future.done():
                future.set_exception(why)
                future.exception()  # nobody has to wait for it
        self._tell_readers(lambda reader: None)

    def open_stream(self) -> EventStream:
        """A reader of what happens from now on; of a job that has ended, the end."""
        reader = EventStream()
        if not self.outcome.done():
            self._streams.append(reader)
        else:
            if self.outcome.exception() is None:
                reader.push(JobEnded(self.outcome.result()))
            reader.close()
        return reader

    def close_stream(self, reader: EventStream) -> None:
        """Nobody reads there any more."""
        if reader in self._streams:
            self._streams.remove(reader)

    def _tell_readers(self, last: Callable[[EventStream], None]) -> None:
        readers, self._streams = self._streams, []
        for reader in readers:
            last(reader)
            reader.close()
