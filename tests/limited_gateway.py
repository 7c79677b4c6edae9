"""A scripted gateway behind a limiter of the judge (`tests.limiter_judge`)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import orjson

from krea_batch.rules.verdicts import Accepted, PollVerdict, PostVerdict, Refusal, Refused, Waiting
from krea_batch.testing import ScriptedGateway
from tests.limiter_judge import JudgedGateway

_numbers = itertools.count()


class LimitedGateway(ScriptedGateway):
    """Accepts jobs as the limiter allows. Several gateways may share one limiter, as engines share a key.

    Each POST has a connection of its own, which takes a random time of up to `connect_s`.
    """

    def __init__(self, judged: JudgedGateway, connect_s: float = 0.0) -> None:
        super().__init__()
        self._connect_s = connect_s
        self._judged = judged
        self._end_s: dict[str, float] = {}

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        await asyncio.sleep(self._judged.random.random() * self._connect_s)
        if on_sending:
            await on_sending()
        await asyncio.sleep(self._judged.delay_s())
        wait_s, end_s = self._judged.submit(asyncio.get_running_loop().time())
        await asyncio.sleep(self._judged.latency_s())
        if wait_s:
            return Refused(Refusal.RATE_LIMITED, 429, "Too Many Requests", self._judged.retry_after_s(wait_s))
        verdict = self.accept(orjson.loads(body)["prompt"])
        self._end_s[verdict.request_id] = end_s
        return verdict

    def accept(self, prompt: str) -> Accepted:
        """Charge a new job and return its verdict. No two gateways return the same request_id."""
        request_id = f"krea-2-large-text-to-image_{next(_numbers):08d}"
        self.charged[request_id] = prompt
        return Accepted(request_id, Waiting("QUEUED"))

    async def poll(self, request_id: str) -> PollVerdict:
        await asyncio.sleep(0.05)
        is_over = asyncio.get_running_loop().time() >= self._end_s[request_id]
        return self.finished(request_id) if is_over else Waiting("PROCESSING")
