"""A gateway with TLS, like the real one: its certificate is checked before anything is sent."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.certificates import make_certificate
from tests.processes import StartSimulator, result_rows, run_command, write_jobs


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """Return a file with a self-signed certificate for localhost and its key."""
    return make_certificate(tmp_path / "localhost.pem")


@contextmanager
def tls_proxy_port(port: int, pem: Path) -> Iterator[int]:
    """Serve a local TLS port that forwards to another local port, and yield its number."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    loop = asyncio.new_event_loop()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def on_connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend_reader, backend_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            forward(reader, backend_writer), forward(backend_reader, writer), return_exceptions=True
        )  # either side may close first

    server = loop.run_until_complete(asyncio.start_server(on_connected, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.mark.slow
def test_a_trusted_certificate(simulate: StartSimulator, tmp_path: Path, pem: Path) -> None:
    """With a trusted certificate, jobs run as without TLS."""
    write_jobs(tmp_path / "jobs.jsonl", 20)
    gateway = simulate("--tiny", "--latency", "fixed:0.2")
    port = urlsplit(gateway.gateway_url).port
    assert port
    with tls_proxy_port(port, pem) as tls_port:
        options = ("--gateway", f"https://localhost:{tls_port}", "--rate", "50/s", "--poll-interval", "0.2")
        done = run_command("run", "jobs.jsonl", "--out", "out", *options, cwd=tmp_path, SSL_CERT_FILE=str(pem))
    assert done.returncode == 0, done.stderr
    assert {row["status"] for row in result_rows(tmp_path / "out")} == {"succeeded"}
    assert gateway.admin_request("/totals")["charged"] == 20


@pytest.mark.slow
def test_an_untrusted_certificate(simulate: StartSimulator, tmp_path: Path, pem: Path) -> None:
    """With an untrusted certificate, or one of another host, nothing is sent, and no job is ambiguous."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    gateway = simulate("--tiny")
    port = urlsplit(gateway.gateway_url).port
    assert port
    with tls_proxy_port(port, pem) as tls_port:
        for host, trusted in (("localhost", ""), ("127.0.0.1", str(pem))):
            options = ("--gateway", f"https://{host}:{tls_port}", "--job-timeout", "1")
            done = run_command("run", "jobs.jsonl", "--out", host, *options, cwd=tmp_path, SSL_CERT_FILE=trusted)
            assert done.returncode == 3, done.stderr
            assert "certificate verify failed" in done.stdout + done.stderr
            assert "1 not submitted yet" in done.stdout
    assert gateway.admin_request("/ledger")["posts"] == []
