"""A handle on one job: await its outcome, or iterate over its events.

Cancelling a wait does not cancel the job, which belongs to the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

from krea_batch.events import Event
from krea_batch.jobs import Outcome, State
from krea_batch.pipeline.waiters import JobWaiter


class Handle:
    """A job of an engine. Await it for its Outcome, or iterate over it (`async for`) for its events until its end.

    Any number of tasks can do either. Cancelling them never loses the image. Both raise RunStopped if the engine
    stops before the job ends; the next engine on the run directory resumes the job, and its `get` returns a new
    handle. A notebook shows the image of a job that has ended.
    """

    def __init__(self, job_id: str, waiter: JobWaiter) -> None:
        self.id = job_id
        self._waiter = waiter

    @property
    def request_id(self) -> str | None:
        """The gateway's id of the job; None before it is accepted, or if it ended without being accepted."""
        return self._waiter.request_id

    @property
    def status(self) -> State:
        """The current state of the job."""
        return self._waiter.state

    @property
    def outcome(self) -> Outcome | None:
        """The outcome of the job; None before its end, or if the engine stopped before it."""
        future = self._waiter.outcome
        return future.result() if future.done() and future.exception() is None else None

    def __await__(self) -> Generator[Any, None, Outcome]:
        return asyncio.shield(self._waiter.outcome).__await__()

    async def __aiter__(self) -> AsyncIterator[Event]:
        stream = self._waiter.open_stream()
        try:
            async for event in stream:
                yield event
        finally:
            self._waiter.close_stream(stream)
        await self._waiter.outcome

    def __repr__(self) -> str:
        return f"Handle(id={self.id!r}, status={self.status.value!r}, request_id={self.request_id!r})"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Any:
        """Return what a notebook shows: the image once the job has ended."""
        return self.outcome._repr_mimebundle_() if self.outcome else {"text/plain": repr(self)}
