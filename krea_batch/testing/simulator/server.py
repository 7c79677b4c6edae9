"""Start and stop the gateway and the CDN, on two loopback ports.

Both run on the caller's event loop, asyncio's own or uvloop. No handler computes for longer than some hundred
microseconds: images are drawn in threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from aiohttp import web

from krea_batch.testing.simulator.accounting import Accounting
from krea_batch.testing.simulator.admin import Admin
from krea_batch.testing.simulator.cdn import Cdn, require_pillow
from krea_batch.testing.simulator.job_log import JobLog
from krea_batch.testing.simulator.responses import error
from krea_batch.testing.simulator.settings import SimulatorError, SimulatorSettings
from krea_batch.testing.simulator.state import SimulatorState
from krea_batch.testing.simulator.status_handler import STATUS_ROUTE, StatusHandler
from krea_batch.testing.simulator.submit_handler import SUBMIT_ROUTE, SubmitHandler
from krea_batch.testing.simulator.webhooks import Webhooks

MAX_BODY_BYTES = 4 << 20  # chosen: four times the engine's largest body
BACKLOG = 1024  # chosen: no burst of new connections is larger
SHUTDOWN_TIMEOUT_S = 0.5  # chosen: lets responses in progress finish


class Simulator:
    """The simulated gateway and CDN, an async context manager. `start` and `close` do the same without `async with`.

    `gateway_url`, `cdn_url` and `admin_url` are set once it has started. `start` raises SimulatorError if it cannot
    start: a port is in use, Pillow is missing, or the state file cannot be opened.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.settings = settings or SimulatorSettings()
        self.gateway_url = ""
        self.cdn_url = ""
        self.admin_url = ""
        self._state = SimulatorState(self.settings)
        self._webhooks = Webhooks(self._state)
        self._runners: list[web.AppRunner] = []
        self._cdn: Cdn | None = None
        self._job_log: JobLog | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Open both ports. Requests are answered when this returns."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close both ports. The counts can still be read. Closing twice has no effect."""
        await self._webhooks.close()
        for runner in reversed(self._runners):
            await runner.cleanup()
        self._runners.clear()
        if self._cdn is not None:
            self._cdn.close()
        if self._job_log is not None:
            self._job_log.close()

    @property
    def accounting(self) -> Accounting:
        """Return the counts, for tests in the same process."""
        return self._state.accounting

    def totals(self) -> dict[str, Any]:
        """Return what GET /_admin/totals returns."""
        return self.accounting.totals(self._state.now())

    def ledger(self) -> dict[str, Any]:
        """Return what GET /_admin/ledger returns."""
        return self.accounting.ledger(self._state.now())

    async def _start(self) -> None:
        settings, state = self.settings, self._state
        if settings.draws_images:
            require_pillow()
        if settings.state_file:
            try:
                self._job_log = JobLog(Path(settings.state_file), state.accounting)
                state.count_jobs_in_process()
            except OSError as error:
                raise SimulatorError(f"{settings.state_file}: {error.strerror}", "state_file") from None
        self._cdn = Cdn(state)
        state.cdn_url = self.cdn_url = await self._serve(_cdn_app(self._cdn), settings.cdn_port, "cdn_port")
        app = _gateway_app(
            SubmitHandler(state, self._webhooks, self._job_log), StatusHandler(state), Admin(state, self._webhooks)
        )
        state.gateway_url = self.gateway_url = await self._serve(app, settings.port, "port")
        self.admin_url = self.gateway_url + "/_admin"

    async def _serve(self, app: web.Application, port: int, name: str) -> str:
        """Listen on a port and return its URL."""
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        await runner.setup()
        self._runners.append(runner)
        host = self.settings.host
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        except OSError as error:
            raise SimulatorError(f"cannot listen on {host}:{port} ({error.strerror})", name) from None
        url_host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
        return f"http://{f'[{url_host}]' if ':' in url_host else url_host}:{runner.addresses[0][1]}"


def _gateway_app(submits: SubmitHandler, polls: StatusHandler, admin: Admin) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post(SUBMIT_ROUTE, submits.post)
    app.router.add_get(STATUS_ROUTE, polls.get, allow_head=False)
    app.router.add_routes(admin.routes())
    app.router.add_post("/{model}/v1/{name}", submits.other_model)
    app.router.add_route("*", "/{path:.*}", _no_such_path)
    return app


def _cdn_app(cdn: Cdn) -> web.Application:
    app = web.Application()
    app.router.add_get("/v1/{request_id}/{name}", cdn.get)
    app.router.add_route("*", "/{path:.*}", cdn.other_path)
    return app


async def _no_such_path(request: web.Request) -> web.StreamResponse:
    return error(404, "Not Found", "There is nothing at this URL.")
