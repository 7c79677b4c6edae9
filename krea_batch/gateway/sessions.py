"""Opens aiohttp's sessions: which connections a request may use, and what is sent besides its own headers.

A server, or a proxy in front of it, may send one answer too many: for example a time-out page and then the late
answer, or a 408 on an idle connection. On a kept connection, a surplus answer would be taken for the answer to the
next request. Therefore:

- POSTs and downloads use each connection once. A mistaken answer to a POST costs money, and an image does not say to
  which job it belongs.
- Polls keep their connections, since a status names its request. The caller gives a connection back only after an
  answer that did; `KeptSessions` closes the others.

Only documented parts of aiohttp are used. Before a newer major version is allowed (pyproject.toml), run
tests/gateway: they check that `on_request_headers_sent` precedes the first byte, that no request is repeated or
redirected, and that every broken response has its verdict.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp

from krea_batch.gateway.trusted_certificates import describe_certificate_error

CONNECT_TIMEOUT_S = 15.0  # chosen: a handshake that takes longer is unlikely to finish
KEEPALIVE_S = 2.0  # chosen: below the 5 s after which common servers close idle connections

NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
"""The network errors that a request may raise."""

_INVALID_IN_HEADERS = re.compile(r"[^ -~]")


class ConnectionBroken(aiohttp.ClientError):
    """The connection was lost during a request."""


class NotAllowed(aiohttp.ClientError):
    """The caller does not want a request to be sent any more."""


class Transmission:
    """Whether the first byte of a request may have left.

    `on_sending` is awaited once, just before that. If it returns a reason, nothing is sent, and NotAllowed is raised.
    """

    def __init__(self, on_sending: Callable[[], Awaitable[str | None]] | None = None) -> None:
        self._on_sending = on_sending
        self.has_begun = False

    async def begin(self) -> None:
        if self.has_begun:
            return
        if self._on_sending and (reason := await self._on_sending()):
            raise NotAllowed(reason)
        self.has_begun = True


async def _on_headers(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    # aiohttp emits on_request_headers_sent before it writes the headers. A connection is open by then; a failure of
    # DNS, TCP, TLS or of CONNECT to a proxy comes earlier.
    await context.trace_request_ctx.begin()


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Pass a request on. Without this, aiohttp sends a GET again if its connection breaks."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionBroken from error


def open_session(
    *,
    is_kept: bool = False,
    is_traced: bool = False,
    total_timeout_s: float | None = None,
    read_timeout_s: float | None = None,
    socket_factory: aiohttp.SocketFactoryType | None = None,
    tls: ssl.SSLContext | bool = True,
) -> aiohttp.ClientSession:
    """Return a session without cookies, passwords of ~/.netrc and decompression.

    The key is not among its headers, since aiohttp sends those of a session to a proxy too, unencrypted.

    With `is_kept` it has a single connection, which it keeps for KEEPALIVE_S; otherwise each request has a new one.
    With `is_traced` each request passes a `Transmission` as `trace_request_ctx`. A request fails with a time-out if
    it is not read to its end within `total_timeout_s`, or if its response pauses for `read_timeout_s`. `tls` is that
    of `open_context`.
    """
    connection_options: dict[str, Any] = {"limit": 1, "keepalive_timeout": KEEPALIVE_S} if is_kept else {"limit": 0}
    trace_configs = []
    if is_traced:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_on_headers)
        trace_configs.append(trace)
    # aiohttp would send "Connection: close" on a connection that is used once. A server that repeats it in its
    # answer, and then sends one answer too many, makes aiohttp's parser refuse both, also the one that is paid for.
    once = {} if is_kept else {"Connection": "keep-alive"}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            force_close=not is_kept, socket_factory=socket_factory, ssl=tls, **connection_options
        ),
        headers={"Accept-Encoding": "identity", **once},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(
            total=total_timeout_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=read_timeout_s
        ),
        auto_decompress=False,
        trace_configs=trace_configs,
        middlewares=(_send_once,),
    )


class KeptSessions:
    """Sessions with one kept connection each, for requests whose answers name them.

    `take` returns a session for one request, and whether its connection may have carried another. Afterwards the
    caller gives it back with `give_back`, or drops it with `drop` if its answer was not for that request.
    """

    def __init__(
        self, open_kept: Callable[[], aiohttp.ClientSession], clock: Callable[[], float] = time.time
    ) -> None:
        self._open_kept = open_kept
        # The wall clock: the monotonic clock, which aiohttp uses, stands still while a laptop sleeps, so a connection
        # that is hours old would be used again. If the wall clock is set, only new connections are opened.
        self._clock = clock
        self._idle: deque[tuple[aiohttp.ClientSession, float]] = deque()  # the longest idle first
        self._is_keeping = True
        self._closing: set[asyncio.Task[None]] = set()

    def take(self) -> tuple[aiohttp.ClientSession, bool]:
        now = self._clock()
        while self._idle and not 0 <= now - self._idle[0][1] <= KEEPALIVE_S:
            self.drop(self._idle.popleft()[0])
        if self._idle:
            return self._idle.pop()[0], True
        return self._open_kept(), False

    def give_back(self, session: aiohttp.ClientSession) -> None:
        if self._is_keeping:
            self._idle.append((session, self._clock()))
        else:
            self.drop(session)

    def stop_keeping(self) -> None:
        """Give every further request a new connection, for a server whose answers do not name their requests."""
        self._is_keeping = False
        self._drop_idle()

    def drop(self, session: aiohttp.ClientSession) -> None:
        """Close the session's connection without waiting for it."""
        task = asyncio.ensure_future(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _drop_idle(self) -> None:
        while self._idle:
            self.drop(self._idle.pop()[0])

    async def close(self) -> None:
        self._drop_idle()
        if self._closing:
            await asyncio.wait(self._closing)


class ReceivedBody:
    """The body of a response as it arrives, at most `max_bytes`. What has arrived is kept if the rest does not."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self.is_complete = False

    async def read(self, response: aiohttp.ClientResponse) -> None:
        """Read to the end, or until there are too many bytes. Raises NETWORK_ERRORS."""
        while chunk := await response.content.readany():
            self._bytes += chunk
            if len(self._bytes) > self._max_bytes:
                return
        self.is_complete = True

    def __bytes__(self) -> bytes:
        return bytes(self._bytes[: self._max_bytes])


def length_bytes(response: aiohttp.ClientResponse) -> int:
    """Return the Content-Length; 0 if there is none."""
    return int(response.headers.get("Content-Length", 0))


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise ValueError for a header with a line break or another character that a header cannot contain."""
    for name, value in headers.items():
        if _INVALID_IN_HEADERS.search(name) or _INVALID_IN_HEADERS.search(value):
            raise ValueError(f"the header {name!r} contains a line break or another character that is not allowed")


def describe_error(error: Exception) -> str:
    """Describe a network error in our own words, since aiohttp's messages may contain addresses and headers."""
    match error:
        case TimeoutError():
            return "timed out"
        case NotAllowed():
            return str(error)
        case aiohttp.ClientHttpProxyError(status=status):
            return f"the proxy refused to connect (HTTP {status})"
        case aiohttp.ClientConnectorError() | aiohttp.ClientConnectorCertificateError():
            return _describe_failed_connection(error)
        case aiohttp.ClientResponseError():
            return "the response is not valid HTTP"
        case aiohttp.ClientPayloadError():
            return "the response was cut off"
        case ConnectionBroken() | aiohttp.ClientConnectionError():
            return "the connection was lost"
        case OSError(strerror=str(reason)):
            return reason
        case _:
            return type(error).__name__


def _describe_failed_connection(
    error: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError,
) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError(certificate_error=certificate_error):
            return describe_certificate_error(certificate_error)
        case aiohttp.ClientConnectorDNSError(host=host, os_error=os_error):  # the host may be the proxy's
            return f"no connection ({host}: {os_error.strerror or type(os_error).__name__})"
        case aiohttp.ClientConnectorSSLError(os_error=ssl.SSLError(reason=str(reason))):
            return f"no TLS connection ({reason.replace('_', ' ').lower()})"
        case aiohttp.ClientProxyConnectionError(os_error=os_error):
            return f"no connection to the proxy ({os_error.strerror or type(os_error).__name__})"
        case _:
            os_error = error.os_error
            return f"no connection ({os_error.strerror or type(os_error).__name__})"
