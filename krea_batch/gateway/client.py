"""Bytes of a POST, a request_id or a media URL come in; verdicts and pictures' bytes go out, by aiohttp.

Newcomers: nothing is repeated here, neither a POST nor a poll. Whether headers had left when a POST broke is what
tells `NotSent` from `Unclear`.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from krea_batch.gateway import wire
from krea_batch.gateway.media import MAX_IMAGE_BYTES, MediaError, is_public_address, starts_at, why_not_url
from krea_batch.rules.verdicts import NotSent, PollTrouble, PollVerdict, PostVerdict, Unclear
from krea_batch.settings import ApiKey, Settings, is_loopback

CONNECT_TIMEOUT_S = 15.0  # chosen: a handshake that takes longer will not end
KEEPALIVE_S = 2.0  # chosen: under the 5 s after which common servers drop idle connections under a request
READ_TIMEOUT_S = 30.0  # chosen: a CDN that is silent for longer has lost us
DOWNLOAD_TIMEOUT_S = 600.0  # chosen: 64 MiB at 1 Mbit/s; a slower one goes on where it stopped
CHUNK_BYTES = 1 << 18

_BROKEN = (aiohttp.ClientError, TimeoutError, OSError)


class Media:
    """A picture on its way. `offset` is where its first byte belongs, `etag` a strong one or None."""

    def __init__(self, response: aiohttp.ClientResponse, offset: int) -> None:
        self._response = response
        self.offset = offset
        etag = response.headers.get("ETag", "")
        self.etag = etag if etag.startswith('"') and etag.isascii() else None  # others cannot be sent back

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.close()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they come, at most 64 MiB with what came before. Raises MediaError when they break off."""
        taken = self.offset
        try:
            async for chunk in self._response.content.iter_chunked(CHUNK_BYTES):
                taken += len(chunk)
                if taken > MAX_IMAGE_BYTES:
                    raise MediaError(f"the picture is larger than {MAX_IMAGE_BYTES} bytes")
                yield chunk
        except _BROKEN as error:
            raise MediaError(_reason(error)) from None


class GatewayClient:
    """The gateway and its CDN for one run. An async context manager; `submit` and `poll` never raise for a peer."""

    def __init__(self, settings: Settings, key: ApiKey) -> None:
        base = settings.gateway.rstrip("/")
        self._submit_url = URL(base + wire.SUBMIT_PATH)
        self._status_url = str(URL(base + wire.STATUS_PATH))  # a request_id that is one needs no quoting after it
        self._key = key
        self._request_timeout_s = settings.request_timeout_s
        self._allow_loopback = is_loopback(urlsplit(base).hostname or "")

    async def __aenter__(self) -> Self:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_mark_sent)
        self._connections = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._submits = self._open_gateway(trace)
        self._polls = self._open_gateway()
        self._polls._retry_connection = False  # a poll that is cut is asked again when the schedule says so
        self._cdn = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=self._open_public_socket),
            headers={"Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(
                total=DOWNLOAD_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._submits.close()
        await self._polls.close()
        await self._connections.close()
        await self._cdn.close()

    def _open_gateway(self, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        """A session that carries the key, over the connections of both: only submits pay for the trace."""
        return aiohttp.ClientSession(
            connector=self._connections,
            connector_owner=False,
            headers={wire.KEY_HEADER: self._key.reveal(), "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=self._request_timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=list(traces),
        )

    async def submit(self, body: bytes, *, callback: str = "") -> PostVerdict:
        """POST a job's body once, and say what became of it. `callback` is where to call at its end."""
        sent = SimpleNamespace(headers=False)
        headers = {**wire.SUBMIT_HEADERS, wire.WEBHOOK_HEADER: callback} if callback else wire.SUBMIT_HEADERS
        try:
            async with self._submits.post(
                self._submit_url,
                data=body,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=sent,
            ) as response:
                answer = await _read_answer(response)
        except _BROKEN as error:
            return Unclear(_reason(error)) if sent.headers else NotSent(_reason(error))
        return wire.read_post_answer(answer, now=datetime.now(UTC))

    async def poll(self, request_id: str) -> PollVerdict:
        """GET a job's status once. `request_id` has passed `wire.is_request_id`."""
        url = URL(self._status_url + request_id, encoded=True)
        try:
            async with self._polls.get(url, allow_redirects=False) as response:
                answer = await _read_answer(response)
        except _BROKEN as error:
            return PollTrouble(_reason(error))
        return wire.read_poll_answer(answer, request_id, now=datetime.now(UTC))

    async def fetch(self, url: str, *, offset: int = 0, etag: str | None = None) -> Media:
        """Open a picture, from `offset` on where the CDN still has the same one (`etag`).

        The caller closes it (`async with`). Raises MediaError.
        """
        why_not = why_not_url(url, allow_loopback=self._allow_loopback)
        if why_not:
            raise MediaError(f"nothing is fetched from {url[:200]!r}: {why_not}")
        headers = {"Range": f"bytes={offset}-", "If-Range": etag} if offset and etag else {}
        try:
            response = await self._cdn.get(_as_given(url), headers=headers, allow_redirects=False)
        except _BROKEN as error:
            raise MediaError(_reason(error)) from None
        except ValueError as error:  # yarl and aiohttp refuse some URLs only when they are used
            raise MediaError(f"nothing is fetched from {url[:200]!r}: {type(error).__name__}") from None
        if response.status == 416 and headers:  # nothing follows what we have, and yet it is not whole
            response.close()
            return await self.fetch(url)
        try:
            return self._media(response, offset if headers else 0)
        except MediaError:
            response.close()
            raise

    def _media(self, response: aiohttp.ClientResponse, asked: int) -> Media:
        if response.status not in (200, 206):
            wait_s = wire.retry_after_s(
                response.headers.get("Retry-After"), response.headers.get("Date"), now=datetime.now(UTC)
            )
            raise MediaError(f"HTTP {response.status}", status=response.status, retry_after_s=wait_s)
        if _is_encoded(response):
            raise MediaError("the picture came compressed")
        if (response.content_length or 0) > MAX_IMAGE_BYTES:
            raise MediaError(f"the picture is larger than {MAX_IMAGE_BYTES} bytes")
        return Media(response, starts_at(response.status, response.headers.get("Content-Range"), asked))

    def _open_public_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket for a resolved address, unless it lies inside somebody's network (DESIGN, Safety)."""
        family, kind, protocol, _, sockaddr = address
        if not is_public_address(str(sockaddr[0]), allow_loopback=self._allow_loopback):
            raise PermissionError(f"{sockaddr[0]} is no public address")
        return socket.socket(family, kind, protocol)


def _as_given(url: str) -> URL:
    """The URL byte for byte, since a signature may be in it; what no request line can hold is quoted."""
    return URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)


async def _mark_sent(_: object, context: SimpleNamespace, __: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.headers = True


async def _read_answer(response: aiohttp.ClientResponse) -> wire.Answer:
    body = None if _is_encoded(response) else await _read_capped(response)
    return wire.Answer(response.status, body, response.headers.get("Retry-After"), response.headers.get("Date"))


async def _read_capped(response: aiohttp.ClientResponse) -> bytes | None:
    """The whole body, or None where it is longer than JSON answers may be."""
    if (response.content_length or 0) > wire.MAX_JSON_BYTES:
        return None
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > wire.MAX_JSON_BYTES:
            return None
    return bytes(body)


def _is_encoded(response: aiohttp.ClientResponse) -> bool:
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def _reason(error: Exception) -> str:
    """What broke, in our own words: aiohttp's errors show the request's headers, and with them the key."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({error.os_error.strerror or type(error.os_error).__name__})"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was cut"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
