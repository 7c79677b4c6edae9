"""A bounded stream of events. If it is read too slowly, the oldest events are dropped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from krea_batch.events import Event, EventsDropped

MAX_UNREAD_EVENTS = 10_000  # chosen: some megabytes; a reader this far behind does not catch up in a short run


class EventStream:
    """Events for one reader, in order, until `close`. After a gap, the reader gets an EventsDropped first."""

    def __init__(self, max_unread: int = MAX_UNREAD_EVENTS) -> None:
        self._max_unread = max_unread
        self._unread: deque[Event] = deque()
        self._dropped = 0
        self._closed = False
        self._changed = asyncio.Event()

    def push(self, event: Event) -> None:
        """Add an event. If the stream is full, drop the oldest unread event."""
        if len(self._unread) >= self._max_unread:
            self._unread.popleft()
            self._dropped += 1
        self._unread.append(event)
        self._changed.set()

    def close(self) -> None:
        """End the stream after the unread events."""
        self._closed = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                yield EventsDropped(dropped)
            elif self._unread:
                yield self._unread.popleft()
            elif self._closed:
                return
            else:
                self._changed.clear()
                await self._changed.wait()
