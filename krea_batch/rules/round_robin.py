"""What waits comes in with the name of its tenant; whose turn it is goes out, round after round.

Newcomers: a tenant has one turn a round however much of his is waiting, so who brings ten jobs waits for ten rounds
at the most, whatever the others bring. With one tenant, this is a queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobinQueue(Generic[T]):
    """Queues, one a tenant, that are served in turn. Empty ones are forgotten."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[T]] = {}  # in the order of their turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, tenant: str, item: T) -> None:
        """Add something behind all else of the same tenant."""
        self._queues.setdefault(tenant, deque()).append(item)
        self._count += 1

    def pop(self) -> T:
        """The next of the tenant whose turn it is. Raises IndexError where nothing waits."""
        if not self._queues:
            raise IndexError("nothing waits")
        tenant, queue = next(iter(self._queues.items()))
        del self._queues[tenant]
        item = queue.popleft()
        self._count -= 1
        if queue:
            self._queues[tenant] = queue  # behind the others
        return item

    def drain(self) -> Iterator[T]:
        """Everything that waits, each in its turn."""
        while self._queues:
            yield self.pop()
