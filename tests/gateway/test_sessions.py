"""Sessions and their use by `GatewayClient`: the moment of sending, late answers, connections and time-outs."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest

from krea_batch.gateway import client as client_module
from krea_batch.gateway.client import GatewayClient
from krea_batch.gateway.sessions import KEEPALIVE_S, KeptSessions, check_headers, describe_error, open_session
from krea_batch.gateway.url_policy import DownloadError
from krea_batch.rules.verdicts import Accepted, Ambiguous, NotSent, PollFailed, Waiting
from krea_batch.settings import ApiKey, Settings
from tests.gateway.test_client import (
    ACCEPTED_RESPONSE,
    LONG_TIMEOUT_S,
    SUBMIT_BODY,
    RawRequest,
    RawServer,
    fixed_response,
    free_port,
    http_response,
    no_response,
    read,
    run_against_server,
)


def test_line_breaks_in_headers_are_refused() -> None:
    """A header value with a line break, which could add a header, is refused before anything is sent."""

    async def use(gateway: GatewayClient, server: RawServer) -> int:
        for url in ("https://a.example/\r\nX-Evil: 1", "a\nb", "a\0b", "https://ä.example"):
            with pytest.raises(ValueError, match="X-Webhook-URL"):
                await gateway.submit(SUBMIT_BODY, callback=url)
        return server.connections

    assert run_against_server(fixed_response(http_response(202, ACCEPTED_RESPONSE)), use) == 0
    with pytest.raises(ValueError, match="line break"):
        check_headers({"Ocp-Apim-Subscription-Key": "s3cret\n"})


def test_what_is_sent_besides_the_documented_headers() -> None:
    """Requests contain the headers of before: no cookie, no compression, no announcement that the connection ends."""

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        await gateway.submit(SUBMIT_BODY)
        await gateway.poll("abc-1")
        await read(gateway, server.url + "/a.png")
        common = {"host", "accept", "accept-encoding", "user-agent"}
        key = "ocp-apim-subscription-key"
        post = {key, "content-type", "cache-control", "content-length", "connection"}
        assert [set(request.headers) - common for request in server.requests] == [post, {key}, {"connection"}]
        assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}
        assert {request.headers["accept"] for request in server.requests} == {"*/*"}
        assert server.requests[0].headers["connection"] == server.requests[2].headers["connection"] == "keep-alive"

    run_against_server(fixed_response(http_response(200, ACCEPTED_RESPONSE)), use)


# ---- the first byte --------------------------------------------------------------------------------------


def test_on_sending_is_awaited_after_connecting_and_before_the_first_byte() -> None:
    """`on_sending` is awaited once; meanwhile the connection is open, and the server has not received a byte."""
    steps: list[object] = []

    async def respond(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        steps.append("received")
        writer.write(http_response(202, ACCEPTED_RESPONSE))

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        async def on_sending() -> None:
            while not server.connections:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            steps.append(len(server.requests))

        await gateway.submit(SUBMIT_BODY, on_sending=on_sending)
        assert server.connections == 1

    run_against_server(respond, use)
    assert steps == [0, "received"]


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["an error", "a cancellation"])
def test_nothing_leaves_if_on_sending_does_not_return(is_cancelled: bool) -> None:
    """If `on_sending` raises, or is cancelled while it waits, no byte leaves: it is awaited before the first one."""

    class Stopped(Exception):
        pass

    is_waiting = asyncio.Event()

    async def on_sending() -> None:
        if not is_cancelled:
            raise Stopped
        is_waiting.set()
        await asyncio.Event().wait()

    received: list[bytes] = []

    async def main() -> None:
        closed = asyncio.Event()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.append(await reader.read())
            writer.close()
            closed.set()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = Settings.from_options(Path("out"), gateway=url)
        async with GatewayClient(settings, ApiKey("key")) as gateway:
            submitting = asyncio.create_task(gateway.submit(SUBMIT_BODY, on_sending=on_sending))
            if is_cancelled:
                await is_waiting.wait()
                submitting.cancel()
            with pytest.raises(asyncio.CancelledError if is_cancelled else Stopped):
                await submitting
            await closed.wait()
        server.close()
        await server.wait_closed()

    asyncio.run(main())
    assert received == [b""]


def test_a_cancellation_tells_whether_anything_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST that is cancelled while it connects has not called `on_sending`; one that was sent has."""
    connecting, is_sent = asyncio.Event(), asyncio.Event()
    resolve = aiohttp.ThreadedResolver.resolve

    async def on_sending() -> None:
        is_sent.set()

    async def never_resolve(*_: object, **__: object) -> Any:
        connecting.set()
        await asyncio.Event().wait()

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", never_resolve)
        settings = Settings.from_options(Path("out"), gateway="https://gateway.invalid")
        async with GatewayClient(settings, ApiKey("key")) as unreachable:
            task = asyncio.create_task(unreachable.submit(SUBMIT_BODY, on_sending=on_sending))
            await connecting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not is_sent.is_set()
        monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
        task = asyncio.create_task(gateway.submit(SUBMIT_BODY, on_sending=on_sending))
        await is_sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_against_server(no_response, use)


def test_a_refused_post_has_not_called_on_sending() -> None:
    """`NotSent` means that `on_sending` was not called."""

    async def main() -> None:
        on_sending = AsyncMock()
        settings = Settings.from_options(Path("out"), gateway=f"http://127.0.0.1:{free_port()}")
        async with GatewayClient(settings, ApiKey("key")) as gateway:
            assert isinstance(await gateway.submit(SUBMIT_BODY, on_sending=on_sending), NotSent)
        on_sending.assert_not_called()

    asyncio.run(main())


# ---- late answers ----------------------------------------------------------------------------------------


class JumpingClock:
    """Lets the running event loop's clock jump forward, as if the process had been stopped for that time."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._skipped_s = 0.0
        clock = loop.time
        loop.time = lambda: clock() + self._skipped_s  # type: ignore[method-assign]

    def jump(self, seconds: float) -> None:
        self._skipped_s += seconds


def test_a_late_answer_is_read() -> None:
    """An answer that comes after the request's time-out is read, and the job is accepted."""
    jump: list[Callable[[float], None]] = []

    async def answer_late(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        for _step in range(3):  # the time-out has passed long ago
            jump[0]((LONG_TIMEOUT_S + client_module.LATE_ANSWER_S / 2) / 3)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        writer.write(http_response(202, ACCEPTED_RESPONSE))

    async def use(gateway: GatewayClient, _: RawServer) -> None:
        jump.append(JumpingClock().jump)
        assert await gateway.submit(SUBMIT_BODY) == Accepted("abc-1", Waiting("QUEUED"))

    run_against_server(answer_late, use)


@pytest.mark.parametrize("padding", [0, 600_000])
def test_an_answer_that_lies_in_the_socket_is_read(padding: int) -> None:
    """After an hour's standstill, answers that came meanwhile are read before their POSTs are given up."""
    jump: list[Callable[[float], None]] = []
    answer = http_response(202, ACCEPTED_RESPONSE + b" " * padding)  # a long one takes several reads

    async def answer_and_stop(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)  # goes into the socket immediately
        if len(server_requests) == 10:
            jump[0](3600.0)

    server_requests: list[RawRequest] = []

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        nonlocal server_requests
        server_requests = server.requests
        jump.append(JumpingClock().jump)
        verdicts = await asyncio.gather(*(gateway.submit(SUBMIT_BODY) for _ in range(10)))
        assert verdicts == [Accepted("abc-1", Waiting("QUEUED"))] * 10

    run_against_server(answer_and_stop, use)


def test_a_post_is_given_up_in_the_end() -> None:
    """A POST without an answer is given up after the late answer's time and one more look."""
    jump: list[Callable[[float], None]] = []

    async def stop(_: RawRequest, __: asyncio.StreamWriter) -> None:
        jump[0](LONG_TIMEOUT_S + client_module.LATE_ANSWER_S)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        jump[0](client_module.LAST_LOOK_S + 1.0)
        await asyncio.Event().wait()

    async def use(gateway: GatewayClient, _: RawServer) -> None:
        jump.append(JumpingClock().jump)
        assert await gateway.submit(SUBMIT_BODY) == Ambiguous("timed out")

    run_against_server(stop, use)


STOPPED_TIMEOUT_S = 4.0  # chosen: the process is stopped sooner, also on a busy machine
STOPPED_CLIENT = """
import asyncio, sys
from pathlib import Path
from krea_batch.gateway import client
from krea_batch.settings import ApiKey, Settings

client.LATE_ANSWER_S = 0.0
async def main():
    settings = Settings.from_options(Path("out"), gateway=sys.argv[1], request_timeout_s=float(sys.argv[2]))
    async with client.GatewayClient(settings, ApiKey("key")) as gateway:
        print(await gateway.submit(b"{}"), flush=True)
asyncio.run(main())
"""


@pytest.mark.slow
def test_a_stopped_process_reads_its_answer() -> None:
    """A process that SIGSTOP stops until after its time-out reads the answer that arrived meanwhile."""

    async def main() -> bytes:
        async with RawServer(answer_when_stopped) as server:
            child = subprocess.Popen(
                [sys.executable, "-c", STOPPED_CLIENT, server.url, str(STOPPED_TIMEOUT_S)], stdout=subprocess.PIPE
            )
            children.append(child)
            output, _ = await asyncio.to_thread(child.communicate)
            return output

    children: list[subprocess.Popen[bytes]] = []

    async def answer_when_stopped(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        children[0].send_signal(signal.SIGSTOP)
        writer.write(http_response(202, ACCEPTED_RESPONSE))
        await writer.drain()
        await asyncio.sleep(STOPPED_TIMEOUT_S)  # its time-out passes while it is stopped
        children[0].send_signal(signal.SIGCONT)

    assert asyncio.run(main()).startswith(b"Accepted(request_id='abc-1'")


# ---- kept connections ------------------------------------------------------------------------------------


def test_kept_sessions_after_a_suspended_laptop() -> None:
    """A connection that was idle for too long by the time of day is not used again, also if the clock was set."""

    async def main() -> None:
        now = [1000.0]
        kept = KeptSessions(lambda: open_session(is_kept=True), clock=lambda: now[0])
        session, is_reused = kept.take()
        assert not is_reused
        kept.give_back(session)
        now[0] += KEEPALIVE_S
        assert kept.take() == (session, True)
        for jump_s in (KEEPALIVE_S + 0.1, 8 * 3600.0, -1.0):
            kept.give_back(session)
            now[0] += jump_s
            other, is_reused = kept.take()
            assert other is not session
            assert not is_reused
            session = other
        kept.drop(session)
        await kept.close()

    asyncio.run(main())


def test_a_dropped_session_is_closed() -> None:
    """A session that is dropped is closed, and `close` waits for it."""

    async def main() -> None:
        kept = KeptSessions(lambda: open_session(is_kept=True))
        session, _ = kept.take()
        kept.drop(session)
        idle, _ = kept.take()
        kept.give_back(idle)
        await kept.close()
        assert session.closed
        assert idle.closed

    asyncio.run(main())


def test_a_gateway_that_names_no_requests() -> None:
    """Statuses without a request_id are believed from fresh connections alone: the jobs end, with one more poll."""

    async def respond(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        named = b'{"request_id":"abc-1","status":"QUEUED"}'
        writer.write(http_response(200, named if request.path.endswith("abc-1") else b'{"status":"PROCESSING"}'))

    async def use(gateway: GatewayClient, server: RawServer) -> None:
        assert await gateway.poll("abc-1") == Waiting("QUEUED")
        assert isinstance(await gateway.poll("abc-2"), PollFailed)
        for _ in range(3):
            assert await gateway.poll("abc-1") == Waiting("QUEUED")
            assert await gateway.poll("abc-2") == Waiting("PROCESSING")
        assert server.connections == 7

    run_against_server(respond, use)


# ---- downloads -------------------------------------------------------------------------------------------


def test_informational_responses_are_skipped() -> None:
    """Informational responses before the final one are skipped."""
    informational = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"

    async def use(gateway: GatewayClient, server: RawServer) -> bytes:
        return (await read(gateway, server.url + "/a.png"))[1]

    assert run_against_server(fixed_response(informational + http_response(200, b"final")), use) == b"final"


def test_a_cut_download_is_sent_once() -> None:
    """A download whose connection is cut has failed. It is not repeated here: the downloader waits before it does."""

    async def use(gateway: GatewayClient, server: RawServer) -> int:
        with pytest.raises(DownloadError, match="the connection was lost"):
            await read(gateway, server.url + "/a.png")
        return len(server.requests)

    assert run_against_server(fixed_response(cut=True), use) == 1


@pytest.mark.parametrize("timeout", ["READ_TIMEOUT_S", "DOWNLOAD_TIMEOUT_S"])
def test_a_slow_download_times_out(timeout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download is aborted if it pauses for too long, or takes too long as a whole."""
    monkeypatch.setattr(client_module, timeout, 0.1)

    async def send_slowly(_: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _step in range(1 if timeout == "READ_TIMEOUT_S" else 1000):
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


def test_descriptions_of_errors() -> None:
    """Errors are described in our own words, without paths, headers or what a server sent."""
    assert describe_error(TimeoutError()) == "timed out"
    assert describe_error(aiohttp.ServerTimeoutError("x.example")) == "timed out"
    assert describe_error(aiohttp.ClientPayloadError("secret")) == "the response was cut off"
    assert describe_error(aiohttp.ClientOSError(104, "Cannot write to x.example")) == "the connection was lost"
    assert describe_error(OSError(24, "Too many open files")) == "Too many open files"


@pytest.mark.anyio
@pytest.mark.parametrize("variable", ["gateway", "proxy"])
async def test_a_name_that_cannot_be_resolved_is_told(variable: str) -> None:
    """The name may be that of the gateway or of the proxy, so the description has it."""
    proxy = "http://proxy.invalid:3128" if variable == "proxy" else None
    async with open_session() as session:
        with pytest.raises(aiohttp.ClientConnectorDNSError) as raised:
            await session.get("https://gateway.invalid/", proxy=proxy)
    assert re.fullmatch(rf"no connection \({variable}\.invalid: .+\)", describe_error(raised.value))


@pytest.mark.anyio
async def test_a_server_without_tls_is_told() -> None:
    """The description says that TLS failed, and not where in Python."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, open_session() as session:
        with pytest.raises(aiohttp.ClientConnectorError) as raised:
            await session.get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert re.fullmatch(r"no TLS connection \([a-z ]+\)", describe_error(raised.value))
