"""The budget of a run: `max_charges` limits the POSTs that are charged, or may be, over all runs of a directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from krea_batch.errors import RunStopped


class ChargeBudget:
    """Counts charges against a limit; None means no limit. `stop` ends the run early once the limit is reached.

    A POST is reserved before it is sent, since it may be charged, and released once its result is recorded.
    """

    def __init__(self, limit: int | None, stop: Callable[[RunStopped], None]) -> None:
        self._limit = limit
        self._stop = stop
        self._charged = 0  # POSTs that were charged, or may have been
        self._reserved = 0  # POSTs whose result is not recorded
        self._changed = asyncio.Event()

    def add_charges(self, count: int) -> None:
        """Count POSTs that were charged, or may have been. A negative number takes some back."""
        self._charged += count
        self._changed.set()

    async def wait(self) -> None:
        """Wait until one more POST cannot exceed the limit. If none can be sent any more, stop the run."""
        while self._limit is not None and self._charged + self._reserved >= self._limit:
            if self._charged >= self._limit:
                reason = f"max_charges is reached ({self._limit})"
                self._stop(RunStopped(reason, "raise it, then run again to resume"))
            self._changed.clear()
            await self._changed.wait()

    def reserve(self) -> None:
        """Reserve one POST, directly after `wait`."""
        self._reserved += 1

    def release(self) -> None:
        """Release the reservation of a POST whose result is recorded."""
        self._reserved -= 1
        self._changed.set()
