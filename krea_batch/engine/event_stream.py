"""TODO"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from krea_batch.events import Event, EventsDropped

MAX_UNREAD_EVENTS = 10_000  # chosen: events, some megabytes; who reads no faster in a minute's run reads none in time


class EventStream:
    """Events for one reader, in order, until `end`. Who is too slow is told how many he has missed."""

    def __init__(self, max_unread: int = MAX_UNREAD_EVENTS) -> None:
        self._most = max_unread
        self._unread: deque[Event] = deque()
        self._missed = 0
        self._over = False
        self._news = asyncio.Event()

    def push(self, event: Event) -> None:
        """Keep an event until it is read."""
        if len(self._unread) >= self._most:
            self._unread.popleft()
            self._missed += 1
        self._unread.append(event)
        self._news.set()

    def close(self) -> None:
        """Nothing will follow."""
        self._over = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            if self._missed:
                missed, self._missed = self._missed, 0
                yield EventsDropped(missed)
            elif self._unread:
                yield self._unread.popleft()
            elif self._over:
                return
            else:
                self._news.clear()
                await self._news.wait()
