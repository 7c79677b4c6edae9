"""The implementations of `Ledger`. Each passes tests/ledger/test_transitions.py and test_batching.py."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Protocol

import pytest

from krea_batch.ledger import Ledger
from krea_batch.ledger.sqlite import SqliteLedger


class LedgerPlace(Protocol):
    """Where one ledger is. `open` creates it, or opens it once more, beside those that are open."""

    def __init__(self, folder: Path) -> None: ...

    @staticmethod
    def new_in_memory() -> Ledger:
        """Return an empty ledger that takes no time to create, beside the place."""
        ...

    def open(self) -> Ledger: ...

    def dump(self) -> list[str]:
        """Return the whole content of the ledger, to compare it with an earlier one."""
        ...


class SqlitePlace:
    """A ledger in a file in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"

    @staticmethod
    def new_in_memory() -> Ledger:
        return SqliteLedger.empty(Path("ledger.db"))

    def open(self) -> Ledger:
        return SqliteLedger.open(self.path)

    def dump(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            return list(connection.iterdump())


PLACES: dict[str, type[LedgerPlace]] = {"sqlite": SqlitePlace}
each_empty_ledger = pytest.mark.parametrize(
    "new_ledger", [place.new_in_memory for place in PLACES.values()], ids=PLACES
)
"""Runs a test with an empty ledger of each implementation."""
