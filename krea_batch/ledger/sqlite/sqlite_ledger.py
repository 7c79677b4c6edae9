"""The ledger in an SQLite file: its transactions, and what SQLite does in its own way."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Self, TypeVar

from krea_batch.errors import KreaBatchError, LedgerError
from krea_batch.ledger.protocol import Intent
from krea_batch.ledger.sql_ledger import SqlLedger
from krea_batch.ledger.sqlite.busy import wait_while_busy
from krea_batch.ledger.sqlite.database import empty_database, next_step_of, open_database, open_error

T = TypeVar("T")

MAX_ROWS = 64  # measured: more rows in one statement do not make a row cheaper


class SqliteLedger(SqlLedger):
    """The ledger of a run directory in an SQLite file. See `Ledger` for its methods."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__()
        self.path = path
        self._sql = connection

    @classmethod
    def snapshot(cls, path: Path) -> SqliteLedger:
        """Open the file for reading, as it is now, whatever is written to it later. Raises as `open` does."""
        store = cls.open(path, read_only=True)
        try:
            with store.errors():
                store._sql.execute("BEGIN")
                store._sql.execute("SELECT max(job_no) FROM jobs").fetchone()  # takes the snapshot
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def empty(cls, path: Path) -> SqliteLedger:
        """Return a ledger without jobs, in memory, in place of the file at `path`."""
        return cls(path, empty_database())

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> SqliteLedger:
        """Open the file; create it unless `read_only`. Raises RunDirError for a foreign or newer file."""
        try:
            return cls(path, open_database(path, read_only=read_only))
        except sqlite3.Error as error:
            raise open_error(path, error) from error

    def close(self) -> None:
        self._sql.close()

    def read(self, *queries: Callable[[Self], Any]) -> list[Any]:
        with self.errors():
            if self._sql.in_transaction:  # a snapshot is
                return [query(self) for query in queries]
            self._sql.execute("BEGIN")
            try:
                return [query(self) for query in queries]
            finally:
                self._sql.execute("ROLLBACK")

    def transaction(self, operation: Callable[[Self], T]) -> T:
        try:
            return wait_while_busy(self.path, lambda: self._attempt(operation))
        except sqlite3.Error as error:
            problem = f"cannot write the ledger ({error})"
            raise LedgerError(self.path, problem, f"{next_step_of(error)}, then run again to resume") from error

    def _attempt(self, operation: Callable[[Self], T]) -> T:
        """Apply an operation in a transaction, unless another program has locked the file."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            result = self._apply(operation)
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise
        return result

    def maintain(self) -> None:
        """Copy the WAL into the file, as far as readers allow."""
        with self.errors():
            self._sql.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def clock_s(self) -> None:
        return None

    def find_damage(self) -> str | None:
        """Return the first inconsistency that SQLite finds in the file; None if there is none."""
        try:
            (problem,) = self._sql.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            problem = str(error)
        return None if problem == "ok" else str(problem)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise LedgerError for an error of SQLite."""
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(self.path, f"cannot read the ledger ({error})", next_step_of(error)) from error

    # ---- statements --------------------------------------------------------------------------------------

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._sql.execute(sql, values)

    def _execute(self, sql: str, values: Sequence[Any] = (), *, otherwise: KreaBatchError | None = None) -> None:
        cursor = self._sql.execute(sql, values)
        if otherwise and cursor.rowcount != 1:
            raise otherwise

    def _execute_rows(self, sql: str, rows: Sequence[tuple[Any, ...]], *, otherwise: KreaBatchError) -> None:
        if sum(cursor.rowcount for cursor in self._execute_batches(sql, rows)) != len(rows):
            raise otherwise

    def _fetch_rows(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        return chain.from_iterable(self._execute_batches(sql, rows))

    def _execute_batches(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[sqlite3.Cursor]:
        """Execute a statement in batches, padded with rows of NULL, so that SQLite can cache few statements."""
        for start in range(0, len(rows), MAX_ROWS):
            batch = rows[start : start + MAX_ROWS]
            size = 1 << (len(batch) - 1).bit_length()
            nulls = repeat(None, (size - len(batch)) * len(batch[0]))
            yield self._sql.execute(_values_sql(sql, size, len(batch[0])), (*chain.from_iterable(batch), *nulls))

    def _write_intents(self, intents: Sequence[Intent]) -> dict[str, int]:
        job_nos = dict(
            self._fetch_rows(
                "INSERT INTO jobs (job_id, state, body, fingerprint, metadata, submitted_at, tenant, image_name,"
                " attempts, run_no)"
                " SELECT column1, 'submitting', column2, column3, column4, column5, column6, nullif(column7, ''), 1,"
                f" {self._run_no or 'NULL'} FROM {{rows}} WHERE column1 IS NOT NULL"
                " ON CONFLICT (job_id) DO UPDATE SET state = 'submitting', attempts = attempts + 1,"
                " submitted_at = excluded.submitted_at"
                " WHERE state = 'pending' AND fingerprint = excluded.fingerprint RETURNING job_id, job_no",
                intents,
            )
        )
        submissions = [
            (job_nos[job_id], at, self._run_no) for job_id, _, _, _, at, *_ in intents if job_id in job_nos
        ]
        for _ in self._execute_batches(
            "INSERT INTO submissions (job_no, sent_at, run_no) SELECT column1, column2, column3 FROM {rows}"
            " WHERE column1 IS NOT NULL",
            submissions,
        ):
            pass
        return job_nos


@lru_cache(maxsize=256)
def _values_sql(sql: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return sql.format(rows=f"(VALUES {', '.join([row] * rows)})")
