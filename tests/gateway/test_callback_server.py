"""The port for callbacks: the run goes on and ends, no matter who connects to it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from krea_batch.gateway import callback_server, callbacks
from krea_batch.gateway.callback_server import MAX_CONNECTIONS, CallbackServer
from krea_batch.gateway.callbacks import CallbackEndpoint, CallbackRouter
from krea_batch.settings import Webhook

IDLE_CONNECTIONS = 5 * MAX_CONNECTIONS
HALF_HEADERS = b"POST /x HTTP/1.1\r\nHost: a\r\n"
HALF_BODY = HALF_HEADERS + b"Content-Length: 100\r\n\r\n{"


class Port:
    """A server with a router for one job, and the numbers of the jobs whose callbacks it has received."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.writers: list[asyncio.StreamWriter] = []
        endpoint = CallbackEndpoint()
        endpoint.router = self.router = CallbackRouter(b"secret", lambda job_no, _: self.received.append(job_no))
        self.server = CallbackServer(Webhook(listen="127.0.0.1:0"), endpoint)

    async def connect(self, data: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(data)
        self.writers.append(writer)
        return reader

    async def send_callback(self, job_no: int = 7) -> bytes:
        """Send a callback, and return everything that the server answers until it closes the connection."""
        request = f"POST {self.router.url_of(job_no)} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}"
        return await (await self.connect(request.encode())).read()


def with_port(check: Callable[[Port], Awaitable[None]]) -> None:
    """Run the check with an open port. It is much faster than the limit, which is half of what aiohttp waits for."""

    async def run() -> None:
        port = Port()
        async with asyncio.timeout(30.0):
            async with port.server:
                await check(port)
        for writer in port.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    asyncio.run(run())


@pytest.mark.parametrize("data", [b"", HALF_HEADERS, HALF_BODY], ids=["nothing", "half headers", "half a body"])
def test_many_connections(data: bytes) -> None:
    """Of hundreds of connections without a whole request the oldest are closed, and callbacks still arrive."""

    async def check(port: Port) -> None:
        connections = [await port.connect(data) for _ in range(IDLE_CONNECTIONS)]
        for reader in connections[: -MAX_CONNECTIONS - callback_server.BACKLOG]:
            assert await reader.read() == b""
        assert (await port.send_callback()).startswith(b"HTTP/1.1 204")
        assert port.received == [7]
        assert len(port.server._server.connections) <= MAX_CONNECTIONS

    with_port(check)


@pytest.mark.parametrize("data", [b"", HALF_HEADERS, HALF_BODY], ids=["nothing", "half headers", "half a body"])
def test_the_end_does_not_wait(data: bytes) -> None:
    """The server closes without waiting for a connection that sends nothing, or half a request."""

    async def check(port: Port) -> None:
        await port.connect(data)
        await port.send_callback()  # so that the first connection has been accepted

    with_port(check)


@pytest.mark.parametrize("data", [b"", HALF_HEADERS, HALF_BODY], ids=["nothing", "half headers", "half a body"])
def test_slow_requests(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that has not sent its request in time is closed."""
    monkeypatch.setattr(callback_server, "MAX_CONNECTION_S", 0.05)

    async def check(port: Port) -> None:
        reader = await port.connect(data)
        assert await reader.read() == b""

    with_port(check)


def test_a_slow_body_in_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted handler, and an ASGI app, answer 408 if the body does not arrive in time."""
    monkeypatch.setattr(callback_server, "MAX_BODY_S", 0.05)
    monkeypatch.setattr(callbacks, "MAX_BODY_S", 0.05)

    async def check(port: Port) -> None:
        reader = await port.connect(HALF_BODY)
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
        sent: list[object] = []

        async def receive() -> dict[str, object]:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        async def send(message: object) -> None:
            sent.append(message)

        await port.server._endpoint.asgi({"type": "http", "method": "POST", "path": "/x"}, receive, send)
        assert sent[0] == {"type": "http.response.start", "status": 408, "headers": []}

    with_port(check)


def test_one_request_per_connection() -> None:
    """The server closes a connection after its request, and says so."""

    async def check(port: Port) -> None:
        for _ in range(3):
            assert b"connection: close" in (await port.send_callback()).lower()

    with_port(check)


@pytest.mark.parametrize("data", [b"POST /x HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/9\r\n\r\n"])
def test_bytes_that_are_not_http(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Requests that are not valid HTTP are answered with 400, and nothing is logged."""

    async def check(port: Port) -> None:
        reader = await port.connect(data)
        assert (await reader.read()).partition(b"\r\n")[0].split()[1] == b"400"
        assert (await port.send_callback()).startswith(b"HTTP/1.1 204")

    with_port(check)
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


def test_a_port_that_is_reset() -> None:
    """A client that resets its connection does no harm."""

    async def check(port: Port) -> None:
        with socket.create_connection(("127.0.0.1", port.server.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(HALF_BODY)
        assert (await port.send_callback()).startswith(b"HTTP/1.1 204")

    with_port(check)
