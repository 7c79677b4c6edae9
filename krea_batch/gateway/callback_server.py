"""Serves a callback endpoint with aiohttp: a server of its own, or a handler for another application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web

from krea_batch.errors import SettingsError
from krea_batch.gateway.callbacks import MAX_CALLBACK_BYTES, CallbackEndpoint
from krea_batch.settings import Webhook

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request_handler(endpoint: CallbackEndpoint) -> Handler:
    """Return a handler for every method and path below the URL of the endpoint."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=endpoint.receive(request.method, request.path, await _body_of(request)))

    return handle


class CallbackServer:
    """An HTTP server for callbacks. An async context manager; `port` is known inside it."""

    def __init__(self, webhook: Webhook, endpoint: CallbackEndpoint) -> None:
        self._host, self._port = webhook.listen_address
        self._endpoint = endpoint

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", request_handler(self._endpoint))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            problem = f"cannot listen on {self._host}:{self._port} ({error.strerror})"
            raise SettingsError("webhook.listen", problem, "use a free port of this machine") from error
        self.port: int = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def _body_of(request: web.Request) -> bytes | None:
    """Return the body of a request, or None if it is too large."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_CALLBACK_BYTES:
            return None
    return bytes(body)
