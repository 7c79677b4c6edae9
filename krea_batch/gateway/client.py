"""The HTTP client of the gateway: submits, polls and downloads over aiohttp's sessions.

Neither POSTs nor polls are retried here. If a POST fails, the result is `NotSent` if not even its first byte can have
left, and `Ambiguous` otherwise.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

import aiohttp
from yarl import URL

from krea_batch.gateway import wire
from krea_batch.gateway.address_check import find_refused_host
from krea_batch.gateway.image_urls import parse_allowed, refused_url
from krea_batch.gateway.proxies import Proxy, find_proxy
from krea_batch.gateway.sessions import (
    NETWORK_ERRORS,
    KeptSessions,
    ReceivedBody,
    Transmission,
    check_headers,
    describe_error,
    length_bytes,
    open_session,
)
from krea_batch.gateway.trusted_certificates import open_context
from krea_batch.gateway.url_policy import (
    MAX_IMAGE_BYTES,
    DownloadError,
    announces_size,
    check_networks,
    is_allowed_address,
    network_to_allow,
    response_offset,
)
from krea_batch.rules.verdicts import NotSent, PollFailed, PollVerdict, PostVerdict
from krea_batch.settings import ApiKey, Settings, is_loopback

# chosen: a load balancer waits 60 to 240 s for its upstream before it answers 504; three minutes more than our own
# time-out cover that, and keep one of the submitter's POST slots for no longer
LATE_ANSWER_S = 180.0
LAST_LOOK_S = 5.0  # chosen: within this time, TCP sends again what was lost while this process stalled
READ_TIMEOUT_S = 30.0  # chosen: a CDN that sends nothing for longer has stalled
DOWNLOAD_TIMEOUT_S = 600.0  # chosen: 64 MiB at 1 Mbit/s; a slower download is resumed
CHUNK_BYTES = 1 << 18  # chosen: bounds the memory of a download
MAX_CDN_HOSTS = 64  # chosen: the images of a run are on a few hosts


class ImageDownload:
    """A download in progress; see `protocols.ImageBody`."""

    def __init__(self, response: aiohttp.ClientResponse, offset: int) -> None:
        self._response = response
        self.offset = offset
        self.is_sized = announces_size(response.status, response.headers)
        etag = response.headers.get("ETag", "")
        self.etag = etag if etag.startswith('"') and etag.isascii() else None  # weak ETags cannot be sent in If-Range

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.close()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes, at most 64 MiB including `offset`. Raises DownloadError if the transfer breaks off."""
        received_bytes = self.offset
        try:
            while chunk := await self._response.content.read(CHUNK_BYTES):  # each read is limited by READ_TIMEOUT_S
                received_bytes += len(chunk)
                if received_bytes > MAX_IMAGE_BYTES:
                    raise DownloadError(f"the image is larger than {MAX_IMAGE_BYTES} bytes")
                yield chunk
        except NETWORK_ERRORS as error:
            raise DownloadError(describe_error(error)) from None


class GatewayClient:
    """The gateway and its CDN for one run; an async context manager. `submit` and `poll` raise no network errors.

    `cdn_hosts` are hosts from which images came before. Entering the context raises InputError if the proxy or the
    certificates of the environment cannot be used, or if the address of a host does not allow to fetch images.
    """

    def __init__(self, settings: Settings, key: ApiKey, *, cdn_hosts: Sequence[str] = ()) -> None:
        self._settings = settings
        self._cdn_hosts = cdn_hosts
        base = settings.gateway.rstrip("/")
        self._base = URL(base)
        self._submit_url = URL(base + wire.SUBMIT_PATH)
        self._status_url = str(URL(base + wire.STATUS_PATH))  # a request_id needs no quoting
        self._key = key
        self._request_timeout_s = settings.request_timeout_s
        self._allow_loopback = is_loopback(self._base.host or "")
        self._networks = settings.allowed_networks
        check_networks(self._networks)

    async def __aenter__(self) -> Self:
        proxy = find_proxy(self._base.scheme, self._base.host or "", self._base.port)
        self._proxy_options = proxy.request_options if proxy else {}
        if refused := await find_refused_host(self._settings, self._cdn_hosts):
            raise refused.error
        self._cdn_proxies: dict[tuple[str, int | None], Proxy | None] = {}
        tls = open_context()
        self._posts = open_session(is_traced=True, tls=tls)
        self._polls = KeptSessions(
            lambda: open_session(is_kept=True, total_timeout_s=self._request_timeout_s, tls=tls)
        )
        open_cdn = partial(open_session, total_timeout_s=DOWNLOAD_TIMEOUT_S, read_timeout_s=READ_TIMEOUT_S, tls=tls)
        self._cdn = open_cdn(socket_factory=self._open_allowed_socket)
        # The proxy itself may have a private address, and it alone connects to the CDN.
        self._proxied_cdn = open_cdn()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._posts.close()
        await self._polls.close()
        await self._cdn.close()
        await self._proxied_cdn.close()

    def _key_headers(self) -> dict[str, str]:
        return {wire.KEY_HEADER: self._key.reveal()}

    # ---- POSTs -------------------------------------------------------------------------------------------

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        """POST a job's body once, and return the outcome. `callback` is the webhook URL.

        `on_sending` is awaited once, just before the first byte can leave. If it returns a reason, or this call is
        cancelled earlier, nothing is sent. The connection may take `request_timeout_s`. The answer may take
        LATE_ANSWER_S longer, because a POST that was sent may be paid for.
        """
        headers = self._key_headers() | wire.SUBMIT_HEADERS
        if callback:
            headers[wire.WEBHOOK_HEADER] = callback
        check_headers(headers)
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        async def begin_sending() -> str | None:
            nonlocal timer
            if on_sending and (reason := await on_sending()):
                return reason
            timer = loop.call_later(self._request_timeout_s + LATE_ANSWER_S, look_once_more)
            limit.reschedule(None)
            return None

        def look_once_more() -> None:
            # If this process was stopped, the answer may already be in the socket when the time-out is noticed.
            limit.reschedule(loop.time() + LAST_LOOK_S)

        transmission = Transmission(begin_sending)
        received = ReceivedBody(wire.MAX_JSON_BYTES)
        response: aiohttp.ClientResponse | None = None
        failure = ""
        try:
            async with asyncio.timeout(self._request_timeout_s) as limit:
                response = await self._posts.post(
                    self._submit_url,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    trace_request_ctx=transmission,
                    **self._proxy_options,
                )
                await received.read(response)
        except NETWORK_ERRORS as error:
            if not transmission.has_begun:
                return NotSent(describe_error(error))
            failure = describe_error(error)
        finally:
            if timer:
                timer.cancel()
            if response:
                response.close()
        answer = _answer(response, received) if response else None
        if failure or answer is None:
            return wire.in_doubt(failure, answer)
        return wire.read_post_answer(answer, now=datetime.now(UTC))

    # ---- polls -------------------------------------------------------------------------------------------

    async def poll(self, request_id: str) -> PollVerdict:
        """GET a job's status once. `request_id` must satisfy `wire.is_request_id`."""
        session, is_reused = self._polls.take()
        polled = None
        try:
            answer = await self._get_status(session, request_id)
            polled = wire.read_poll_answer(answer, request_id, now=datetime.now(UTC), is_reused=is_reused)
        except NETWORK_ERRORS as error:
            return PollFailed(describe_error(error))
        finally:
            # Unless the answer was for this request, the connection may be one answer behind.
            if polled and polled.names_request:
                self._polls.give_back(session)
            else:
                self._polls.drop(session)
        if polled.names_none:
            self._polls.stop_keeping()
        return polled.verdict

    async def _get_status(self, session: aiohttp.ClientSession, request_id: str) -> wire.Answer:
        received = ReceivedBody(wire.MAX_JSON_BYTES)
        response = await session.get(
            URL(self._status_url + request_id, encoded=True),
            headers=self._key_headers(),
            allow_redirects=False,
            **self._proxy_options,
        )
        try:
            await received.read(response)
        finally:
            response.close()
        return _answer(response, received)

    # ---- downloads ---------------------------------------------------------------------------------------

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ImageDownload:
        """Open an image, from `offset` if the CDN still has the same one (`etag`).

        The caller closes it (`async with`). Raises DownloadError.
        """
        parsed = parse_allowed(url, allow_loopback=self._allow_loopback, networks=self._networks)
        headers = {"Range": f"bytes={offset}-", "If-Range": etag} if offset and etag else {}
        try:
            response = await self._request_image(parsed, headers)
        except NETWORK_ERRORS as error:
            raise DownloadError(describe_error(error)) from None
        except ValueError as error:  # yarl and aiohttp reject some URLs only when they are used
            raise refused_url(url, type(error).__name__) from None
        if response.status == 416 and headers:  # nothing follows the bytes we have, yet they are incomplete
            response.close()
            return await self.download(url)
        try:
            return self._open_image(response, offset if headers else 0)
        except DownloadError:
            response.close()
            raise

    async def _request_image(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        proxy = self._cdn_proxy(url)
        session, options = (self._proxied_cdn, proxy.request_options) if proxy else (self._cdn, {})
        return await session.get(url, headers=headers, allow_redirects=False, **options)

    def _cdn_proxy(self, url: URL) -> Proxy | None:
        host = (url.host or "", url.port)
        if host not in self._cdn_proxies:
            if len(self._cdn_proxies) >= MAX_CDN_HOSTS:
                self._cdn_proxies.clear()
            self._cdn_proxies[host] = find_proxy(url.scheme, *host)
        return self._cdn_proxies[host]

    def _open_image(self, response: aiohttp.ClientResponse, requested_offset: int) -> ImageDownload:
        """Return the download of a response. Raises DownloadError if the response has no usable image."""
        if response.status not in (200, 206):
            wait_s = wire.retry_after_s(
                response.headers.get("Retry-After"), response.headers.get("Date"), now=datetime.now(UTC)
            )
            raise DownloadError(f"HTTP {response.status}", status=response.status, retry_after_s=wait_s)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DownloadError("the image was sent compressed")
        if length_bytes(response) > MAX_IMAGE_BYTES:
            raise DownloadError(f"the image is larger than {MAX_IMAGE_BYTES} bytes")
        offset = response_offset(response.status, response.headers.get("Content-Range"), requested_offset)
        return ImageDownload(response, offset)

    def _open_allowed_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Open a socket for a resolved address unless it is in a private network (SECURITY.md)."""
        family, kind, protocol, _, sockaddr = address
        host = str(sockaddr[0])
        if not is_allowed_address(host, allow_loopback=self._allow_loopback, networks=self._networks):
            advice = f"; see allow_networks ({network})" if (network := network_to_allow(host)) else ""
            raise PermissionError(errno.EACCES, f"{host} is not a public address{advice}")
        return socket.socket(family, kind, protocol)


def _answer(response: aiohttp.ClientResponse, received: ReceivedBody) -> wire.Answer:
    headers = response.headers
    return wire.Answer(
        response.status,
        bytes(received),
        headers.get("Retry-After"),
        headers.get("Date"),
        is_complete=received.is_complete,
    )
