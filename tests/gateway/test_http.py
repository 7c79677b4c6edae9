"""`Exchange` and what stands on it: what may be in a request, what leaves, and how long a response may take."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from krea_batch.gateway import client as client_module
from krea_batch.gateway import http as exchange_module
from krea_batch.gateway.client import GatewayClient
from krea_batch.gateway.http import HttpClient, read_capped
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import NotSent
from krea_batch.settings import ApiKey, Settings
from tests.gateway.test_client import (
    ACCEPTED_RESPONSE,
    SUBMIT_BODY,
    RawRequest,
    RawServer,
    fixed_response,
    http_response,
    read,
    run_against_server,
)


def test_no_header_ends_a_line() -> None:
    """A value that would begin a header of its own is refused before anything is sent."""

    async def ask(gateway: GatewayClient, server: RawServer) -> int:
        for evil in ("https://a.example/\r\nX-Evil: 1", "a\nb", "a\0b"):
            with pytest.raises(ValueError, match="X-Webhook-URL"):
                await gateway.submit(SUBMIT_BODY, callback=evil)
        return len(server.requests)

    assert run_against_server(fixed_response(http_response(202, ACCEPTED_RESPONSE)), ask) == 0
    with pytest.raises(ValueError, match="line break"):
        HttpClient(None, {"Ocp-Apim-Subscription-Key": "s3cret\n"})  # type: ignore[arg-type]


def test_on_send_runs_after_connecting_and_before_the_first_byte() -> None:
    """`leaves` is called once a connection is there, and before the peer can have seen anything."""
    seen: list[str] = []

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        seen.append("the peer has it")
        writer.write(http_response(200, b"x"))

    async def main() -> None:
        async with RawServer(answer) as server, aiohttp.TCPConnector() as connector:
            exchange = HttpClient(connector)
            origin = exchange.origin(URL(server.url))
            reply = await exchange.request("GET", origin, "/", on_send=lambda: seen.append("it leaves"))
            assert await read_capped(reply, 10) == b"x"
            reply.close()

    asyncio.run(main())
    assert seen == ["it leaves", "the peer has it"]


def test_a_connection_that_is_cut_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the connection is gone when the POST should be written, nothing was sent."""
    connect = aiohttp.TCPConnector.connect

    async def connect_and_drop(*args: object) -> object:
        connection = await connect(*args)  # type: ignore[arg-type]
        assert connection.transport
        connection.transport.close()
        return connection

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_and_drop)

    async def ask(gateway: GatewayClient, server: RawServer) -> int:
        assert isinstance(await gateway.submit(SUBMIT_BODY), NotSent)
        return len(server.requests)

    assert run_against_server(fixed_response(http_response(202, ACCEPTED_RESPONSE)), ask) == 0


def test_informational_responses_are_skipped() -> None:
    """Informational answers before the true one do not count."""
    announced = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"

    async def ask(gateway: GatewayClient, server: RawServer) -> bytes:
        return (await read(gateway, server.url + "/a.png"))[1]

    assert run_against_server(fixed_response(announced + http_response(200, b"whole")), ask) == b"whole"


def test_a_download_on_a_stale_connection_is_retried() -> None:
    """A CDN that cut the connection it kept costs no try: an image is free to be fetched twice."""
    seen = 0

    async def answer(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            writer.close()
        else:
            writer.write(http_response(200, b"x"))

    async def ask(gateway: GatewayClient, server: RawServer) -> None:
        for _ in range(2):
            assert await read(gateway, server.url + "/a.png") == (0, b"x")
        assert (seen, server.connections) == (3, 2)

    run_against_server(answer, ask)


@pytest.mark.parametrize("patience", ["READ_TIMEOUT_S", "DOWNLOAD_TIMEOUT_S"])
def test_a_slow_download_times_out(patience: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that pauses for too long, or trickles for too long, is broken off."""
    monkeypatch.setattr(client_module, patience, 0.1)

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1 if patience == "READ_TIMEOUT_S" else 1000):
            writer.write(b"x")
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()

    async def ask(gateway: GatewayClient, server: RawServer) -> None:
        with pytest.raises(DownloadError, match="timed out"):
            await read(gateway, server.url + "/a.png")

    run_against_server(answer, ask)


def test_a_silent_cdn_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CDN that takes a request and says nothing is broken off."""
    monkeypatch.setattr(client_module, "READ_TIMEOUT_S", 0.1)

    async def no_bytes(_: RawRequest, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def ask(gateway: GatewayClient, server: RawServer) -> None:
        with pytest.raises(DownloadError, match="timed out"):
            await read(gateway, server.url + "/a.png")

    run_against_server(no_bytes, ask)


def test_downloads_from_many_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many origins there are, only the latest are kept in mind, and each is asked under its own name."""
    monkeypatch.setattr(exchange_module, "MAX_ORIGINS", 1)

    async def main() -> None:
        settings = Settings.from_options(Path("out"), gateway="http://127.0.0.1")
        async with (
            RawServer(fixed_response(http_response(200, b"1"))) as first,
            RawServer(fixed_response(http_response(200, b"2"))) as second,
            GatewayClient(settings, ApiKey("key")) as gateway,
        ):
            for _ in range(2):
                assert await read(gateway, first.url + "/a.png") == (0, b"1")
                assert await read(gateway, second.url + "/a.png") == (0, b"2")
            assert {request.headers["host"] for request in first.requests} == {f"127.0.0.1:{first.port}"}
            assert {request.headers["host"] for request in second.requests} == {f"127.0.0.1:{second.port}"}

    asyncio.run(main())
