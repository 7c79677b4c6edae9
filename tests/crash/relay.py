"""Forwards ports of the loopback interface to the same ports of another address.

    python -m tests.crash.relay ADDRESS PORT…

In a network namespace of its own, a process reaches the simulator through it: http is allowed on loopback only.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward what one side sends, until it ends."""
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(address: str, ports: list[int]) -> None:
    """Forward the connections to these ports, forever."""

    async def connect(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, requests = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(forward(reader, requests), forward(answers, writer))

    for port in ports:
        await asyncio.start_server(lambda *ends, port=port: connect(port, *ends), "127.0.0.1", port)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], [int(port) for port in sys.argv[2:]]))
