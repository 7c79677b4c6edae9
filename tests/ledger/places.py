"""The implementations of `Ledger`. Each passes tests/ledger/test_transitions.py and test_batching.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Protocol

import pytest

from krea_batch.ledger import Ledger
from krea_batch.ledger.sqlite import SqliteLedger


class LedgerPlace(Protocol):
    """Where one ledger is. `open` creates it, or opens it once more, beside those that are open."""

    def open(self) -> Ledger: ...

    def dump(self) -> list[str]:
        """Return the whole content of the ledger, to compare it with an earlier one."""
        ...


class SqlitePlace:
    """A ledger in a file in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"

    def open(self) -> Ledger:
        return SqliteLedger.open(self.path)

    def dump(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            return list(connection.iterdump())


def empty_in_memory() -> Ledger:
    return SqliteLedger.empty(Path("ledger.db"))


PLACES: dict[str, Callable[[Path], LedgerPlace]] = {"sqlite": SqlitePlace}
each_empty_ledger = pytest.mark.parametrize("new_ledger", [empty_in_memory], ids=["sqlite"])
"""Runs a test with an empty ledger of each implementation, which takes no time to create."""
