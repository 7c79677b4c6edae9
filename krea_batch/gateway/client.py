"""The HTTP client of the gateway: submits, polls and downloads over aiohttp connections.

Nothing is retried here, neither a POST nor a poll. Whether the first byte of a POST had been sent when it failed is
the difference between `NotSent` and `Ambiguous`.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from krea_batch.gateway import wire
from krea_batch.gateway.http import (
    MAX_ORIGINS,
    NETWORK_ERRORS,
    HttpClient,
    HttpResponse,
    Origin,
    describe_error,
    header_lines,
    read_capped,
)
from krea_batch.gateway.url_policy import (
    MAX_IMAGE_BYTES,
    DownloadError,
    is_public_address,
    response_offset,
    url_rejection_reason,
)
from krea_batch.rules.verdicts import Ambiguous, NotSent, PollFailed, PollVerdict, PostVerdict
from krea_batch.settings import ApiKey, Settings, is_loopback

KEEPALIVE_S = 2.0  # chosen: below the 5 s after which common servers close idle connections
READ_TIMEOUT_S = 30.0  # chosen: a CDN that sends nothing for longer has stalled
DOWNLOAD_TIMEOUT_S = 600.0  # chosen: 64 MiB at 1 Mbit/s; a slower download is resumed
CHUNK_BYTES = 1 << 18  # chosen: bounds the memory of a download
_PLAIN_URL = re.compile(r"(https?://[a-z0-9.-]+(?::[0-9]{1,5})?)(/[!-\"$-~]*)")  # nothing to quote, no fragment
_SUBMIT_HEADERS = header_lines(wire.SUBMIT_HEADERS)


class ImageDownload:
    """A download in progress. `offset` is the position of its first byte, `etag` a strong ETag or None."""

    def __init__(self, response: HttpResponse, offset: int, deadline_s: float) -> None:
        self._response = response
        self._deadline_s = deadline_s  # in the event loop's clock
        self.offset = offset
        etag = response.headers.get("ETag", "")
        self.etag = etag if etag.startswith('"') and etag.isascii() else None  # weak ETags cannot be sent in If-Range

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.close()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes, at most 64 MiB including `offset`. Raises DownloadError if the transfer breaks off."""
        received_bytes, loop = self.offset, asyncio.get_running_loop()
        try:
            while chunk := await self._response.content.read(CHUNK_BYTES):  # each read is limited by READ_TIMEOUT_S
                received_bytes += len(chunk)
                if received_bytes > MAX_IMAGE_BYTES:
                    raise DownloadError(f"the image is larger than {MAX_IMAGE_BYTES} bytes")
                if loop.time() > self._deadline_s:
                    raise TimeoutError
                yield chunk
        except NETWORK_ERRORS as error:
            raise DownloadError(describe_error(error)) from None


class GatewayClient:
    """The gateway and its CDN for one run; an async context manager. `submit` and `poll` raise no network errors."""

    def __init__(self, settings: Settings, key: ApiKey) -> None:
        base = settings.gateway.rstrip("/")
        self._base = URL(base)
        self._submit_target = URL(base + wire.SUBMIT_PATH).raw_path_qs
        self._status_target = URL(base + wire.STATUS_PATH).raw_path_qs  # a request_id needs no quoting
        self._key = key
        self._request_timeout_s = settings.request_timeout_s
        self._allow_loopback = is_loopback(urlsplit(base).hostname or "")

    async def __aenter__(self) -> Self:
        self._gateway_connections = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        self._gateway = HttpClient(self._gateway_connections, {wire.KEY_HEADER: self._key.reveal()})
        self._origin = self._gateway.origin(self._base)
        self._cdn_connections = aiohttp.TCPConnector(limit=0, socket_factory=self._open_public_socket)
        self._cdn = HttpClient(self._cdn_connections, read_timeout_s=READ_TIMEOUT_S)
        self._cdn_origins: dict[str, Origin] = {}  # by scheme and host: those already checked and allowed
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._gateway_connections.close()
        await self._cdn_connections.close()

    async def submit(self, body: bytes, *, callback: str = "") -> PostVerdict:
        """POST a job's body once, and return the outcome. `callback` is the webhook URL."""
        sent = False

        def on_send() -> None:
            nonlocal sent
            sent = True

        headers = _SUBMIT_HEADERS + header_lines({wire.WEBHOOK_HEADER: callback}) if callback else _SUBMIT_HEADERS
        try:
            async with asyncio.timeout(self._request_timeout_s):
                response = await self._gateway.request(
                    "POST", self._origin, self._submit_target, headers, body, on_send=on_send
                )
                answer = await _read_answer(response)
        except NETWORK_ERRORS as error:
            return Ambiguous(describe_error(error)) if sent else NotSent(describe_error(error))
        return wire.read_post_answer(answer, now=datetime.now(UTC))

    async def poll(self, request_id: str) -> PollVerdict:
        """GET a job's status once. `request_id` must satisfy `wire.is_request_id`."""
        try:
            async with asyncio.timeout(self._request_timeout_s):
                answer = await _read_answer(
                    await self._gateway.request("GET", self._origin, self._status_target + request_id)
                )
        except NETWORK_ERRORS as error:
            return PollFailed(describe_error(error))
        return wire.read_poll_answer(answer, request_id, now=datetime.now(UTC))

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ImageDownload:
        """Open an image, from `offset` if the CDN still has the same one (`etag`).

        The caller closes it (`async with`). Raises DownloadError.
        """
        origin, target = self._resolve_url(url)
        headers = header_lines({"Range": f"bytes={offset}-", "If-Range": etag}) if offset and etag else ""
        deadline_s = asyncio.get_running_loop().time() + DOWNLOAD_TIMEOUT_S
        try:
            async with asyncio.timeout_at(deadline_s):
                response = await self._request_cdn(origin, target, headers)
        except NETWORK_ERRORS as error:
            raise DownloadError(describe_error(error)) from None
        except ValueError as error:  # characters that yarl accepts and a request line forbids
            raise _refused_url(url, type(error).__name__) from None
        if response.status == 416 and headers:  # nothing follows the bytes we have, yet they are incomplete
            response.close()
            return await self.download(url)
        try:
            return self._open_image(response, offset if headers else 0, deadline_s)
        except DownloadError:
            response.close()
            raise

    def _resolve_url(self, url: str) -> tuple[Origin, str]:
        """Return the origin and the path with query of an image URL. Raises DownloadError.

        The images of a run are on a few hosts, so a checked origin is kept: checking every URL in full takes a
        twentieth of the event loop's time.
        """
        plain = _PLAIN_URL.fullmatch(url)
        if plain and (cached := self._cdn_origins.get(plain[1])):
            return cached, plain[2]
        if rejection := url_rejection_reason(url, allow_loopback=self._allow_loopback):
            raise _refused_url(url, rejection)
        try:
            verbatim = _verbatim_url(url)
            origin, target = self._cdn.origin(verbatim), verbatim.raw_path_qs
        except ValueError as error:  # yarl and aiohttp reject some URLs only when they are used
            raise _refused_url(url, type(error).__name__) from None
        if plain and len(self._cdn_origins) < MAX_ORIGINS:
            self._cdn_origins[plain[1]] = origin
        return origin, target

    async def _request_cdn(self, origin: Origin, target: str, headers: str) -> HttpResponse:
        """Request an image, again if the connection was closed: it may have been idle too long, and a GET is free."""
        try:
            return await self._cdn.request("GET", origin, target, headers)
        except (aiohttp.ServerDisconnectedError, ConnectionError):
            return await self._cdn.request("GET", origin, target, headers)

    def _open_image(self, response: HttpResponse, requested_offset: int, deadline_s: float) -> ImageDownload:
        """Return the download of a response. Raises DownloadError if the response has no usable image."""
        if response.status not in (200, 206):
            wait_s = wire.retry_after_s(
                response.headers.get("Retry-After"), response.headers.get("Date"), now=datetime.now(UTC)
            )
            raise DownloadError(f"HTTP {response.status}", status=response.status, retry_after_s=wait_s)
        if response.is_encoded:
            raise DownloadError("the image was sent compressed")
        if response.length_bytes > MAX_IMAGE_BYTES:
            raise DownloadError(f"the image is larger than {MAX_IMAGE_BYTES} bytes")
        return ImageDownload(
            response,
            response_offset(response.status, response.headers.get("Content-Range"), requested_offset),
            deadline_s,
        )

    def _open_public_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Open a socket for a resolved address unless it is in a private network (SECURITY.md)."""
        family, kind, protocol, _, sockaddr = address
        if not is_public_address(str(sockaddr[0]), allow_loopback=self._allow_loopback):
            raise PermissionError(f"{sockaddr[0]} is not a public address")
        return socket.socket(family, kind, protocol)


def _refused_url(url: str, rejection: str) -> DownloadError:
    return DownloadError(f"refused to fetch {url[:200]!r}: {rejection}")


def _verbatim_url(url: str) -> URL:
    """Return the URL unchanged, since it may be signed; only characters that a request line forbids are quoted."""
    return URL(url, encoded=url.isascii() and url.isprintable() and " " not in url)


async def _read_answer(response: HttpResponse) -> wire.Answer:
    try:
        body = None if response.is_encoded else await read_capped(response, wire.MAX_JSON_BYTES)
        return wire.Answer(response.status, body, response.headers.get("Retry-After"), response.headers.get("Date"))
    finally:
        response.close()
