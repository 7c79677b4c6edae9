"""Deliver webhooks: POST the status of a job to its webhook URL when the job ends.

Until the job ends there is only a timer; the task is created when the webhook is due.
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from urllib.parse import urlsplit

import aiohttp
import orjson

from krea_batch.testing.simulator.job_planner import SimulatedJob
from krea_batch.testing.simulator.state import SimulatorState

MAX_DELIVERY_ATTEMPTS = 3  # chosen: the API document does not say
RETRY_DELAY_S = 0.2  # chosen: real seconds after the first attempt; doubles after each further one
DELIVERY_TIMEOUT_S = 5.0  # chosen: real seconds; a receiver that takes longer counts as failed
MAX_CONNECTIONS = 100  # chosen: aiohttp's default


class Webhooks:
    """The webhooks of one simulator."""

    def __init__(self, state: SimulatorState) -> None:
        self.state = state
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    def schedule(self, job: SimulatedJob, url: str) -> None:
        """Deliver a webhook when the job ends. Remote hosts are refused unless the settings allow them."""
        if not (self.state.settings.allow_remote_webhooks or is_loopback(url)):
            self.state.accounting.counts["webhooks_refused"] += 1
            return
        if self.state.fault_injector.should_fail("webhook-lost", job.body_hash, job.occurrence):
            return
        times = 2 if self.state.fault_injector.should_fail("webhook-twice", job.body_hash, job.occurrence) else 1
        for _ in range(times):
            self._start_timer(job, url)

    def _start_timer(self, job: SimulatedJob, url: str) -> None:
        loop = asyncio.get_running_loop()

        def on_due() -> None:
            self._timers.discard(timer)
            task = loop.create_task(self._deliver(job, url))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        timer = loop.call_later(max(0.0, job.done_at - self.state.now()) + 0.001, on_due)
        self._timers.add(timer)

    async def _deliver(self, job: SimulatedJob, url: str) -> None:
        body = orjson.dumps(self.state.status_body(job))
        for attempt in range(MAX_DELIVERY_ATTEMPTS):
            if attempt:
                await asyncio.sleep(RETRY_DELAY_S * 2 ** (attempt - 1))
            if await self._post(url, body):
                self.state.accounting.counts["webhooks"] += 1
                return
        self.state.accounting.counts["webhooks_failed"] += 1

    async def _post(self, url: str, body: bytes) -> bool:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._client_session().post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status < 300
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False

    def _client_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=DELIVERY_TIMEOUT_S),
            )
        return self._session

    async def cancel_all(self) -> None:
        """Cancel all webhooks that are not delivered yet."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        await self.cancel_all()
        if self._session is not None:
            await self._session.close()
            self._session = None


def is_loopback(url: str) -> bool:
    """Return whether a URL's host is this machine, judging by the text only: no name is resolved."""
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
