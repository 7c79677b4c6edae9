"""A gateway whose jobs take their time, and which calls at their end, as a test or benchmark wants it to."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import orjson

from krea_batch.rules.verdicts import Accepted, PollTrouble, PollVerdict, PostVerdict, Unclear, Waiting
from krea_batch.testing.scripted_gateway import ScriptedGateway
from tests.asgi_client import App, call


class CallingGateway(ScriptedGateway):
    """Each job takes from 6 to 15 s; the gateway calls `after_s` its end, for that `share` of all jobs."""

    def __init__(self, *, after_s: tuple[float, ...] = (0.05,), share: float = 1.0, silent_from: int = 10**9) -> None:
        super().__init__()
        self.app: App | None = None
        self.after_s = after_s
        self.share = share
        self.silent_from = silent_from
        self.callbacks: dict[str, str] = {}
        self.ends_s: dict[str, float] = {}
        self.seen_s: dict[str, float] = {}
        self.lose_answers = False
        self.statuses: list[int] = []
        self._chance = Random(7)
        self._calls: list[asyncio.Task[None]] = []

    async def submit(self, body: bytes, *, callback: str = "") -> PostVerdict:
        verdict = await super().submit(body)
        assert isinstance(verdict, Accepted)
        request_id = verdict.request_id
        took_s = 6 + 9 * self._chance.random()
        self.callbacks[request_id] = callback
        self.ends_s[request_id] = asyncio.get_running_loop().time() + took_s
        calls = self._chance.random() < self.share
        if callback and calls and len(self.charged) <= self.silent_from:
            self._calls += [asyncio.create_task(self._call(request_id, took_s + after_s)) for after_s in self.after_s]
        return Unclear("cut") if self.lose_answers else verdict

    async def _call(self, request_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self.statuses.append(await self.tell(request_id))

    async def tell(self, request_id: str, path: str | None = None, **more: Any) -> int:
        assert self.app
        body = {"request_id": request_id, "status": "COMPLETED", **more}
        return await call(self.app, self.callbacks[request_id] if path is None else path, orjson.dumps(body))

    async def poll(self, request_id: str) -> PollVerdict:
        now_s = asyncio.get_running_loop().time()
        self.poll_times_s[request_id].append(now_s)
        if request_id not in self.ends_s:
            return PollTrouble("HTTP 404", 404)
        if now_s < self.ends_s[request_id]:
            return Waiting("PROCESSING")
        self.seen_s.setdefault(request_id, now_s)
        return self.finished(request_id)

    @property
    def polls_a_job(self) -> float:
        return sum(len(times_s) for times_s in self.poll_times_s.values()) / len(self.charged)

    @property
    def lags_s(self) -> list[float]:
        return sorted(self.seen_s[request_id] - end_s for request_id, end_s in self.ends_s.items())
