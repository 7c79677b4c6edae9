"""The budget of a run: `max_charges` limits the POSTs that are charged, or may be, over all runs of a directory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from krea_batch.errors import RunStopped
from krea_batch.ledger import Ledger

GRANT = 20  # chosen: one more transaction for 20 POSTs, and few charges that other runs wait for
RETRY_S = 0.5  # chosen: until another run has given charges back


class Budget(Protocol):
    """What is left for POSTs. A POST is reserved before it is sent, and released once its result is recorded."""

    def add_charges(self, count: int) -> None:
        """Count POSTs that were charged, or may have been. A negative number takes some back."""

    async def wait(self) -> None:
        """Wait until one more POST cannot exceed the limit. If none can be sent any more, stop the run."""

    def reserve(self) -> None:
        """Reserve one POST, directly after `wait`."""

    def release(self) -> None:
        """Release the reservation of a POST whose result is recorded."""


class ChargeBudget:
    """The budget of a run that has its directory alone. It counts charges against a limit; None means no limit.

    `stop` ends the run early once the limit is reached. See `Budget` for the methods.
    """

    def __init__(self, limit: int | None, stop: Callable[[RunStopped], None]) -> None:
        self._limit = limit
        self._stop = stop
        self._charged = 0  # POSTs that were charged, or may have been
        self._reserved = 0  # POSTs whose result is not recorded
        self._changed = asyncio.Event()

    def add_charges(self, count: int) -> None:
        self._charged += count
        self._changed.set()

    async def wait(self) -> None:
        while self._limit is not None and self._charged + self._reserved >= self._limit:
            if self._charged >= self._limit:
                self._stop(limit_reached(self._limit))
            self._changed.clear()
            await self._changed.wait()

    def reserve(self) -> None:
        self._reserved += 1

    def release(self) -> None:
        self._reserved -= 1
        self._changed.set()


class SharedChargeBudget:
    """The budget of a run that shares its limit with other runs, through the ledger.

    The ledger grants some charges at a time, so that most POSTs need not ask. What is not needed is given back.
    """

    def __init__(
        self,
        limit: int | None,
        stop: Callable[[RunStopped], None],
        record: Callable[..., Awaitable[Any]],
        *,
        count_server_errors: bool,
    ) -> None:
        self._limit = limit
        self._stop = stop
        self._record = record
        self._count_server_errors = count_server_errors
        self._granted = 0  # and not used
        self._is_held = False  # one of them is for a POST that is about to be sent

    def add_charges(self, count: int) -> None:
        """Do nothing: the ledger counts."""

    async def wait(self) -> None:
        while self._limit is not None and self._granted == 0:
            granted = await self._record(
                Ledger.reserve_charges, GRANT, self._limit, count_server_errors=self._count_server_errors
            )
            self._granted += granted.granted
            if granted.granted:
                break
            if granted.exhausted:
                self._stop(limit_reached(self._limit))
            await asyncio.sleep(RETRY_S)
        self._is_held = self._limit is not None

    def reserve(self) -> None:
        if self._is_held:
            self._granted -= 1
            self._is_held = False

    def release(self) -> None:
        """Do nothing: the ledger knows the result of the POST."""

    async def give_back(self) -> None:
        """Give back the charges that no job waits for."""
        if unused := self._granted - self._is_held:
            self._granted -= unused
            await self._record(Ledger.return_charges, unused)


def limit_reached(limit: int) -> RunStopped:
    """Return the reason to stop a run whose limit of charges is reached."""
    return RunStopped(f"max_charges is reached ({limit})", "raise it, then run again to resume")
