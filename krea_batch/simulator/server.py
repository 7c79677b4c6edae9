"""Settings come in; a gateway and its CDN on two loopback ports go out, with an address for the judge."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import web

from krea_batch.simulator.books import Books, Remembered, SimulatedJob
from krea_batch.simulator.cdn import Cdn, need_pillow
from krea_batch.simulator.gateway import STATUS_PATH, SUBMIT_PATH, Gateway, error, json
from krea_batch.simulator.settings import SimulatorError, SimulatorSettings

MAX_BODY_BYTES = 4 << 20  # chosen: four times what the engine may send
WEBHOOK_TRIES = 3
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Simulator:
    """The simulated gateway on the caller's event loop. An async context manager.

    `gateway_url`, `cdn_url` and `admin_url` are there once it has started. Raises SimulatorError where it cannot.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.settings = settings or SimulatorSettings()
        self.books = Books(self.settings.balance)
        self.gateway = Gateway(self.settings, self.books)
        self._runners: list[web.AppRunner] = []
        self._webhooks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        if not self.settings.tiny:
            need_pillow()
        self._cdn = Cdn(self.gateway)
        self.gateway.accepted_hooks.append(self._send_webhook)
        if self.settings.remember_in:
            self._recall(Path(self.settings.remember_in))
            self.gateway.accepted_hooks.append(self._remember)
        self.cdn_url = await self._serve(self._cdn_app(), self.settings.cdn_port)
        self.gateway_url = await self._serve(self._gateway_app(), self.settings.port)
        self.admin_url = self.gateway_url + "/_admin"
        self.gateway.gateway_url, self.gateway.cdn_url = self.gateway_url, self.cdn_url

    async def close(self) -> None:
        for task in self._webhooks:
            task.cancel()
        await asyncio.gather(*self._webhooks, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()
        if hasattr(self, "_cdn"):
            await self._cdn.close()

    # ---- listening ---------------------------------------------------------------------------------------

    async def _serve(self, app: web.Application, port: int) -> str:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, self.settings.host, port, backlog=1024).start()
        except OSError as problem:
            raise SimulatorError(f"port {port} cannot be used ({problem.strerror})") from None
        return f"http://{self.settings.host}:{runner.addresses[0][1]}"

    def _gateway_app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post(SUBMIT_PATH, self.gateway.submit)
        app.router.add_get(STATUS_PATH, self.gateway.status)
        app.router.add_get("/_admin/totals", self._totals)
        app.router.add_get("/_admin/ledger", self._ledger)
        app.router.add_post("/_admin/balance", self._add_balance)
        app.router.add_post("/_admin/settings", self._change)
        return app

    def _cdn_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/{request_id}/{name}", self._cdn.get)
        return app

    # ---- the judge ---------------------------------------------------------------------------------------

    async def _totals(self, request: web.Request) -> web.Response:
        return json(200, self.books.totals())

    async def _ledger(self, request: web.Request) -> web.Response:
        return json(200, {"totals": self.books.totals(), "posts": msgspec.to_builtins(self.books.posts)})

    async def _add_balance(self, request: web.Request) -> web.Response:
        self.books.balance = (self.books.balance or 0) + int((await request.json())["add"])
        return json(200, self.books.totals())

    async def _change(self, request: web.Request) -> web.Response:
        """Change settings while running: those of `SimulatorSettings` that are named."""
        try:
            changed = msgspec.to_builtins(self.gateway.settings) | await request.json()
            self.gateway.configure(msgspec.convert(changed, SimulatorSettings))
        except (SimulatorError, msgspec.ValidationError) as problem:
            return error(400, "Bad Request", str(problem))
        return json(200, msgspec.to_builtins(self.gateway.settings))

    # ---- memory and callbacks ----------------------------------------------------------------------------

    def _recall(self, path: Path) -> None:
        """Know again the jobs of an earlier process."""
        if not path.exists():
            return
        decode = msgspec.json.Decoder(Remembered).decode
        for line in path.read_bytes().splitlines():
            try:
                job = decode(line).job()
            except msgspec.DecodeError:
                continue  # the last line of a process that was killed while it wrote
            self.books.jobs[job.request_id] = job

    def _remember(self, job: SimulatedJob, webhook_url: str | None) -> None:
        with Path(self.settings.remember_in).open("ab") as file:
            file.write(msgspec.json.encode(Remembered.of(job)) + b"\n")

    def _send_webhook(self, job: SimulatedJob, webhook_url: str | None) -> None:
        if webhook_url and urlsplit(webhook_url).hostname in LOOPBACK:
            task = asyncio.get_running_loop().create_task(self._call_back(job, webhook_url))
            self._webhooks.add(task)
            task.add_done_callback(self._webhooks.discard)

    async def _call_back(self, job: SimulatedJob, url: str) -> None:
        await asyncio.sleep(max(0.0, job.done_at - self.gateway.now()))
        async with aiohttp.ClientSession() as session:
            for attempt in range(WEBHOOK_TRIES):
                told: dict[str, Any] = self.gateway.told(job)
                try:
                    async with session.post(url, json=told) as answer:
                        if answer.status < 300:
                            self.books.counts["webhooks"] += 1
                            return
                except aiohttp.ClientError:
                    pass  # nobody listens: the next try follows
                await asyncio.sleep(0.2 * 2**attempt)
