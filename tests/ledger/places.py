"""The implementations of `Ledger`. Each passes tests/ledger/test_transitions.py and test_batching.py."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from krea_batch.ledger import Ledger
from krea_batch.ledger.postgres.ledger_address import LedgerAddress
from krea_batch.ledger.sql_ledger import SqlLedger
from krea_batch.ledger.sqlite import SqliteLedger
from tests.postgres_server import shared_server

if TYPE_CHECKING:
    from krea_batch.ledger.postgres.postgres_ledger import PostgresLedger

TABLES = (
    "jobs", "submissions", "runs", "callback_secret", "checkpoint", "results_mark", "found_limit", "rate_events",
)  # fmt: skip


def content_of(ledger: SqlLedger) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of each table, in order: the same for equal ledgers, whatever their database."""
    return {table: sorted(ledger._rows(f"SELECT * FROM {table}"), key=lambda row: int(row[0])) for table in TABLES}


class LedgerPlace(Protocol):
    """Where one ledger is. `open` creates it, or opens it once more, beside those that are open."""

    def __init__(self, folder: Path) -> None: ...

    @staticmethod
    def new_empty() -> Ledger:
        """Return an empty ledger, beside the place."""
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
    def new_empty() -> Ledger:
        return SqliteLedger.empty(Path("ledger.db"))

    def open(self) -> Ledger:
        return SqliteLedger.open(self.path)

    def dump(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            return list(connection.iterdump())


class PostgresPlace:
    """A batch in the database of the tests."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.toml"
        self.server = shared_server()
        self.batch = f"test-{next(_numbers)}"

    @staticmethod
    def new_empty() -> Ledger:
        return PostgresPlace(Path()).open()

    def open(self, *, read_only: bool = False) -> PostgresLedger:
        from krea_batch.ledger.postgres.postgres_ledger import PostgresLedger

        address = LedgerAddress(self.server.url, self.batch)
        return PostgresLedger.open(self.path, address, read_only=read_only)

    def dump(self) -> list[str]:
        with closing(self.open(read_only=True)) as reader:
            (content,) = reader.read(content_of)
        return [f"{table} {row}" for table, rows in content.items() for row in rows]


_numbers = count(1)

PLACES: dict[str, type[LedgerPlace]] = {"sqlite": SqlitePlace, "postgres": PostgresPlace}
SLOW_PLACES = {"postgres"}  # a server is started for them
place_params = [
    pytest.param(place, id=name, marks=[pytest.mark.slow] if name in SLOW_PLACES else [])
    for name, place in PLACES.items()
]
each_empty_ledger = pytest.mark.parametrize(
    "new_ledger",
    [pytest.param(each.values[0].new_empty, id=each.id, marks=each.marks) for each in place_params],  # type: ignore[union-attr]
)
"""Runs a test with an empty ledger of each implementation."""
