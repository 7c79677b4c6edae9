"""Sends one HTTP request over one of aiohttp's connections and returns the head of its response.

Why not aiohttp's ClientSession: it handles cookies, redirects and retries. Here, a request must be sent once and to
no other host, since a POST may be charged, and requests to the gateway contain the key. A session is also slower: the
three requests of a job take 0.9 ms of processor time with it and 0.55 ms without (benchmarks/README.md, "What does a
job cost?").

The connections, TLS, the pool and the response parser are aiohttp's. These parts are used, and most of them are not
documented:

aiohttp                TCPConnector.connect(request, traces, timeout), ClientRequest for the target of a connection
aiohttp.connector      Connection: transport, protocol, release, close
aiohttp.client_proto   ResponseHandler: set_response_params, start_timeout, read
aiohttp.http           RawResponseMessage: code, headers; HttpProcessingError; SERVER_SOFTWARE
aiohttp.streams        StreamReader: on_eof, read, readany

Therefore pyproject.toml requires a version below 4. Before you allow a newer one:

1. Read the changes of these modules. mypy finds changed names and parameters, but no changed meaning.
2. Check that `connect` still uses only the address, TLS and proxy of the ClientRequest, and does not change it: one
   ClientRequest serves all requests to an origin.
3. Check that `read` still returns the head and the body's reader, and that `read_timeout` still limits each pause.
4. Run tests/gateway. test_client.py checks that connections are reused, that redirects are not followed, that no
   POST or poll is repeated, and that every broken response to a POST is ambiguous. test_http.py checks that a failure
   before `on_send` means that nothing was sent.
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

CONNECT_TIMEOUT_S = 15.0  # chosen: a handshake that takes longer is unlikely to finish
MAX_ORIGINS = 64  # chosen: the images of a run are on a few hosts

NETWORK_ERRORS = (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError)
"""The network errors that a request may raise."""

_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": SERVER_SOFTWARE}
_INVALID_IN_HEADERS = re.compile(r"[\r\n\0]")


class HttpResponse:
    """A response whose body is still to be read from `content`. At the end of the body its connection is reusable.

    Call `close`, which aborts a connection whose response was not read to the end.
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
        """The Content-Length; 0 if there is none."""
        return int(self.headers.get("Content-Length", 0))

    @property
    def is_encoded(self) -> bool:
        """Whether the body is compressed, although that was not requested."""
        return self.headers.get("Content-Encoding", "identity").lower() != "identity"

    def close(self) -> None:
        self._connection.close()


class Origin(NamedTuple):
    """The target of requests: what aiohttp needs to connect, and the Host header line."""

    connect_request: aiohttp.ClientRequest
    host: str


class HttpClient:
    """Sends requests over the connections of `connector`, with `headers` in each.

    A response that pauses for `read_timeout_s` fails with a timeout; all other timeouts are the caller's.
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
        """Send a request once and wait for the head of its response.

        `target` is the path and query as sent, `headers` the result of `header_lines`. `on_send` is called before
        the first byte is passed to the connection. Raises NETWORK_ERRORS, and ValueError for characters outside
        ASCII.
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
            while message.code < 200 and message.code != 101:  # informational: the final response follows
                message, content = await protocol.read()
            return HttpResponse(message, content, connection)
        except BaseException:
            connection.close()
            raise

    def origin(self, url: URL) -> Origin:
        """Return the origin of a URL. Raises ValueError."""
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
    """Return the transport and protocol of a connection. Raises if it was closed since it was acquired."""
    transport, protocol = connection.transport, connection.protocol
    if transport is None or protocol is None or transport.is_closing():
        raise aiohttp.ServerDisconnectedError
    return transport, protocol


async def read_capped(response: HttpResponse, max_bytes: int) -> bytes | None:
    """Return the whole body, or None if it is longer than `max_bytes`."""
    if response.length_bytes > max_bytes:
        return None
    body = bytearray()
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


def describe_error(error: Exception) -> str:
    """Describe a network error in our own words, since aiohttp's messages may contain addresses and headers."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({error.os_error.strerror or type(error.os_error).__name__})"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was lost"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def header_lines(headers: Mapping[str, str]) -> str:
    """Format headers as they are sent. Raises ValueError for a line break in a value."""
    for name, value in headers.items():
        if _INVALID_IN_HEADERS.search(name) or _INVALID_IN_HEADERS.search(value):
            raise ValueError(f"the header {name!r} contains a line break")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
