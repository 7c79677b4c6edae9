"""Jobs come in from callers, many of them the same job; one watch goes out for all who wait for it.

Newcomers: a job is known by its id, be it new, on its way, or on record of this run or an earlier one. Whoever brings
it first has it put on its way; those who come later wait with him.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from krea_batch.engine.event_stream import Reader
from krea_batch.errors import RunStopped
from krea_batch.events import Ended, Event, Moved, Troubled
from krea_batch.jobs import FINAL, Outcome, State
from krea_batch.ledger import Store
from krea_batch.pipeline.context import Run
from krea_batch.pipeline.in_flight_job import Flight, check_same

CLOSED = RunStopped("the engine is closed", "open it again to go on")


class Watches:
    """The watches of one run. `board` takes a new flight, which waits for its turn."""

    def __init__(self, run: Run, board: Callable[[Flight], None]) -> None:
        self._run = run
        self._board = board
        self._watches: dict[str, Watch] = {}

    # ---- a caller asks -----------------------------------------------------------------------------------

    async def take_in(self, flight: Flight, *, on_record: bool) -> Watch:
        """Put a new job on its way, or find the one of its id. With `on_record`, it is durable before its turn.

        Raises JobError where the id is another job's, and RunStopped.
        """
        fingerprint = await self._known(flight.id) or self._run.aloft.get(flight.id)
        if fingerprint:
            check_same(flight, fingerprint)
        elif self._run.stopped:
            raise self._run.stopped
        else:
            self._run.aloft[flight.id] = flight.fingerprint
            watch = self._watch(flight.id)
            if on_record:
                await self._put_on_record(flight)
            self._board(flight)
            return watch
        if on_record:  # whoever brought it first may not have got so far
            await self._put_on_record(flight)
        return await self._find(flight.id)

    async def look_up(self, job_id: str) -> Watch | None:
        """The watch of a job that is on its way or on record; None where there is none."""
        if await self._known(job_id) or job_id in self._run.aloft:
            return await self._find(job_id)
        return None

    # ---- something happens to a job ----------------------------------------------------------------------

    def boarded(self, flight: Flight) -> None:
        """Its turn has come."""
        if watch := self._watches.get(flight.id):
            watch.board()

    def accepted(self, flight: Flight) -> None:
        """Its request_id is on record."""
        if watch := self._watches.get(flight.id):
            watch.accept(flight.request_id)

    def ended(self, outcome: Outcome) -> None:
        """Its end is on record."""
        if watch := self._unwatch(outcome.id):
            watch.end(outcome)

    def give_up(self, job_id: str, why: BaseException | None = None) -> None:
        """This run brings it no further."""
        self._run.aloft.pop(job_id, None)
        if watch := self._unwatch(job_id):
            watch.give_up(why or self._run.stopped or CLOSED)

    def give_all_up(self, why: BaseException) -> None:
        """This run brings none any further."""
        for job_id in list(self._watches):
            self.give_up(job_id, why)

    # ---- parts -------------------------------------------------------------------------------------------

    async def _find(self, job_id: str) -> Watch:
        """The watch of a job that is on its way or on record, told what the ledger knows of it."""
        if watch := self._watches.get(job_id):
            return watch
        watch = self._watch(job_id)
        row = await self._run.record(Store.known, job_id)
        if row and not watch.outcome.done():
            self._tell_known(watch, row)
        return watch

    def _tell_known(self, watch: Watch, row: Outcome) -> None:
        if row.status in FINAL:
            self._unwatch(row.id)
            watch.end(row)
        elif row.id not in self._run.aloft:
            self.give_up(row.id)  # the stop left it to the next run
        elif row.status is not State.PENDING:
            watch.go_on_from(row)

    async def _put_on_record(self, flight: Flight) -> None:
        body = (flight.id, flight.body, flight.fingerprint, flight.metadata)
        await self._run.record(Store.enqueue, *body, flight.tenant)

    async def _known(self, job_id: str) -> bytes | None:
        """The fingerprint that the ledger has for this id, if any."""
        return (await self._run.record(Store.fingerprints, [job_id])).get(job_id)

    def _watch(self, job_id: str) -> Watch:
        if not self._watches:
            self._run.listen(self._hear)
        return self._watches.setdefault(job_id, Watch())

    def _unwatch(self, job_id: str) -> Watch | None:
        watch = self._watches.pop(job_id, None)
        if watch and not self._watches:
            self._run.forget(self._hear)
        return watch

    def _hear(self, event: Event) -> None:
        if isinstance(event, (Moved, Troubled)) and (watch := self._watches.get(event.job_id)):
            watch.hear(event)


class Watch:
    """What is told to those who wait for one job.

    `boarded` is done once the job had its turn, `accepted` once its request_id is on record or its end has come,
    `outcome` at its end; all three raise what kept the run from bringing it so far.
    """

    def __init__(self, state: State = State.PENDING) -> None:
        loop = asyncio.get_running_loop()
        self.state = state
        self.request_id: str | None = None
        self.boarded: asyncio.Future[None] = loop.create_future()
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self._readers: list[Reader] = []

    def hear(self, event: Moved | Troubled) -> None:
        """Something happened to the job."""
        if isinstance(event, Moved):
            self.state = event.new
            self.request_id = event.request_id or self.request_id
        for reader in self._readers:
            reader.hear(event)

    def board(self) -> None:
        """The job had its turn."""
        if not self.boarded.done():
            self.boarded.set_result(None)

    def accept(self, request_id: str | None) -> None:
        """The job is accepted, or ended without a request_id."""
        self.board()
        self.request_id = request_id
        if not self.accepted.done():
            self.accepted.set_result(None)

    def go_on_from(self, row: Outcome) -> None:
        """The job was on its way before anybody watched it."""
        self.state = row.status
        self.board()
        if row.request_id:
            self.accept(row.request_id)

    def end(self, outcome: Outcome) -> None:
        """The job's end is on record."""
        self.state = outcome.status
        self.accept(outcome.request_id)
        self.outcome.set_result(outcome)
        self._tell_readers(lambda reader: reader.hear(Ended(outcome)))

    def give_up(self, why: BaseException) -> None:
        """This run brings the job no further."""
        for future in (self.boarded, self.accepted, self.outcome):
            if not future.done():
                future.set_exception(why)
                future.exception()  # nobody has to wait for it
        self._tell_readers(lambda reader: None)

    def reader(self) -> Reader:
        """A reader of what happens from now on; of a job that has ended, the end."""
        reader = Reader()
        if not self.outcome.done():
            self._readers.append(reader)
        else:
            if self.outcome.exception() is None:
                reader.hear(Ended(self.outcome.result()))
            reader.end()
        return reader

    def forget(self, reader: Reader) -> None:
        """Nobody reads there any more."""
        if reader in self._readers:
            self._readers.remove(reader)

    def _tell_readers(self, last: Callable[[Reader], None]) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            last(reader)
            reader.end()
