"""`HttpClient`, and its use by `GatewayClient`: valid requests, the moment of sending, connections and timeouts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from krea_batch.gateway import client as client_module
from krea_batch.gateway import http as http_module
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
    no_response,
    read,
    run_against_server,
)


def test_line_breaks_in_headers_are_refused() -> None:
    """A header value with a line break, which could add a header, is refused before anything is sent."""

    async def use(gateway: GatewayClient, server: RawServer) -> int:
        for url in ("https://a.example/\r\nX-Evil: 1", "a\nb", "a\0b"):
            with pytest.raises(ValueError, match="X-Webhook-URL"):
                await gateway.submit(SUBMIT_BODY, callback=url)
        return len(server.requests)

    assert run_against_server(fixed_response(http_response(202, ACCEPTED_RESPONSE)), use) == 0
    with pytest.raises(ValueError, match="line break"):
        HttpClient(None, {"Ocp-Apim-Subscription-Key": "s3cret\n"})  # type: ignore[arg-type]


def test_on_send_runs_after_connecting_and_before_the_first_byte() -> None:
    """`on_send` is called after connecting and before the server can have received a byte."""
    steps: list[str] = []

    async def respond(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        steps.append("received")
        writer.write(http_response(200, b"x"))

    async def main() -> None:
        async with RawServer(respond) as server, aiohttp.TCPConnector() as connector:
            http_client = HttpClient(connector)
            origin = http_client.origin(URL(server.url))
            response = await http_client.request("GET", origin, "/", on_send=lambda: steps.append("on_send"))
            assert server.connections == 1
            assert await read_capped(response, 10) == b"x"
            response.close()

    asyncio.run(main())
    assert steps == ["on_send", "received"]


def test_a_connection_that_is_cut_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the connection is closed before the POST is written, nothing was sent."""
    connect = aiohttp.TCPConnector.connect

    async def connect_and_drop(*args: object) -> object:
        connection = await connect(*args)  # type: ignore[arg-type]
        assert connection.transport
        connection.transport.close()
        return connection

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_and_drop)

    async def use(gateway: GatewayClient, server: RawServer) -> int:
        assert isinstance(await gateway.submit(SUBMIT_BODY), NotSent)
        return len(server.requests)

    assert run_against_server(fixed_response(http_response(202, ACCEPTED_RESPONSE)), use) == 0


def test_informational_responses_are_skipped() -> None:
    """Informational responses before the final one are skipped."""
    informational = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"

    async def use(gateway: GatewayClient, server: RawServer) -> bytes:
        return (await read(gateway, server.url + "/a.png"))[1]

    assert run_against_server(fixed_response(informational + http_response(200, b"final")), use) == b"final"


def test_a_download_on_a_stale_connection_is_retried() -> None:
    """A download on a reused connection that the CDN cuts is repeated on a new one, since a download is free."""
    requests = 0

    async def cut_second_request(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        if requests == 2:
            writer.close()
        else:
            writer.write(http_response(200, b"x"))

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        for _ in range(2):
            assert await read(gateway, server.url + "/a.png") == (0, b"x")
        assert (requests, server.connections) == (3, 2)

    run_against_server(cut_second_request, use)


@pytest.mark.parametrize("timeout", ["READ_TIMEOUT_S", "DOWNLOAD_TIMEOUT_S"])
def test_a_slow_download_times_out(timeout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download is aborted if it pauses for too long, or takes too long as a whole."""
    monkeypatch.setattr(client_module, timeout, 0.1)

    async def send_slowly(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1 if timeout == "READ_TIMEOUT_S" else 1000):
            writer.write(b"x")
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        with pytest.raises(DownloadError, match="timed out"):
            await read(gateway, server.url + "/a.png")

    run_against_server(send_slowly, use)


def test_a_silent_cdn_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download is aborted if the CDN sends no response."""
    monkeypatch.setattr(client_module, "READ_TIMEOUT_S", 0.1)

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        with pytest.raises(DownloadError, match="timed out"):
            await read(gateway, server.url + "/a.png")

    run_against_server(no_response, use)


def test_downloads_from_many_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more origins than are cached, each request still has its own Host header."""
    monkeypatch.setattr(http_module, "MAX_ORIGINS", 1)

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
