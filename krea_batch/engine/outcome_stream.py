"""Jobs come in from a source as fast as they can be taken; their outcomes go out, as they come or in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable

import anyio

from krea_batch.jobs import Job, Outcome

StartJob = Callable[[Job], Awaitable[asyncio.Future[Outcome]]]


class OutcomeStream:
    """One caller's jobs. `enter` puts a job on its way, and gives its outcome's future once the job had its turn.

    At most `most` outcomes are on their way or wait to be taken; the source is read no further.
    """

    def __init__(self, enter: StartJob, max_pending: int, *, ordered: bool) -> None:
        self._enter = enter
        self._ordered = ordered
        self._window = anyio.Semaphore(max_pending)
        self._ended: asyncio.Queue[asyncio.Future[Outcome] | None] = asyncio.Queue()
        self._feeder: asyncio.Task[None] | None = None
        self._fed = self._taken = 0
        self._trouble: BaseException | None = None

    def cancel(self) -> None:
        """Read no more of the source, however long it would be silent."""
        if self._feeder:
            self._feeder.cancel()

    async def outcomes(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncIterator[Outcome]:
        """Yields what ends, and at last raises what kept a job from its end, or the source from being read."""
        self._feeder = asyncio.create_task(self._feed(jobs))
        try:
            while (future := await self._next()) is not None:
                self._taken += 1
                self._window.release()
                if error := future.exception():
                    self._trouble = self._trouble or error
                else:
                    yield future.result()
            if not self._feeder.cancelled():
                self._feeder.result()
        finally:
            self._feeder.cancel()
        if self._trouble:
            raise self._trouble

    @property
    def cancelled(self) -> bool:
        """Whether the source was not read to its end."""
        return self._feeder is not None and self._feeder.cancelled()

    async def _feed(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> None:
        try:
            async for job in _each(jobs):
                await self._window.acquire()
                outcome = await self._enter(job)
                self._fed += 1
                if self._ordered:
                    self._ended.put_nowait(outcome)
                else:
                    outcome.add_done_callback(self._ended.put_nowait)
        finally:
            self._ended.put_nowait(None)

    async def _next(self) -> asyncio.Future[Outcome] | None:
        """The next that has ended; None where the source is at its end, and all that came of it is taken."""
        assert self._feeder  # noqa: S101 - `outcomes` has made it
        while not (self._feeder.done() and self._taken == self._fed):
            future = await self._ended.get()
            if future is None:
                await asyncio.wait([self._feeder])
            else:
                await asyncio.wait([future])
                return future
        return None


async def _each(jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncIterator[Job]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job
