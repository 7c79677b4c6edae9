"""What callers of the engine wait for: a job's acceptance, what happens to it, and its end.

Newcomers: a wait that is cancelled cancels nothing but itself; the job is the engine's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

from krea_batch.engine.waiters import JobWaiter
from krea_batch.events import Event
from krea_batch.jobs import Outcome, State


class Handle:
    """A job of the engine's. Await it for its Outcome, iterate over it (`async for`) for its events until its end.

    Any number of tasks may do either; cancelling them never loses the image. Both raise RunStopped where the
    engine stops before the job's end; the next engine on the folder goes on with it, and its `get` finds it.
    """

    def __init__(self, job_id: str, waiter: JobWaiter) -> None:
        self.id = job_id
        self._waiter = waiter

    @property
    def request_id(self) -> str | None:
        """The gateway's name for the job; None before the acceptance, and for a job that ended without one."""
        return self._waiter.request_id

    @property
    def status(self) -> State:
        """Where the job stands now."""
        return self._waiter.state

    @property
    def outcome(self) -> Outcome | None:
        """What became of the job; None before its end, and where the engine stopped before it."""
        future = self._waiter.outcome
        return future.result() if future.done() and future.exception() is None else None

    def __await__(self) -> Generator[Any, None, Outcome]:
        return asyncio.shield(self._waiter.outcome).__await__()

    async def __aiter__(self) -> AsyncIterator[Event]:
        reader = self._waiter.open_stream()
        try:
            async for event in reader:
                yield event
        finally:
            self._waiter.close_stream(reader)
        await self._waiter.outcome

    def __repr__(self) -> str:
        return f"Handle(id={self.id!r}, status={self.status.value!r}, request_id={self.request_id!r})"
