"""A model of the gateway for forecasts: latencies, a rate limit and response times.

It validates nothing and injects no faults; the simulator does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Self

from krea_batch.forecast.latency_model import Latencies
from krea_batch.rules.verdicts import Accepted, Finished, NotSent, PollVerdict, PostVerdict, Refusal, Refused, Waiting
from krea_batch.testing.script_entries import make_png

SUBMIT_LATENCY_S = 0.05  # chosen: a round trip of some milliseconds, and some processing
POLL_LATENCY_S = 0.03  # chosen: the same, with less processing
DOWNLOAD_LATENCY_S = 0.1  # chosen: an image of 2 MB at 160 Mbit/s


_PIXEL_PNG = make_png(1, 1)


class OnePixelImage:
    """The image of every job."""

    def __init__(self) -> None:
        self.offset = 0
        self.etag: str | None = None
        self.is_sized = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        yield _PIXEL_PNG


class ModelGateway:
    """A gateway with these latencies. `limit_per_s` is enforced with a sliding window of one second; None: no limit.

    `accepted_s` has the times of the accepted submits, on the clock of the event loop.
    """

    def __init__(self, latencies: Latencies, limit_per_s: float | None, seed: int = 0) -> None:
        self._latencies = latencies
        self._limit_per_s = limit_per_s
        self._random = Random(seed)
        self._ends_s: dict[str, tuple[float, float]] = {}  # by request_id: when it ends, and its latency
        self._window: deque[float] = deque()
        self.accepted_s: list[float] = []

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        if on_sending and (reason := await on_sending()):
            return NotSent(reason)
        now_s = asyncio.get_running_loop().time()
        refusal = self._check_limit(now_s)
        await asyncio.sleep(SUBMIT_LATENCY_S)
        if refusal:
            return refusal
        took_s = self._latencies(self._random)
        request_id = f"krea-2-large-text-to-image_{len(self._ends_s):012d}"
        self._ends_s[request_id] = now_s + took_s, took_s
        self.accepted_s.append(now_s)
        return Accepted(request_id, Waiting("QUEUED"))

    async def poll(self, request_id: str) -> PollVerdict:
        await asyncio.sleep(POLL_LATENCY_S)
        end_s, took_s = self._ends_s[request_id]
        if asyncio.get_running_loop().time() < end_s:
            return Waiting("PROCESSING")
        return Finished((f"https://cdn.invalid/{request_id}.png",), "image/png", took_s=took_s)

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> OnePixelImage:
        await asyncio.sleep(DOWNLOAD_LATENCY_S)
        return OnePixelImage()

    def _check_limit(self, now_s: float) -> Refused | None:
        if self._limit_per_s is None:
            return None
        span_s = max(1.0, 1.0 / self._limit_per_s)
        window = self._window
        while window and window[0] <= now_s - span_s:
            window.popleft()
        if len(window) >= self._limit_per_s * span_s:
            return Refused(Refusal.RATE_LIMITED, 429, "Too Many Requests", max(1.0, window[0] + span_s - now_s))
        window.append(now_s)
        return None
