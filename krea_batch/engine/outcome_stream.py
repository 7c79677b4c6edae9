"""Read a source of jobs as fast as its outcomes are taken, and yield the outcomes as jobs end, or in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable

import anyio

from krea_batch.jobs import Job, Outcome

StartJob = Callable[[Job], Awaitable[asyncio.Future[Outcome]]]
"""Starts a job. Returns the future of its outcome once the job has been admitted."""


class OutcomeStream:
    """The jobs of one caller of `Engine.stream`.

    At most `max_pending` outcomes are pending or not taken yet; then the source is not read any further.
    """

    def __init__(self, start_job: StartJob, max_pending: int, *, ordered: bool) -> None:
        self._start_job = start_job
        self._ordered = ordered
        self._window = anyio.Semaphore(max_pending)
        self._ended: asyncio.Queue[asyncio.Future[Outcome] | None] = asyncio.Queue()
        self._feeder: asyncio.Task[None] | None = None
        self._started = self._yielded = 0
        self._error: BaseException | None = None

    def cancel(self) -> None:
        """Stop reading the source, even while it waits for its next job."""
        if self._feeder:
            self._feeder.cancel()

    async def outcomes(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncIterator[Outcome]:
        """Yield the outcomes of all jobs. Then raise the first exception of a job, or of reading the source."""
        self._feeder = asyncio.create_task(self._feed(jobs))
        try:
            while (future := await self._next()) is not None:
                self._yielded += 1
                self._window.release()
                if error := future.exception():
                    self._error = self._error or error
                else:
                    yield future.result()
            if not self._feeder.cancelled():
                self._feeder.result()
        finally:
            self._feeder.cancel()
        if self._error:
            raise self._error

    @property
    def cancelled(self) -> bool:
        """Whether the source was not read to its end."""
        return self._feeder is not None and self._feeder.cancelled()

    async def _feed(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> None:
        try:
            async for job in _iterate(jobs):
                await self._window.acquire()
                outcome = await self._start_job(job)
                self._started += 1
                if self._ordered:
                    self._ended.put_nowait(outcome)
                else:
                    outcome.add_done_callback(self._ended.put_nowait)
        finally:
            self._ended.put_nowait(None)

    async def _next(self) -> asyncio.Future[Outcome] | None:
        """Return the next outcome that has ended; None at the end of the source, once every outcome is taken."""
        assert self._feeder  # noqa: S101 - set by `outcomes`
        while not (self._feeder.done() and self._yielded == self._started):
            future = await self._ended.get()
            if future is None:
                await asyncio.wait([self._feeder])
            else:
                await asyncio.wait([future])
                return future
        return None


async def _iterate(jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncIterator[Job]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job
