"""Receive the signals that stop a command, on every event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio

INTERRUPT_REASON = "interrupted"
"""The reason of a stop after such a signal."""


@contextmanager
def receive_signals(*numbers: signal.Signals) -> Iterator[AsyncIterator[signal.Signals]]:
    """Yield an async iterator over the signals that arrive during the block, in the main thread of the process.

    Inside the block they have no other effect.
    """
    if type(asyncio.get_running_loop()).add_signal_handler is not asyncio.AbstractEventLoop.add_signal_handler:
        with anyio.open_signal_receiver(*numbers) as received:
            yield received
        return
    # On Windows, loops have no signal handlers, but a signal wakes a loop up (the source of asyncio.proactor_events).
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[signal.Signals]()

    def on_signal(number: int, _: object) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, signal.Signals(number))

    previous_handlers = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield _items_of(queue)
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


async def _items_of(queue: asyncio.Queue[signal.Signals]) -> AsyncIterator[signal.Signals]:
    while True:
        yield await queue.get()
