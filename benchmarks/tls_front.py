"""Serve a TLS port of this machine that forwards to another port, with a certificate of its own."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.certificates import make_certificate


@contextmanager
def tls_front(port: int) -> Iterator[str]:
    """Give the URL of a TLS port in front of `port`. Processes that start meanwhile trust its certificate."""
    with tempfile.TemporaryDirectory() as folder:
        pem = make_certificate(Path(folder) / "localhost.pem")
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.tls_front", str(port), pem], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        trusted = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = str(pem)
        try:
            yield f"https://localhost:{process.stdout.readline().strip()}"
        finally:
            process.terminate()
            process.communicate()
            os.environ.pop("SSL_CERT_FILE")
            if trusted is not None:
                os.environ["SSL_CERT_FILE"] = trusted


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _serve(port: int, pem: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_forward(reader, other_writer), _forward(other_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
