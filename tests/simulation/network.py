"""The transport below `GatewayClient` in virtual time: sessions and responses with the parts of aiohttp that it uses.

Everything above it is the product's own: what an answer means, which connections are kept, which time-outs apply, and
what is known of a POST that broke off. A connection has a queue of replies, as a socket has. A server that sends one
reply too many leaves it there, and the next request on that connection gets it, unless the client closes it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import aiohttp

from krea_batch.gateway import client
from krea_batch.gateway.sessions import KeptSessions, Transmission

if TYPE_CHECKING:
    from tests.simulation.random_gateway import RandomGateway

Part = bytes | float | Exception
"""Of a body: bytes that arrive, seconds that pass, or an error that ends it."""


class Request:
    """A request as the server receives it.

    `sent_s` is when it was sent, in the event loop's time. `subject` is what the server knows about it.
    """

    __slots__ = ("body", "headers", "method", "sent_s", "subject", "url")

    def __init__(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.sent_s = 0.0
        self.subject: Any = None


class Reply:
    """A response that a server sends `delay_s` after the request, or an `error` instead of its first line.

    `to` is the request that it answers. `at_s` is when it arrives, in the event loop's time. `names` is the
    request_id whose status it is, if it can be read.
    """

    __slots__ = ("at_s", "delay_s", "error", "headers", "names", "parts", "status", "to")

    def __init__(
        self,
        status: int,
        *parts: Part,
        delay_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
        error: Exception | None = None,
        to: Request | None = None,
        names: str = "",
    ) -> None:
        self.status = status
        self.parts = parts
        self.delay_s = delay_s
        self.headers = headers or {}
        self.error = error
        self.to = to
        self.names = names
        self.at_s = 0.0

    @property
    def ends_s(self) -> float:
        """When its last byte arrives."""
        return self.at_s + sum(part for part in self.parts if isinstance(part, float))


def broken(error: Exception, delay_s: float = 0.0) -> Reply:
    """Return what arrives if a connection breaks before the response."""
    return Reply(0, error=error, delay_s=delay_s)


class Connection:
    """One connection. `replies` are those that were sent and not read. `requests` counts the requests so far.

    `strange` describes a reply that was read here and was not for the request before it.
    """

    __slots__ = ("replies", "requests", "strange")

    def __init__(self) -> None:
        self.replies: deque[Reply] = deque()
        self.requests = 0
        self.strange = ""


class SimulatedResponse:
    """What `GatewayClient` uses of an aiohttp.ClientResponse; it is its own `content`."""

    def __init__(self, session: SimulatedSession, request: Request, reply: Reply, deadline_s: float) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.content = self
        self._session = session
        self._request = request
        self._reply = reply
        self._deadline_s = deadline_s
        # Bytes in a socket take some steps of the event loop to arrive here.
        self._parts: Iterator[Part] = iter((0.0, *reply.parts))
        self._arrived_s = reply.at_s
        self._has_begun = False
        self._is_at_end = False

    async def readany(self) -> bytes:
        """Return the next bytes; b"" at the end. Raises what aiohttp raises if the connection breaks."""
        for part in self._parts:
            if isinstance(part, Exception):
                self._session.server.on_read(self._request, self._reply)
                raise part
            if isinstance(part, float):
                await self._wait(part)
            elif part:
                self._has_begun = True
                return part
        if not self._is_at_end:
            self._is_at_end = True
            self._session.server.on_read(self._request, self._reply)
        return b""

    async def _wait(self, duration_s: float) -> None:
        self._arrived_s += duration_s  # also while the process stalls
        try:
            await self._session.wait(self._arrived_s - asyncio.get_running_loop().time(), self._deadline_s)
        except asyncio.CancelledError:
            self._session.server.on_given_up(self._request, self._reply, has_begun=self._has_begun)
            raise

    async def read(self, _: int) -> bytes:
        """Return the next bytes; a part is never larger than what is asked for."""
        return await self.readany()

    def close(self) -> None:
        """Close the connection, unless the response was read to its end."""
        if not self._is_at_end:
            self._session.disconnect()


class SimulatedSession:
    """What `GatewayClient` uses of an aiohttp.ClientSession, with the options of `sessions.open_session`."""

    def __init__(
        self,
        server: RandomGateway,
        *,
        is_kept: bool = False,
        total_timeout_s: float | None = None,
        read_timeout_s: float | None = None,
        **_: object,
    ) -> None:
        self.server = server
        self._total_timeout_s = total_timeout_s
        self._is_kept = is_kept
        self._read_timeout_s = read_timeout_s
        self._connection: Connection | None = None

    async def post(
        self, url: Any, *, data: bytes, headers: Mapping[str, str], trace_request_ctx: Transmission, **_: object
    ) -> SimulatedResponse:
        """Send a POST. `trace_request_ctx.begin` is called just before its first byte is sent."""
        return await self._send(Request("POST", str(url), headers, data), trace_request_ctx.begin)

    async def get(self, url: Any, *, headers: Mapping[str, str], **_: object) -> SimulatedResponse:
        """Send a GET."""
        return await self._send(Request("GET", str(url), headers))

    async def wait(self, wait_s: float, deadline_s: float) -> None:
        """Wait for what arrives after `wait_s` seconds. Raises aiohttp's time-out if that is too long."""
        remaining_s = deadline_s - asyncio.get_running_loop().time()
        max_wait_s = remaining_s if self._read_timeout_s is None else min(remaining_s, self._read_timeout_s)
        if wait_s > max(max_wait_s, 0.0):
            await asyncio.sleep(max(max_wait_s, 0.0))
            raise aiohttp.SocketTimeoutError
        await asyncio.sleep(max(wait_s, 0.0))

    def disconnect(self) -> None:
        """Close the connection, with all replies that have not been read."""
        self._connection = None

    async def close(self) -> None:
        """Close the session."""
        self.disconnect()

    async def _send(
        self, request: Request, on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> SimulatedResponse:
        await self.server.connect(request)
        if on_sending:
            await on_sending()
        connection = self._connection or Connection()
        if self._is_kept:
            self._connection = connection
        now_s = request.sent_s = asyncio.get_running_loop().time()
        for reply in self.server.receive(request, connection):
            reply.at_s = now_s + reply.delay_s
            connection.replies.append(reply)
        connection.requests += 1
        deadline_s = math.inf if self._total_timeout_s is None else now_s + self._total_timeout_s
        reply = connection.replies.popleft()
        if reply.to is not request and not reply.error and reply.names != request.subject:
            connection.strange = f"HTTP {reply.status} for {reply.to.url if reply.to else 'no request'}"
        try:
            await self.wait(reply.at_s - now_s, deadline_s)
        except asyncio.CancelledError:
            self.server.on_given_up(request, reply, has_begun=False)
            raise
        if reply.error:
            self.disconnect()
            raise reply.error
        return SimulatedResponse(self, request, reply, deadline_s)


@contextmanager
def connected_to(server: RandomGateway, clock: Callable[[], float] = time.time) -> Iterator[None]:
    """Connect the clients that are opened in this context to `server`. `clock` is their time of day."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(client, "open_session", partial(SimulatedSession, server)))
        stack.enter_context(patch.object(client, "KeptSessions", partial(KeptSessions, clock=clock)))
        stack.enter_context(patch.object(client, "find_proxy", lambda *_: None))
        yield
