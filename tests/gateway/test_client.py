"""`GatewayClient` against small servers: what it sends, and its verdict for each way in which a response can end."""

from __future__ import annotations

import asyncio
import gc
import gzip
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, TypeVar

import pytest

from krea_batch.gateway import client as client_module
from krea_batch.gateway import url_policy as url_policy_module
from krea_batch.gateway import wire
from krea_batch.gateway.client import GatewayClient
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import (
    Accepted,
    Ambiguous,
    Finished,
    NotSent,
    PollFailed,
    PostVerdict,
    Refusal,
    Refused,
    Waiting,
)
from krea_batch.settings import ApiKey, Settings
from tests.processes import PROCESS_TIMEOUT_S

T = TypeVar("T")
CLIENT_KEY = "s3cret-k3y-0123456789"
SUBMIT_BODY = b'{"prompt":"a cat"}'
ACCEPTED_RESPONSE = b'{"request_id":"abc-1","status":"QUEUED"}'
SHORT_TIMEOUT_S = 0.2  # for requests that time out
LONG_TIMEOUT_S = PROCESS_TIMEOUT_S  # for requests that do not


class RawRequest:
    """A request that the server received. Header names are in lower case."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *lines = head.decode().split("\r\n")
        self.method, self.path, _ = line.split(" ")
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        self.body = body


RequestHandler = Callable[[RawRequest, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """A server on a free port of loopback that answers with one handler and records every request."""

    def __init__(self, handler: RequestHandler, *, tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler
        self._tls = tls
        self._open: set[asyncio.StreamWriter] = set()
        self.requests: list[RawRequest] = []
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"https://localhost:{self.port}" if self._tls else f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                length = re.search(rb"(?i)content-length: (\d+)", head)
                request = RawRequest(head, await reader.readexactly(int(length[1])) if length else b"")
                self.requests.append(request)
                await self._handler(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()


def http_response(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Return a response with a Content-Length."""
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def fixed_response(*chunks: bytes, cut: bool = False) -> RequestHandler:
    """Return a handler that sends the same chunks for every request, and then cuts the connection if `cut` is set."""

    async def respond(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)
        if cut:
            writer.close()

    return respond


async def no_response(_: RawRequest, __: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def client(url: str, *, timeout_s: float = LONG_TIMEOUT_S) -> GatewayClient:
    settings = Settings.from_options(Path("out"), gateway=url, request_timeout_s=timeout_s)
    return GatewayClient(settings, ApiKey(CLIENT_KEY))


def run_against_server(
    handler: RequestHandler, use: Callable[[GatewayClient, RawServer], Coroutine[Any, Any, T]], **options: Any
) -> T:
    """Start a server and a client, use them, and stop both."""

    async def main() -> T:
        async with RawServer(handler) as server, client(server.url, **options) as gateway:
            return await use(gateway, server)

    return asyncio.run(main())


async def read(gateway: GatewayClient, url: str, *, offset: int = 0, etag: str | None = None) -> tuple[int, bytes]:
    async with await gateway.download(url, offset=offset, etag=etag) as download:
        return download.offset, b"".join([chunk async for chunk in download.chunks()])


async def submit(gateway: GatewayClient, _: RawServer) -> PostVerdict:
    return await gateway.submit(SUBMIT_BODY)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def assert_key_hidden(*values: object) -> None:
    """Assert that the key is in none of the values, nor in their attributes or causes."""
    for value in values:
        assert CLIENT_KEY not in f"{value!s} {value!r} {getattr(value, 'args', '')} {getattr(value, '__dict__', '')}"
        if isinstance(value, BaseException):
            assert value.__cause__ is None
            assert value.__suppress_context__ or value.__context__ is None


# ---- requests --------------------------------------------------------------------------------------------


def test_a_documented_post() -> None:
    """A POST has the path and the three headers of the API document, and the body byte for byte."""

    async def use(gateway: GatewayClient, server: RawServer) -> RawRequest:
        assert await gateway.submit(SUBMIT_BODY) == Accepted("abc-1", Waiting("QUEUED"))
        (request,) = server.requests
        return request

    request = run_against_server(fixed_response(http_response(202, ACCEPTED_RESPONSE)), use)
    assert request.method == "POST"
    assert request.path == "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["cache-control"] == "no-cache"
    assert request.headers["ocp-apim-subscription-key"] == CLIENT_KEY
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["content-length"] == str(len(SUBMIT_BODY))
    assert request.body == SUBMIT_BODY
    assert not {"cookie", "authorization", "x-webhook-url", "expect", "transfer-encoding"} & set(request.headers)


def test_a_documented_poll() -> None:
    """A poll is a GET of the API document's status URL of this request_id, with the key."""
    request_id = "krea-2-large-text-to-image_019d:a~b.c-d"
    status_body = b'{"request_id":"%s","status":"PROCESSING"}' % request_id.encode()

    async def use(gateway: GatewayClient, server: RawServer) -> RawRequest:
        assert await gateway.poll(request_id) == Waiting("PROCESSING")
        (request,) = server.requests
        return request

    request = run_against_server(fixed_response(http_response(200, status_body)), use)
    assert (request.method, request.path) == ("GET", f"/v2/requests/status/{request_id}")
    assert request.headers["ocp-apim-subscription-key"] == CLIENT_KEY
    assert request.body == b""


def test_the_key_never_goes_to_the_cdn() -> None:
    """A download contains neither key nor cookies, also if the image is at the gateway's own host and port."""

    async def use(gateway: GatewayClient, server: RawServer) -> RawRequest:
        await gateway.submit(SUBMIT_BODY)
        await read(gateway, server.url + "/v1/a.png?sig=%2F&x=1")
        return server.requests[-1]

    request = run_against_server(
        fixed_response(http_response(200, ACCEPTED_RESPONSE, "Set-Cookie: session=1; Path=/")), use
    )
    assert (request.method, request.path) == ("GET", "/v1/a.png?sig=%2F&x=1")
    assert CLIENT_KEY not in str(request.headers)
    assert not {"ocp-apim-subscription-key", "cookie", "range", "if-range"} & set(request.headers)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("/a.png", "/a.png"),
        ("/a%2Fb%20c.png?X-Amz-Credential=k%2F20260331%2Fauto&sig=a%2Bb%3D&x", None),
        ("/a/./b//c.png?a=b+c&d=%E4&e=~!$'()*,;:@", None),
        ("/%41.png?%61=%62", None),
        ("/a.png?x=1#part", "/a.png?x=1"),
        ("/a b\u00e4.png", "/a%20b%C3%A4.png"),
    ],
)
def test_media_urls_are_fetched_as_given(given: str, sent: str | None) -> None:
    """An image is requested with exactly the URL from the gateway, since a signature covers its bytes."""

    async def use(gateway: GatewayClient, server: RawServer) -> list[str]:
        await read(gateway, server.url + given)
        await read(gateway, server.url + "/a.png")
        await read(gateway, server.url + given)  # the origin is cached now
        return [server.requests[n].path for n in (0, 2)]

    assert run_against_server(fixed_response(http_response(200, b"x")), use) == [given if sent is None else sent] * 2


def test_cookies_are_not_kept() -> None:
    """A cookie that the gateway or the CDN sets is never sent back."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        for _ in range(2):
            await gateway.submit(SUBMIT_BODY)
            await gateway.poll("abc-1")
            await read(gateway, server.url + "/a.png")
        assert len(server.requests) == 6
        assert all("cookie" not in request.headers for request in server.requests)

    run_against_server(
        fixed_response(http_response(200, ACCEPTED_RESPONSE, "Set-Cookie: session=1; Path=/", "Set-Cookie: b=2")), use
    )


def test_which_connections_are_kept() -> None:
    """Sequential polls share one connection. Each POST and each download has its own."""

    async def use(gateway: GatewayClient, server: RawServer) -> list[int]:
        counts = []
        for _ in range(10):
            await gateway.poll("abc-1")
        counts.append(server.connections)
        for _ in range(10):
            await gateway.submit(SUBMIT_BODY)
        counts.append(server.connections)
        for _ in range(10):
            await read(gateway, server.url + "/a.png")
        return [*counts, server.connections]

    assert run_against_server(fixed_response(http_response(200, ACCEPTED_RESPONSE)), use) == [1, 11, 21]


# ---- not sent --------------------------------------------------------------------------------------------


async def request_without_server(url: str) -> tuple[PostVerdict, object, DownloadError | None]:
    """Return the results of a POST and a poll, and the error of a download."""
    async with client(url) as gateway:
        posted, polled = await gateway.submit(SUBMIT_BODY), await gateway.poll("abc-1")
        try:
            await read(gateway, url + "/a.png")
        except DownloadError as error:
            return posted, polled, error
        return posted, polled, None


def assert_not_sent(url: str) -> None:
    posted, polled, failed = asyncio.run(request_without_server(url))
    assert isinstance(posted, NotSent)
    assert isinstance(polled, PollFailed)
    assert polled.status == 0
    assert isinstance(failed, DownloadError)
    assert_key_hidden(posted, polled, failed)


def test_refused_connections() -> None:
    """If no server listens, nothing is sent, so the POST can be repeated."""
    assert_not_sent(f"http://127.0.0.1:{free_port()}")


def test_names_that_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the host name has no address, nothing is sent."""

    def no_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    assert_not_sent("https://gateway.invalid")


def test_no_tls() -> None:
    """If the server does not use TLS, neither key nor body is sent."""
    received: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1 << 16))
        writer.write(http_response(202, ACCEPTED_RESPONSE))
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        posted, polled, failed = await request_without_server(
            f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        )
        server.close()
        await server.wait_closed()
        assert isinstance(posted, NotSent)
        assert isinstance(polled, PollFailed)
        assert isinstance(failed, DownloadError)
        assert_key_hidden(posted, polled, failed)

    asyncio.run(main())
    assert received
    assert not any(CLIENT_KEY.encode() in data or SUBMIT_BODY in data for data in received)


CERTIFICATE_COMMAND_LINE = [
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "2",
    "-subj",
    "/CN=localhost",
    "-addext",
    "subjectAltName=IP:127.0.0.1",
]


def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    """If the gateway's certificate is not trusted, nothing is sent."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which creates the certificate, is not installed")
    pem = tmp_path / "self-signed.pem"
    subprocess.run([openssl, *CERTIFICATE_COMMAND_LINE, "-keyout", pem, "-out", pem], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("the handshake must fail")

    async def main() -> tuple[PostVerdict, object, DownloadError | None]:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        try:
            return await request_without_server(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        finally:
            server.close()
            await server.wait_closed()

    posted, polled, failed = asyncio.run(main())
    assert isinstance(posted, NotSent)
    assert "certificate" in posted.reason
    assert isinstance(polled, PollFailed)
    assert isinstance(failed, DownloadError)
    assert_key_hidden(posted, polled, failed)


# ---- ambiguous -------------------------------------------------------------------------------------------

BROKEN_RESPONSES: dict[str, RequestHandler] = {
    "cut before the response": fixed_response(cut=True),
    "cut in the status line": fixed_response(b"HTTP/1.1 2", cut=True),
    "cut in the headers": fixed_response(b"HTTP/1.1 202 Accepted\r\nContent-Le", cut=True),
    "cut before the body": fixed_response(b"HTTP/1.1 202 Accepted\r\nContent-Length: 40\r\n\r\n", cut=True),
    "cut in the body": fixed_response(
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 41\r\n\r\n" + ACCEPTED_RESPONSE, cut=True
    ),
    "cut in a chunk": fixed_response(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{", cut=True),
    "no last chunk": fixed_response(
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n%s\r\n" % (len(ACCEPTED_RESPONSE), ACCEPTED_RESPONSE),
        cut=True,
    ),
    "a refusal that is cut": fixed_response(b"HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\n{", cut=True),
    "a 429 that is cut": fixed_response(
        b"HTTP/1.1 429 Slow\r\nContent-Length: 100\r\nRetry-After: 1\r\n\r\n", cut=True
    ),
    "a bad chunk": fixed_response(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", cut=True),
    "not HTTP": fixed_response(b"220 smtp.example ESMTP\r\n\r\n", cut=True),
    "HTTP/0.9": fixed_response(ACCEPTED_RESPONSE, cut=True),
    "noise": fixed_response(b"\x00\xff\xfe\r\n\r\n", cut=True),
    "a bad length": fixed_response(b"HTTP/1.1 202 Accepted\r\nContent-Length: -5\r\n\r\n{}", cut=True),
    "two lengths": fixed_response(
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", cut=True
    ),
    "endless headers": fixed_response(b"HTTP/1.1 202 Accepted\r\nX: " + b"a" * 100_000 + b"\r\n\r\n{}", cut=True),
    "too large": fixed_response(
        http_response(202, b" " * (wire.MAX_JSON_BYTES + 1 - len(ACCEPTED_RESPONSE)) + ACCEPTED_RESPONSE)
    ),
    "too large, no length": fixed_response(
        b"HTTP/1.1 202 Accepted\r\n\r\n", b" " * wire.MAX_JSON_BYTES, ACCEPTED_RESPONSE, cut=True
    ),
    "a refusal that is too large": fixed_response(http_response(400, b" " * (wire.MAX_JSON_BYTES + 1))),
    "compressed": fixed_response(http_response(202, b"\x0b\x02\x80{}\x03", "Content-Encoding: br")),
    "no content": fixed_response(http_response(204)),
    "a redirect": fixed_response(http_response(302, b"", "Location: /elsewhere")),
    "an upgrade": fixed_response(
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", cut=True
    ),
}


@pytest.mark.parametrize("handler", BROKEN_RESPONSES.values(), ids=BROKEN_RESPONSES)
def test_broken_responses(handler: RequestHandler) -> None:
    """After a POST was sent, every broken response is ambiguous, and the POST is sent exactly once."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        posted = await gateway.submit(SUBMIT_BODY)
        assert isinstance(posted, Ambiguous)
        assert [request.body for request in server.requests] == [SUBMIT_BODY]
        polled = await gateway.poll("abc-2")
        assert isinstance(polled, PollFailed)
        assert_key_hidden(posted, polled)

    run_against_server(handler, use)


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a POST fail at its time-out, without waiting for a late answer."""
    monkeypatch.setattr(client_module, "LATE_ANSWER_S", 0.0)
    monkeypatch.setattr(client_module, "LAST_LOOK_S", 0.0)


@pytest.mark.usefixtures("no_patience")
def test_no_response_in_time() -> None:
    """A POST without a response in time is ambiguous; such a poll has failed."""

    async def use(gateway: GatewayClient, _: RawServer) -> tuple[PostVerdict, object]:
        return await gateway.submit(SUBMIT_BODY), await gateway.poll("abc-1")

    posted, polled = run_against_server(no_response, use, timeout_s=SHORT_TIMEOUT_S)
    assert posted == Ambiguous("timed out")
    assert polled == PollFailed("timed out")


@pytest.mark.usefixtures("no_patience")
def test_a_response_that_never_ends() -> None:
    """A POST whose response starts and does not end is ambiguous after the timeout, with what came of it."""

    async def send_without_end(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 41\r\n\r\n" + ACCEPTED_RESPONSE)
        await asyncio.Event().wait()

    verdict = run_against_server(send_without_end, submit, timeout_s=SHORT_TIMEOUT_S)
    assert verdict == Ambiguous("timed out", ACCEPTED_RESPONSE, ("abc-1",))


def test_a_server_that_closes_silently() -> None:
    """If the gateway closes each connection after its answer without saying so, no POST is in doubt."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        for _ in range(100):
            verdicts = await asyncio.gather(*(gateway.submit(SUBMIT_BODY) for _ in range(10)))
            assert verdicts == [Accepted("abc-1", Waiting("QUEUED"))] * 10
        assert len(server.requests) == 1000

    run_against_server(fixed_response(http_response(202, ACCEPTED_RESPONSE), cut=True), use)


def test_a_cut_poll_is_sent_once() -> None:
    """A poll whose reused connection is cut has failed. It is not repeated: the schedule decides when to poll."""
    polls = 0

    async def cut_second_poll(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal polls
        polls += 1
        if polls == 1:
            writer.write(http_response(200, b'{"request_id":"abc-1","status":"QUEUED"}'))
        else:
            writer.close()

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        assert isinstance(await gateway.poll("abc-1"), Waiting)
        assert isinstance(await gateway.poll("abc-1"), PollFailed)
        assert (polls, server.connections) == (2, 1)

    run_against_server(cut_second_poll, use)


def test_a_cancelled_post_raises_nothing_else() -> None:
    """A cancelled POST raises CancelledError; the caller decides what it means for the charge."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        task = asyncio.ensure_future(gateway.submit(SUBMIT_BODY))
        while not server.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_against_server(no_response, use)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (http_response(202, ACCEPTED_RESPONSE), Accepted("abc-1", Waiting("QUEUED"))),
        (http_response(200, ACCEPTED_RESPONSE, "Content-Encoding: identity"), Accepted("abc-1", Waiting("QUEUED"))),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n" + http_response(202, ACCEPTED_RESPONSE),
            Accepted("abc-1", Waiting("QUEUED")),
        ),
        (
            b"HTTP/1.1 103 Early Hints\r\n\r\n" + http_response(202, ACCEPTED_RESPONSE),
            Accepted("abc-1", Waiting("QUEUED")),
        ),
        (
            http_response(202, ACCEPTED_RESPONSE, "Content-Type: text/html; charset=x"),
            Accepted("abc-1", Waiting("QUEUED")),
        ),
        (http_response(429, b"", "Retry-After: 7"), Refused(Refusal.RATE_LIMITED, 429, "HTTP 429", 7.0)),
        (
            http_response(
                429,
                b"",
                "Retry-After: Tue, 31 Mar 2026 10:00:07 GMT",
                "Date: Tue, 31 Mar 2026 10:00:00 GMT",
            ),
            Refused(Refusal.RATE_LIMITED, 429, "HTTP 429", 7.0),
        ),
        (
            http_response(402, b'{"error":"Insufficient Balance"}'),
            Refused(Refusal.FATAL, 402, "Insufficient Balance"),
        ),
        (http_response(500, b'{"error":"Oops"}'), Refused(Refusal.RETRYABLE, 500, "Oops")),
        (http_response(400), Refused(Refusal.REJECTED, 400, "HTTP 400")),
        (http_response(400, b"\x1f\x8b", "Content-Encoding: br"), Refused(Refusal.REJECTED, 400, "HTTP 400")),
        (
            http_response(202, gzip.compress(ACCEPTED_RESPONSE), "Content-Encoding: gzip"),
            Accepted("abc-1", Waiting("QUEUED")),
        ),
        (
            http_response(202, ACCEPTED_RESPONSE, "Content-Encoding: gzip"),
            Accepted("abc-1", Waiting("QUEUED")),
        ),
    ],
)
def test_complete_responses(response: bytes, expected: PostVerdict) -> None:
    """The verdict uses status, Retry-After, Date and body of a complete response."""
    assert run_against_server(fixed_response(response), submit) == expected


def test_many_concurrent_requests() -> None:
    """Each of 200 concurrent POSTs gets its own response."""

    async def echo(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(http_response(202, b'{"request_id":"%s"}' % request.body))

    async def use(gateway: GatewayClient, _: RawServer) -> list[PostVerdict]:
        return await asyncio.gather(*(gateway.submit(b"id-%d" % n) for n in range(200)))

    assert run_against_server(echo, use) == [Accepted(f"id-{n}", Waiting("QUEUED")) for n in range(200)]


# ---- redirects -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """No POST, poll or download follows a redirect, so neither key nor POST is sent to another host."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        assert isinstance(await gateway.submit(SUBMIT_BODY), Ambiguous)
        polled = await gateway.poll("abc-1")
        assert isinstance(polled, PollFailed)
        assert polled.status == status
        with pytest.raises(DownloadError) as caught:
            await read(gateway, server.url + "/a.png")
        assert caught.value.status == status
        assert [request.method for request in server.requests] == ["POST", "GET", "GET"]
        assert all(request.path != "/elsewhere" for request in server.requests)

    run_against_server(fixed_response(http_response(status, b"", "Location: /elsewhere")), use)


# ---- downloads -------------------------------------------------------------------------------------------

CDN_IMAGE = bytes(range(256)) * 4000


async def cdn(request: RawRequest, writer: asyncio.StreamWriter) -> None:
    """A CDN that supports ranges and has one version of one image."""
    requested_range = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    start = int(requested_range[1]) if requested_range and request.headers.get("if-range") == '"v2"' else 0
    if start >= len(CDN_IMAGE):
        writer.write(http_response(416, b"", f"Content-Range: bytes */{len(CDN_IMAGE)}"))
    elif start:
        content_range = f"Content-Range: bytes {start}-{len(CDN_IMAGE) - 1}/{len(CDN_IMAGE)}"
        writer.write(http_response(206, CDN_IMAGE[start:], content_range, 'ETag: "v2"'))
    else:
        writer.write(http_response(200, CDN_IMAGE, 'ETag: "v2"'))


@pytest.mark.parametrize(
    ("offset", "etag", "start"),
    [
        (0, None, 0),
        (0, '"v2"', 0),
        (1000, '"v2"', 1000),
        (len(CDN_IMAGE) - 1, '"v2"', len(CDN_IMAGE) - 1),
        (1000, '"v1"', 0),  # another version, so the whole image is sent
        (1000, None, 0),  # without an ETag, it may be another version
        (len(CDN_IMAGE), '"v2"', 0),  # 416: nothing follows this offset, so the whole image is requested
    ],
)
def test_ranges(offset: int, etag: str | None, start: int) -> None:
    """A download continues at its offset if the CDN has the same image, and else starts over."""

    async def use(gateway: GatewayClient, server: RawServer) -> tuple[int, bytes]:
        return await read(gateway, server.url + "/a.png", offset=offset, etag=etag)

    assert run_against_server(cdn, use) == (start, CDN_IMAGE[start:])


@pytest.mark.parametrize(
    ("header", "etag"),
    [('"v2"', '"v2"'), ('W/"v2"', None), ("v2", None), ("", None), ('"\u00ff"', None)],
)
def test_etags(header: str, etag: str | None) -> None:
    """Only a strong ETag in ASCII is kept, since others cannot be sent in If-Range."""

    async def use(gateway: GatewayClient, server: RawServer) -> str | None:
        async with await gateway.download(server.url + "/a.png") as download:
            return download.etag

    assert run_against_server(fixed_response(http_response(200, b"x", f"ETag: {header}")), use) == etag


@pytest.mark.parametrize(
    ("response", "is_sized"),
    [
        (http_response(200, b"x"), True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nx", False),
        (http_response(206, b"x", "Content-Range: bytes 8-8/9"), True),
        (http_response(206, b"x", "Content-Range: bytes 8-8/10"), False),
        (http_response(206, b"x", "Content-Range: bytes 8-8/*"), False),
    ],
    ids=["length", "chunks", "until the end", "last part", "another part", "part of unknown size"],
)
def test_whether_the_response_says_where_the_image_ends(response: bytes, is_sized: bool) -> None:
    """It does with a Content-Length, with chunks, or as the last part; not by the end of the connection."""

    async def use(gateway: GatewayClient, server: RawServer) -> bool:
        offset = 8 if b" 206 " in response else 0
        async with await gateway.download(server.url + "/a.png", offset=offset, etag='"e"') as download:
            assert [chunk async for chunk in download.chunks()] == [b"x"]
            return download.is_sized

    assert run_against_server(fixed_response(response, cut=True), use) is is_sized


BROKEN_IMAGES: dict[str, tuple[RequestHandler, int]] = {
    "404": (fixed_response(http_response(404)), 404),
    "403": (fixed_response(http_response(403, b"<xml>expired")), 403),
    "204": (fixed_response(http_response(204)), 204),
    "416 for the whole image": (fixed_response(http_response(416)), 416),
    "another part": (fixed_response(http_response(206, b"x", "Content-Range: bytes 7-7/9")), 206),
    "a part without a range": (fixed_response(http_response(206, b"x")), 206),
    "compressed": (fixed_response(http_response(200, b"x", "Content-Encoding: gzip")), 0),
    "too large": (fixed_response(b"HTTP/1.1 200 OK\r\nContent-Length: 67108865\r\n\r\n"), 0),
    "cut": (fixed_response(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", cut=True), 0),
    "cut in a chunk": (
        fixed_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc", cut=True),
        0,
    ),
    "cut immediately": (fixed_response(cut=True), 0),
    "noise": (fixed_response(b"\x00\xff\r\n\r\n", cut=True), 0),
}


@pytest.mark.parametrize(("handler", "status"), BROKEN_IMAGES.values(), ids=BROKEN_IMAGES)
def test_broken_images(handler: RequestHandler, status: int) -> None:
    """Every broken download raises DownloadError, with the HTTP status if that is the reason, and else 0."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        with pytest.raises(DownloadError) as caught:
            await read(gateway, server.url + "/a.png")
        assert caught.value.status == status
        assert_key_hidden(caught.value)

    run_against_server(handler, use)


def test_retry_after_of_the_cdn() -> None:
    """The DownloadError has the seconds of the CDN's Retry-After."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        with pytest.raises(DownloadError) as caught:
            await read(gateway, server.url + "/a.png")
        assert (caught.value.status, caught.value.retry_after_s) == (429, 11.0)

    run_against_server(fixed_response(http_response(429, b"", "Retry-After: 11")), use)


def test_image_size_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download without a length, or of the rest of an image, is aborted when the image exceeds the limit."""
    for module in (client_module, url_policy_module):
        monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 10_000)

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        with pytest.raises(DownloadError, match="larger"):
            await read(gateway, server.url + "/a.png")

    run_against_server(fixed_response(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 10_001, cut=True), use)

    async def continue_download(gateway: GatewayClient, server: RawServer) -> None:
        with pytest.raises(DownloadError, match="larger"):
            await read(gateway, server.url + "/a.png", offset=9_000, etag='"e"')

    run_against_server(
        fixed_response(http_response(206, b"x" * 1001, "Content-Range: bytes 9000-10000/10001")), continue_download
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://cdn.example/a.png",
        "https://user@127.0.0.1/a.png",
        "ftp://127.0.0.1/a.png",
        "",
        "https://",
        "https://[::1/a.png",
        "https://a..b/a.png",
        f"https://{'a' * 70}/a.png",
        "https://127.0.0.1:0/a.png",
        "https://a b/a.png",
        "https://%/a.png",
        "https://\ud800/a.png",
        "http://127.0.0.1:1/\ud800",
        "http://127.0.0.1:1/\x00\r\nX: y",
        "http://127.0.0.1:1/%zz",
    ],
)
def test_urls_that_cannot_be_fetched(url: str) -> None:
    """A URL that may not or cannot be fetched raises DownloadError, in whatever step that is detected."""

    async def main() -> None:
        async with client(f"http://127.0.0.1:{free_port()}") as gateway:
            with pytest.raises(DownloadError) as caught:
                await read(gateway, url)
            str(caught.value).encode()
            assert_key_hidden(caught.value)

    asyncio.run(main())


PRIVATE_TEN = ("10.0.0.1", "64:ff9b::a00:1")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "fd00::1", "fe80::1", "64:ff9b::a00:1"],
)
def test_private_addresses_are_not_connected_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is made if a public name resolves to a private address: the address itself is checked."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockaddr = (address, 443, 0, 0) if ":" in address else (address, 443)
    resolved = [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr)]
    sockets: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved)
    monkeypatch.setattr(client_module, "socket", SimpleNamespace(socket=lambda *args: sockets.append(args)))

    async def main(url: str) -> None:
        async with client("https://gateway.example") as gateway:
            with pytest.raises(DownloadError) as caught:
                await read(gateway, url)
            assert f"{address} is not a public address" in caught.value.reason
            assert ("see allow_networks (10.0.0.0/8)" in caught.value.reason) is (address in PRIVATE_TEN)

    asyncio.run(main("https://cdn.example/a.png"))
    assert sockets == []


def test_loopback_needs_a_loopback_gateway() -> None:
    """Images on loopback are fetched only if the gateway is on loopback."""

    async def main() -> None:
        async with RawServer(cdn) as server, client("https://gateway.example") as gateway:
            for url in (server.url + "/a.png", f"https://127.0.0.1:{server.port}/a.png"):
                with pytest.raises(DownloadError):
                    await read(gateway, url)
            assert server.connections == 0

    asyncio.run(main())


# ---- others ----------------------------------------------------------------------------------------------


def test_the_output_may_be_in_the_response() -> None:
    """If the response to a POST has the output already, the job is accepted with it."""
    body = b'{"request_id":"abc-1","status":"COMPLETED","output":{"media_url":"https://c/a.png","media_type":"image/png"}}'
    assert run_against_server(fixed_response(http_response(200, body)), submit) == Accepted(
        "abc-1", Finished(("https://c/a.png",), "image/png")
    )


def test_a_partly_read_download_is_closed() -> None:
    """An image that was read in part leaves no open connection and no warning."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        async with await gateway.download(server.url + "/a.png") as download:
            async for _ in download.chunks():
                break

    run_against_server(cdn, use)
    gc.collect()


def test_reprs_hide_the_key() -> None:
    """Neither the repr of the client nor that of its attributes shows the key."""
    gateway = client("https://gateway.example")
    assert CLIENT_KEY not in repr(gateway)
    assert CLIENT_KEY not in repr(vars(gateway))
