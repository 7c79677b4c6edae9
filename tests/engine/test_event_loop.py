"""The event loop of the commands: uvloop, with fast connects and an exact clock."""

from __future__ import annotations

import asyncio
import socket
import time

import anyio
import pytest

from krea_batch.engine.event_loop import backend_options
from krea_batch.storage.clocks import monotonic_clock

pytest.importorskip("uvloop")


def test_a_numeric_address_is_resolved_without_a_thread() -> None:
    """uvloop's `sock_connect` resolves the address with these arguments."""

    async def main() -> None:
        resolving = asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, family=socket.AF_INET)
        with pytest.raises(StopIteration) as resolved:  # A coroutine that waits for nothing ends in its first step.
            resolving.send(None)
        assert [address for *_, address in resolved.value.value] == [("127.0.0.1", 80)]

    anyio.run(main, backend_options=backend_options())


def test_a_name_is_resolved() -> None:
    """Names of hosts are resolved as by other loops."""

    async def main() -> None:
        addresses = await asyncio.get_running_loop().getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
        assert {"127.0.0.1", "::1"} & {address[0] for *_, address in addresses}

    anyio.run(main, backend_options=backend_options())


def test_its_clock_advances_while_callbacks_run() -> None:
    """Send times read from uvloop's own clock would be too early."""

    async def main() -> None:
        assert monotonic_clock(asyncio.get_running_loop()) is time.monotonic

    anyio.run(main, backend_options=backend_options())
