"""What callers of the engine wait for: a job's acceptance, and its end.

Newcomers: a wait that is cancelled cancels nothing but itself; the job is the engine's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from krea_batch.jobs import Outcome


class Handle:
    """A submitted job. Await it for its Outcome; cancelling that wait never loses the picture.

    `request_id` is None only for a job that ended before it had one.
    """

    def __init__(self, job_id: str, request_id: str | None, outcome: asyncio.Future[Outcome]) -> None:
        self.id = job_id
        self.request_id = request_id
        self._outcome = outcome

    def __await__(self) -> Generator[Any, None, Outcome]:
        return asyncio.shield(self._outcome).__await__()

    def __repr__(self) -> str:
        return f"Handle(id={self.id!r}, request_id={self.request_id!r})"


class Watch:
    """What callers wait for: `accepted` once the request_id is on record (or the end came), `outcome` the end."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[str | None] = loop.create_future()
        self.outcome: asyncio.Future[Outcome] = loop.create_future()

    def accept(self, request_id: str | None) -> None:
        if not self.accepted.done():
            self.accepted.set_result(request_id)

    def end(self, outcome: Outcome) -> None:
        self.accept(outcome.request_id)
        self.outcome.set_result(outcome)

    def give_up(self, why: BaseException) -> None:
        for future in (self.accepted, self.outcome):
            if not future.done():
                future.set_exception(why)
                future.exception()  # nobody has to wait for it
