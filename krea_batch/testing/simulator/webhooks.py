"""Accepted jobs with a callback address come in; when a job ends, its status goes out to that address.

Newcomers: a job that waits for its end is a timer and nothing more; a task begins when it is due.
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from urllib.parse import urlsplit

import aiohttp
import orjson

from krea_batch.testing.simulator.job_planner import SimulatedJob
from krea_batch.testing.simulator.state import State

TRIES = 3
GAP_S = 0.2  # chosen: after the first try, real seconds; then twice as long
TIMEOUT_S = 5.0
AT_ONCE = 100


class Webhooks:
    """The callbacks of one simulator."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    def plan(self, job: SimulatedJob, url: str) -> None:
        """Call this address when the job ends; hosts other than loopback only where the settings allow it."""
        if not (self.state.settings.allow_remote_webhooks or is_loopback(url)):
            self.state.books.counts["webhooks_refused"] += 1
            return
        if self.state.dice.strikes("webhook-lost", job.mark, job.copy):
            return
        times = 2 if self.state.dice.strikes("webhook-twice", job.mark, job.copy) else 1
        for _ in range(times):
            self._wait(job, url)

    def _wait(self, job: SimulatedJob, url: str) -> None:
        loop = asyncio.get_running_loop()

        def due() -> None:
            self._timers.discard(timer)
            task = loop.create_task(self._deliver(job, url))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        timer = loop.call_later(max(0.0, job.done_at - self.state.now()) + 0.001, due)
        self._timers.add(timer)

    async def _deliver(self, job: SimulatedJob, url: str) -> None:
        body = orjson.dumps(self.state.told(job))
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(GAP_S * 2 ** (attempt - 1))
            if await self._try(url, body):
                self.state.books.counts["webhooks"] += 1
                return
        self.state.books.counts["webhooks_failed"] += 1

    async def _try(self, url: str, body: bytes) -> bool:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._open().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status < 300
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=AT_ONCE), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
            )
        return self._session

    async def forget(self) -> None:
        """Call nobody any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.forget()
        if self._session is not None:
            await self._session.close()
            self._session = None


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine, by its name alone: nothing is looked up."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme not in ("http", "https"):
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
