"""Read a source of jobs as fast as its outcomes are taken, and yield the outcomes as jobs end, or in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable

import anyio

from krea_batch.jobs import Job, Outcome

StartJob = Callable[[Job], Awaitable[asyncio.Future[Outcome]]]
"""Starts a job. Returns the future of its outcome once the job has been admitted."""

MAX_STARTING = 32  # chosen: jobs that start together share a group commit of the ledger, at most every 10 ms


class OutcomeStream:
    """The jobs of one caller of `Engine.stream`.

    At most `max_pending` outcomes are pending or not taken yet; then the source is not read any further. It is read
    at most MAX_STARTING jobs ahead of those that have been admitted.
    """

    def __init__(self, start_job: StartJob, max_pending: int, *, ordered: bool) -> None:
        self._start_job = start_job
        self._ordered = ordered
        self._window = anyio.Semaphore(max_pending)
        self._starting = anyio.Semaphore(MAX_STARTING)
        self._starts: set[asyncio.Task[None]] = set()
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
        """Read the source and start each job in a task, until a job cannot be started."""
        try:
            async for job in _iterate(jobs):
                await self._window.acquire()
                await self._starting.acquire()
                if self._error:
                    return
                outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
                self._started += 1
                if self._ordered:
                    self._ended.put_nowait(outcome)
                else:
                    outcome.add_done_callback(self._ended.put_nowait)
                task = asyncio.create_task(self._start(job, outcome))
                self._starts.add(task)
                task.add_done_callback(self._starts.discard)
        finally:
            self._ended.put_nowait(None)

    async def _start(self, job: Job, outcome: asyncio.Future[Outcome]) -> None:
        """Start a job whose result goes to `outcome`."""
        try:
            started = await self._start_job(job)
        except BaseException as error:
            self._error = self._error or error
            _settle(outcome, error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        finally:
            self._starting.release()
        started.add_done_callback(lambda done: _settle(outcome, done.exception() or done.result()))

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


def _settle(outcome: asyncio.Future[Outcome], result: Outcome | BaseException) -> None:
    """Set the result or the exception of a future that is not done."""
    if outcome.done():
        return
    if isinstance(result, BaseException):
        outcome.set_exception(result)
        outcome.exception()  # Retrieved, because no one may be waiting for it.
    else:
        outcome.set_result(result)


async def _iterate(jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncIterator[Job]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job
