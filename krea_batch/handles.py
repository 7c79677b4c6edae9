"""What callers of the engine wait for: a job's acceptance, what happens to it, and its end.

Newcomers: a wait that is cancelled cancels nothing but itself; the job is the engine's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

from krea_batch.events import Ended, Event, Missed, Moved, Troubled
from krea_batch.jobs import Outcome, State

MOST_UNREAD = 10_000  # chosen: events, some megabytes; who reads no faster in a minute's run reads none in time


class Handle:
    """A job of the engine's. Await it for its Outcome, iterate over it (`async for`) for its events until its end.

    Any number of tasks may do either; cancelling them never loses the picture. Both raise RunStopped where the
    engine stops before the job's end; the next engine on the folder goes on with it, and its `get` finds it.
    """

    def __init__(self, job_id: str, watch: Watch) -> None:
        self.id = job_id
        self._watch = watch

    @property
    def request_id(self) -> str | None:
        """The gateway's name for the job; None before the acceptance, and for a job that ended without one."""
        return self._watch.request_id

    @property
    def status(self) -> State:
        """Where the job stands now."""
        return self._watch.state

    @property
    def outcome(self) -> Outcome | None:
        """What became of the job; None before its end, and where the engine stopped before it."""
        future = self._watch.outcome
        return future.result() if future.done() and future.exception() is None else None

    def __await__(self) -> Generator[Any, None, Outcome]:
        return asyncio.shield(self._watch.outcome).__await__()

    async def __aiter__(self) -> AsyncIterator[Event]:
        reader = self._watch.reader()
        try:
            async for event in reader:
                yield event
        finally:
            self._watch.forget(reader)
        await self._watch.outcome

    def __repr__(self) -> str:
        return f"Handle(id={self.id!r}, status={self.status.value!r}, request_id={self.request_id!r})"


class Reader:
    """Events for one reader, in order, until `end`. Who is too slow is told how many he has missed."""

    def __init__(self, most: int = MOST_UNREAD) -> None:
        self._most = most
        self._unread: deque[Event] = deque()
        self._missed = 0
        self._over = False
        self._news = asyncio.Event()

    def hear(self, event: Event) -> None:
        """Keep an event until it is read."""
        if len(self._unread) >= self._most:
            self._unread.popleft()
            self._missed += 1
        self._unread.append(event)
        self._news.set()

    def end(self) -> None:
        """Nothing will follow."""
        self._over = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            if self._missed:
                missed, self._missed = self._missed, 0
                yield Missed(missed)
            elif self._unread:
                yield self._unread.popleft()
            elif self._over:
                return
            else:
                self._news.clear()
                await self._news.wait()


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
