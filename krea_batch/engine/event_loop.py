"""Runs async functions on the fastest event loop that is installed, in this thread or another one."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run_event_loop(main: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
    """Run `main(*args)` to completion, on uvloop if it is installed, and return its result.

    It tunes the garbage collector, so use it only in a process that does nothing else.
    """
    import anyio

    tune_gc()
    return anyio.run(main, *args, backend_options=backend_options())


def loop_in_thread() -> AbstractContextManager[BlockingPortal]:
    """Return a context manager with an event loop in a thread of its own, uvloop's if it is installed."""
    from anyio.from_thread import start_blocking_portal

    return start_blocking_portal("asyncio", backend_options())


def backend_options() -> dict[str, Any]:
    """Return the options with which anyio uses uvloop if it is installed."""
    return {"loop_factory": new_uvloop} if find_spec("uvloop") is not None else {}


def new_uvloop() -> asyncio.AbstractEventLoop:
    """Return a new event loop of uvloop, which must be installed, that connects to an address without a thread.

    uvloop's `sock_connect` resolves the address once more, and does not pass the type of the socket. Without a type,
    uvloop needs a thread even for a numeric address: two for each job, a twentieth of the processor time (measured).
    """
    import uvloop

    class Loop(uvloop.Loop):
        async def getaddrinfo(self, host: Any, port: Any, *, type: int = 0, **options: int) -> list[Any]:  # noqa: A002
            # The engine and the simulator use TCP only.
            return await super().getaddrinfo(host, port, type=type or socket.SOCK_STREAM, **options)

    return Loop()


def tune_gc() -> None:
    """Exclude the imported modules from garbage collection, and collect less often.

    Collections blocked the event loop for 25 ms each and took 0.07 ms per job (measured). The engine creates almost
    no reference cycles.
    """
    gc.freeze()
    # Measured: the objects of 64 jobs, which come and go by the thousand, cause no collections; pauses of 4 ms.
    gc.set_threshold(20_000, 20, 50)
