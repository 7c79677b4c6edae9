"""TODO"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from krea_batch.events import Event, Missed

MOST_UNREAD = 10_000  # chosen: events, some megabytes; who reads no faster in a minute's run reads none in time


class Reader:
    """Events for one reader, in order, until `end`. Who is too slow is told how many he has missed."""

    def __init__(self, most: int = MOST_UNREAD) -> None:
        self._most = most
        self._unread: deque[Event] = deque()
        self._missed = 0
        self._over = False
        self._news = asyncio.Event()

    def hear(self, event: Event) -> None:
        """Keep an event until it is read."""
        if len(self._unread) >= self._most:
            self._unread.popleft()
            self._missed += 1
        self._unread.append(event)
        self._news.set()

    def end(self) -> None:
        """Nothing will follow."""
        self._over = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            if self._missed:
                missed, self._missed = self._missed, 0
                yield Missed(missed)
            elif self._unread:
                yield self._unread.popleft()
            elif self._over:
                return
            else:
                self._news.clear()
                await self._news.wait()
