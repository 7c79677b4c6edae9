"""An HTTP proxy with a password that connects with CONNECT, as in a company's network."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

USER, PASSWORD = "worker", "p@ss:word/%"
PASSWORD_IN_URL = "p%40ss%3Aword%2F%25"


class ConnectProxy:
    """Connects to hosts for clients that know the password. `targets` are the hosts and ports that were asked for.

    `status` is the answer to a CONNECT instead of 200; 0 closes the connection. `heads` are the requests as received.
    """

    def __init__(self, *, status: int = 200) -> None:
        self._status = status
        self.targets: list[str] = []
        self.heads: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        """The proxy's URL with its user name and password."""
        return f"http://{USER}:{PASSWORD_IN_URL}@127.0.0.1:{self.port}"

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        method, target, _ = head.split(" ", 2)
        self.targets.append(target)
        credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self._status == 0:
            return
        if method != "CONNECT" or f"\r\nproxy-authorization: basic {credentials}\r\n".lower() not in head.lower():
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n")
            return
        if self._status != 200:
            writer.write(f"HTTP/1.1 {self._status} No\r\nContent-Length: 0\r\n\r\n".encode())
            return
        host, _, port = target.rpartition(":")
        host_reader, host_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_copy(reader, host_writer), _copy(host_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


async def _end_connections() -> None:
    open_connections = asyncio.all_tasks() - {asyncio.current_task()}
    for task in open_connections:
        task.cancel()
    await asyncio.gather(*open_connections, return_exceptions=True)
    await asyncio.sleep(0)  # transports close in the loop's next step


@contextmanager
def running(proxy: ConnectProxy) -> Iterator[ConnectProxy]:
    """Run a proxy in a thread."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.connected, "127.0.0.1", 0))
    proxy.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(_end_connections())
        loop.close()
