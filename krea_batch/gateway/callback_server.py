"""Serves a callback endpoint with aiohttp: a server of its own, or a handler for another application.

The port of the server is reachable from the internet, and the run must not depend on who connects to it. So each
connection serves one request, for a few seconds at most, and when there are too many, the oldest is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web
from aiohttp.http import HttpProcessingError

from krea_batch.errors import SettingsError
from krea_batch.gateway.callbacks import MAX_BODY_S, MAX_CALLBACK_BYTES, TIMED_OUT, CallbackEndpoint
from krea_batch.settings import Webhook

MAX_CONNECTIONS = 64  # chosen: callbacks take milliseconds each, and files and sockets of the run need descriptors
MAX_CONNECTION_S = 10.0  # chosen: headers and body of a callback, a few hundred bytes, over a slow line
BACKLOG = 16  # chosen: this many are accepted before the oldest are closed; others wait in the operating system
SHUTDOWN_S = 1.0  # chosen: connections are closed first, so handlers end without a wait

_logger = logging.getLogger(__name__)
# A stranger could fill the log, and the pipe of a process that reads it slowly, with requests that are not HTTP.
_logger.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request_handler(endpoint: CallbackEndpoint) -> Handler:
    """Return a handler for every method and path below the URL of the endpoint."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await _respond(endpoint, request)

    return handle


class CallbackServer:
    """An HTTP server for callbacks. An async context manager; `port` is known inside it."""

    def __init__(self, webhook: Webhook, endpoint: CallbackEndpoint) -> None:
        self._host, self._port = webhook.listen_address
        self._endpoint = endpoint

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._handle, access_log=None, logger=_logger, lingering_time=0)
        try:
            self._listener = await self._loop.create_server(self._connect, self._host, self._port, backlog=BACKLOG)
        except OSError as error:
            problem = f"cannot listen on {self._host}:{self._port} ({error.strerror})"
            raise SettingsError("webhook.listen", problem, "use a free port of this machine") from error
        self.port: int = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for connection in self._server.connections:
            connection.force_close()
        await self._server.shutdown(SHUTDOWN_S)

    def _connect(self) -> asyncio.BaseProtocol:
        """Return the protocol of a new connection, and close the oldest ones if there are too many."""
        connections = self._server.connections
        for oldest in connections[: max(0, len(connections) + 1 - MAX_CONNECTIONS)]:
            oldest.force_close()
        connection = self._server()
        self._loop.call_later(MAX_CONNECTION_S, connection.force_close)
        return connection

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await _respond(self._endpoint, request)
        response.force_close()
        return response


async def _respond(endpoint: CallbackEndpoint, request: web.BaseRequest) -> web.StreamResponse:
    try:
        async with asyncio.timeout(MAX_BODY_S):
            body = await _body_of(request)
    except (OSError, web.RequestPayloadError):  # too late, or the connection is lost
        return web.Response(status=TIMED_OUT)
    return web.Response(status=endpoint.receive(request.method, request.path, body))


async def _body_of(request: web.BaseRequest) -> bytes | None:
    """Return the body of a request, or None if it is too large."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_CALLBACK_BYTES:
            return None
    return bytes(body)
