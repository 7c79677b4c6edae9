"""Reads the ledger of a run while the engine writes it, and sees only what is committed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any


class LedgerFileReader:
    """A connection of its own, which is opened when it is needed and kept until `close`."""

    def __init__(self, out: Path) -> None:
        self._path = out / "ledger.db"
        self._sql: sqlite3.Connection | None = None

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement; none if the first process crashed before it had created the tables."""
        if self._sql is None:
            if not self._path.exists():
                return []
            self._sql = sqlite3.connect(self._path, isolation_level=None)
            if not self._sql.execute("SELECT 1 FROM sqlite_schema").fetchall():
                self.close()
                return []
        return self._sql.execute(sql, values).fetchall()

    def states(self) -> dict[str, str]:
        """Return the state of each job."""
        return dict(self.query("SELECT job_id, state FROM jobs"))

    def close(self) -> None:
        """Close the connection: the files are about to be replaced."""
        if self._sql:
            self._sql.close()
            self._sql = None
