"""A request comes in; its bytes go out over one of aiohttp's connections, and the begin of its answer comes back.

Newcomers: this stands where aiohttp's ClientSession could. Connections, TLS, their pool and the parser of answers are
aiohttp's; cookies, redirects, proxies and requests that are sent a second time are things that must not happen here
anyway, and to go without them halves what a request costs (benchmarks, "What does a job cost?").
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import SERVER_SOFTWARE, HttpProcessingError, RawResponseMessage
from yarl import URL

CONNECT_TIMEOUT_S = 15.0  # chosen: a handshake that takes longer will not end
MAX_ORIGINS = 64  # chosen: images of one run lie on a few hosts

NETWORK_ERRORS = (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError)
"""What an exchange may raise: nothing but these came of the network."""

_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": SERVER_SOFTWARE}
_INVALID_IN_HEADERS = re.compile(r"[\r\n\0]")


class HttpResponse:
    """An answer whose body is still to be read from `content`. At the body's end its connection is free for others.

    `close` has to be called, and cuts a connection whose answer was not read to its end.
    """

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(self, message: RawResponseMessage, content: aiohttp.StreamReader, connection: Connection) -> None:
        self.status = message.code
        self.headers: Mapping[str, str] = message.headers
        self.content = content
        self._connection = connection
        content.on_eof(connection.release)

    @property
    def length_bytes(self) -> int:
        """How long the body says it is; 0 where it does not say."""
        return int(self.headers.get("Content-Length", 0))

    @property
    def is_encoded(self) -> bool:
        """Whether the body came compressed, which nobody asked for."""
        return self.headers.get("Content-Encoding", "identity").lower() != "identity"

    def close(self) -> None:
        self._connection.close()


class Origin(NamedTuple):
    """Where requests go: what aiohttp has to know to connect, and the line that names the host."""

    connect_request: aiohttp.ClientRequest
    host: str


class HttpClient:
    """Asks over the connections of `connector`, with `headers` in each request.

    With `silence_s`, an answer that pauses for so long is given up; all other patience is the caller's.
    """

    def __init__(
        self,
        connector: aiohttp.BaseConnector,
        headers: Mapping[str, str] = {},
        *,
        read_timeout_s: float | None = None,
    ) -> None:
        self._connector = connector
        self._headers = header_lines({**_HEADERS, **headers})
        self._read_timeout_s = read_timeout_s
        self._timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S)
        self._origins: dict[tuple[str, str | None, int | None], Origin] = {}

    async def request(
        self,
        method: str,
        origin: Origin,
        target: str,
        headers: str = "",
        body: bytes | None = None,
        *,
        on_send: Callable[[], None] | None = None,
    ) -> HttpResponse:
        """Send a request once and wait for the head of its answer.

        `target` is path and query as they are sent, `headers` what `header_lines` made. `leaves` is called before the
        first byte is given to the connection. Raises what BROKEN holds, and ValueError where ASCII does not hold it.
        """
        size = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = f"{method} {target} HTTP/1.1\r\n{origin.host}{self._headers}{headers}{size}\r\n".encode("ascii")
        connection = await self._connector.connect(origin.connect_request, [], self._timeout)
        try:
            transport, protocol = _transport_of(connection)
            protocol.set_response_params(
                read_until_eof=True, auto_decompress=False, read_timeout=self._read_timeout_s
            )
            if on_send:
                on_send()
            transport.write(head + body if body else head)
            protocol.start_timeout()
            message, content = await protocol.read()
            while message.code < 200 and message.code != 101:  # informational: the answer is still to come
                message, content = await protocol.read()
            return HttpResponse(message, content, connection)
        except BaseException:
            connection.close()
            raise

    def origin(self, url: URL) -> Origin:
        """Where requests for a URL go. Raises ValueError."""
        key = (url.scheme, url.raw_host, url.explicit_port)
        cached = self._origins.get(key)
        if cached is None:
            if len(self._origins) >= MAX_ORIGINS:
                self._origins.clear()
            connect_request = aiohttp.ClientRequest("GET", url.origin())
            cached = self._origins[key] = Origin(
                connect_request, header_lines({"Host": connect_request.headers["Host"]})
            )
        return cached


def _transport_of(connection: Connection) -> tuple[asyncio.Transport, ResponseHandler]:
    """Where a request is written and an answer read. Raises for a connection that was cut since it was given out."""
    transport, protocol = connection.transport, connection.protocol
    if transport is None or protocol is None or transport.is_closing():
        raise aiohttp.ServerDisconnectedError
    return transport, protocol


async def read_capped(response: HttpResponse, max_bytes: int) -> bytes | None:
    """The whole body, or None where it is longer."""
    if response.length_bytes > max_bytes:
        return None
    body = bytearray()
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


def describe_error(error: Exception) -> str:
    """What broke, in our own words: aiohttp's errors may show addresses and headers."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({error.os_error.strerror or type(error.os_error).__name__})"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was cut"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def header_lines(headers: Mapping[str, str]) -> str:
    """Headers as they stand in a request. Raises ValueError for what would end a line early."""
    for name, value in headers.items():
        if _INVALID_IN_HEADERS.search(name) or _INVALID_IN_HEADERS.search(value):
            raise ValueError(f"the header {name!r} holds a line end")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
