"""A gateway whose jobs take some seconds, and which sends callbacks when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import orjson

from krea_batch.rules.verdicts import Accepted, Ambiguous, PollFailed, PollVerdict, PostVerdict, Waiting
from krea_batch.testing import ScriptedGateway
from tests.asgi_client import App, call_asgi


class CallbackGateway(ScriptedGateway):
    """Each job takes from 6 to 15 s. Callbacks are sent `callback_delays_s` after its end.

    `callback_share` is the share of jobs that have callbacks; after `callback_limit` jobs there are none.
    """

    def __init__(
        self,
        *,
        callback_delays_s: tuple[float, ...] = (0.05,),
        callback_share: float = 1.0,
        callback_limit: int = 10**9,
    ) -> None:
        super().__init__()
        self.app: App | None = None
        self.callback_delays_s = callback_delays_s
        self.callback_share = callback_share
        self.callback_limit = callback_limit
        self.callback_paths: dict[str, str] = {}
        self.done_at_s: dict[str, float] = {}
        self.detected_s: dict[str, float] = {}
        self.lose_responses = False
        self.callback_statuses: list[int] = []
        self._random = Random(7)
        self._callback_tasks: list[asyncio.Task[None]] = []

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        verdict = await super().submit(body, on_sending=on_sending)
        assert isinstance(verdict, Accepted)
        request_id = verdict.request_id
        duration_s = 6 + 9 * self._random.random()
        self.callback_paths[request_id] = callback
        self.done_at_s[request_id] = asyncio.get_running_loop().time() + duration_s
        has_callback = self._random.random() < self.callback_share
        if callback and has_callback and len(self.charged) <= self.callback_limit:
            self._callback_tasks += [
                asyncio.create_task(self._send_later(request_id, duration_s + after_s))
                for after_s in self.callback_delays_s
            ]
        return Ambiguous("cut") if self.lose_responses else verdict

    async def _send_later(self, request_id: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self.callback_statuses.append(await self.send_callback(request_id))

    async def send_callback(self, request_id: str, path: str | None = None, **fields: Any) -> int:
        """Send a callback for a job and return the HTTP status of the response."""
        assert self.app
        body = {"request_id": request_id, "status": "COMPLETED", **fields}
        return await call_asgi(
            self.app, self.callback_paths[request_id] if path is None else path, orjson.dumps(body)
        )

    async def poll(self, request_id: str) -> PollVerdict:
        now_s = asyncio.get_running_loop().time()
        self.poll_times_s[request_id].append(now_s)
        if request_id not in self.done_at_s:
            return PollFailed("HTTP 404", 404)
        if now_s < self.done_at_s[request_id]:
            return Waiting("PROCESSING")
        self.detected_s.setdefault(request_id, now_s)
        return self.finished(request_id)

    @property
    def polls_per_job(self) -> float:
        """Return the mean number of polls of a job."""
        return sum(len(times_s) for times_s in self.poll_times_s.values()) / len(self.charged)

    @property
    def lags_s(self) -> list[float]:
        """Return the times between the end of a job and the poll that detected it, sorted."""
        return sorted(self.detected_s[request_id] - end_s for request_id, end_s in self.done_at_s.items())
