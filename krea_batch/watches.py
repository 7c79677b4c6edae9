"""Jobs come in from callers, many of them the same job; one watch goes out for all who wait for it.

Newcomers: a job is known by its id, be it new, on its way, or on record of this run or an earlier one. Whoever brings
it first has it put on its way; those who come later wait with him.
"""

from __future__ import annotations

from collections.abc import Callable

from krea_batch.errors import RunStopped
from krea_batch.events import Event, Moved, Troubled
from krea_batch.handles import Watch
from krea_batch.jobs import Outcome, State
from krea_batch.ledger import Store
from krea_batch.pipeline.flight import Flight
from krea_batch.pipeline.producer import check_same
from krea_batch.pipeline.run import Run
from krea_batch.rules.lifecycle import ENDS

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
        if row.status in ENDS:
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
