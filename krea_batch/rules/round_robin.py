"""A queue that serves tenants in turn.

Each tenant gets one item per round, however many items wait. So a tenant with ten items waits at most ten rounds,
whatever the other tenants have queued. With a single tenant this is a plain queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobinQueue(Generic[T]):
    """One queue per tenant; the tenants are served round robin. Empty queues are dropped."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[T]] = {}  # in the order in which the tenants are served
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, tenant: str, item: T) -> None:
        """Add an item behind all other items of the tenant."""
        self._queues.setdefault(tenant, deque()).append(item)
        self._count += 1

    def pop(self) -> T:
        """Remove and return an item of the next tenant. Raises IndexError if the queue is empty."""
        if not self._queues:
            raise IndexError("the queue is empty")
        tenant, queue = next(iter(self._queues.items()))
        del self._queues[tenant]
        item = queue.popleft()
        self._count -= 1
        if queue:
            self._queues[tenant] = queue  # Reinserted last: the other tenants come first.
        return item

    def drain(self) -> Iterator[T]:
        """Remove and yield every item, round robin."""
        while self._queues:
            yield self.pop()
