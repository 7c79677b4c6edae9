"""The ledger in PostgreSQL: its transactions, and what PostgreSQL does in its own way.

**One after another.** A transaction first takes the lock of its batch, which ends with it. So transactions of several
processes follow each other as they do in SQLite, and nothing between a read and a write of a transaction can change.

**Few round trips.** Statements without rows to read wait in a pipeline until rows are read, or until the commit. A
commit with transitions of one kind takes two round trips: its statements, and COMMIT.

**The answer of a commit may be lost**, when the connection or the server breaks after COMMIT was sent. Then it
is unknown whether it was made. But the transaction has counted up `commit_no` in the row of this process, and holds
the lock of the batch until it has ended. So the next attempt takes the lock, and reads the number:

- It is the number of that transaction: the commit was made. The caller gets the results that were computed then, and
  nothing is applied again. An intent is counted once, and its POST is sent only now, when its record is known.
- It is the number before: the commit was not made, and never will be. The transaction is repeated as a whole.
- It is lower, or there is no such row: the database has forgotten commits that it had confirmed, as after a failover
  to a standby that was behind. An intent may be among them, so this process writes, and sends, nothing more. Each
  transaction looks for this.

If the database does not come back within MAX_WAIT_S, the callers get an error, and no POST is sent for an intent that
was being recorded. If its commit was made, the next run finds a POST that was pending: the job is ambiguous.

The commit that finds this out is synchronous and later than the one it asks about. So if that one was made without
waiting for a standby, the standby has it afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import psycopg
from psycopg.sql import SQL, Identifier

from krea_batch.errors import InternalError, KreaBatchError, LedgerError, RunDirError
from krea_batch.jobs import State
from krea_batch.ledger.postgres.connection import (
    IDLE_TIMEOUT_S,
    STATEMENT_TIMEOUT_S,
    connect,
    describe,
    is_passing,
)
from krea_batch.ledger.postgres.durability import find_danger, find_risk, read_settings
from krea_batch.ledger.postgres.ledger_address import LedgerAddress
from krea_batch.ledger.protocol import Intent
from krea_batch.ledger.sql_ledger import SqlLedger
from krea_batch.ledger.sql_queries import read_schema
from krea_batch.ledger.waiting import wait_while
from krea_batch.rules.lifecycle import Action, path_of

T = TypeVar("T")
log = logging.getLogger("krea_batch")

SCHEMA_VERSION = 2
RECONNECT_PAUSES = 10  # chosen: half a second between attempts to connect
_LOCK_CLASS = 0x4B524541  # "KREA": keeps the locks of batches apart from those of other programs
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_PENDING, _SUBMITTING = path_of(Action.SUBMIT, State.PENDING)


class ServerReport(NamedTuple):
    """What a server is like: what forbids a run, with what would be right, and what a run warns of."""

    settings: str
    danger: tuple[str, str] | None
    risk: str
    batch_exists: bool


class PostgresLedger(SqlLedger):
    """The ledger of a batch in PostgreSQL. See `Ledger` for its methods.

    `path` is that of ledger.toml. An object that is opened for changes counts its commits under its `writer_no`.
    """

    def __init__(self, path: Path, address: LedgerAddress, *, read_only: bool) -> None:
        super().__init__()
        self.path = path
        self._address = address
        self._read_only = read_only
        self._connection: psycopg.Connection[Any] | None = None
        self._in_transaction = False
        self._executed: list[tuple[psycopg.Cursor[Any], int, KreaBatchError | None]] = []  # not checked yet
        self._writer_no = 0
        self._commit_no = 0  # of the last transaction that is known to be committed
        self._is_unanswered = False  # whether COMMIT was sent for the next one

    @classmethod
    def open(cls, path: Path, address: LedgerAddress, *, read_only: bool = False) -> PostgresLedger:
        """Connect to the database; create the batch unless `read_only`.

        Raises RunDirError if that is not possible, or if the server may forget commits.
        """
        store = cls(path, address, read_only=read_only)
        try:
            if read_only:
                store._require_version()
            else:
                store._create()
        except psycopg.Error as error:
            store.close()
            raise RunDirError(
                path, f"cannot open the ledger ({describe(error)})", "check the url, PGPASSWORD, and the database"
            ) from error
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def exists(cls, path: Path, address: LedgerAddress) -> bool:
        """Return whether the database has the batch. Raises RunDirError as `open` does."""
        store = cls(path, address, read_only=True)
        try:
            with store._transaction(_READ):
                return store._find_version() is not None
        except psycopg.Error as error:
            problem = f"cannot open the ledger ({describe(error)})"
            raise RunDirError(path, problem, "check the url, PGPASSWORD, and the database") from error
        finally:
            store.close()

    @classmethod
    def inspect(cls, path: Path, address: LedgerAddress) -> ServerReport:
        """Return what was found about a server, as `open` checks it. Raises RunDirError if it cannot be reached."""
        exists = cls.exists(path, address)
        store = cls(path, address, read_only=True)
        try:
            settings = read_settings(store._connect())
        except psycopg.Error as error:
            raise RunDirError(path, f"cannot open the ledger ({describe(error)})", "check the database") from error
        finally:
            store.close()
        return ServerReport(str(settings), find_danger(settings), find_risk(settings), batch_exists=exists)

    @classmethod
    def snapshot(cls, path: Path, address: LedgerAddress) -> PostgresLedger:
        """Open the batch for reading, as it is now, whatever is written to it later. Raises as `open` does."""
        store = cls.open(path, address, read_only=True)
        try:
            with store._errors():
                store._begin(_READ, idle_timeout_s=0)
                store._in_transaction = True
                store._row("SELECT max(job_no) FROM jobs")  # takes the snapshot
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None or connection.closed:
            return
        with suppress(psycopg.Error):
            if self._writer_no:
                connection.execute(
                    SQL("DELETE FROM {}.writers WHERE writer_no = %s").format(Identifier(self._address.schema)),
                    (self._writer_no,),
                )
        connection.close()

    # ---- transactions ------------------------------------------------------------------------------------

    def read(self, *queries: Callable[[Self], Any]) -> list[Any]:
        with self._errors():
            if self._in_transaction:
                return [query(self) for query in queries]
            with self._transaction(_READ):
                return [query(self) for query in queries]

    def transaction(self, operation: Callable[[Self], T]) -> T:
        if self._read_only:
            raise InternalError(f"{self.path}: the ledger was opened for reading")
        results: list[T] = []  # of a transaction for which COMMIT was sent

        def attempt() -> T:
            if self._is_unanswered and self._was_committed() and results:
                return results[0]
            results.clear()
            return self._attempt(operation, results)

        try:
            return wait_while(
                self.path, _passing_problem, attempt, self._away_error, pauses_per_attempt=RECONNECT_PAUSES
            )
        except psycopg.Error as error:
            problem = f"cannot write the ledger ({describe(error)})"
            raise LedgerError(self.path, problem, "check the database, then run again to resume") from error

    def maintain(self) -> None:
        """Do nothing: autovacuum does."""

    def clock_s(self) -> float:
        """Return the instant of the server, since the processes may be on several machines."""
        (instant_s,) = self._row("SELECT extract(epoch FROM clock_timestamp())::double precision")
        return float(instant_s)

    def _attempt(self, operation: Callable[[Self], T], results: list[T]) -> T:
        """Apply an operation in a transaction, and append its result to `results` before the commit."""
        with self._transaction(_WRITE) as connection:
            self._lock()
            counted = connection.execute(
                "UPDATE writers SET commit_no = commit_no + 1 WHERE writer_no = %s RETURNING commit_no",
                (self._writer_no,),
            )
            result = self._apply(operation)
            self._finish()
            self._require_commit_no(counted.fetchone(), self._commit_no + 1)
            results.append(result)
            self._is_unanswered = True
            connection.execute("COMMIT")
        self._is_unanswered = False
        self._commit_no += 1
        return result

    def _was_committed(self) -> bool:
        """Return whether the transaction after the last known one was committed. It has ended when this returns."""
        with self._transaction(_WRITE) as connection:
            self._lock()
            if self._run_no is not None:
                self._beat(self._run_no)
            found = connection.execute(
                "UPDATE writers SET commit_no = commit_no WHERE writer_no = %s RETURNING commit_no",
                (self._writer_no,),
            )
            self._finish()
            (commit_no,) = found.fetchone() or (-1,)
            is_committed = bool(commit_no == self._commit_no + 1)
            self._require_commit_no((commit_no,), self._commit_no + is_committed)
            connection.execute("COMMIT")
        self._commit_no = commit_no
        self._is_unanswered = False
        return is_committed

    def _require_commit_no(self, row: tuple[int] | None, commit_no: int) -> None:
        if row != (commit_no,):
            raise LedgerError(
                self.path,
                "the database has forgotten transactions that it had confirmed, so jobs could be paid for twice",
                "find out whether a backup was restored or a standby took over, and compare with results.jsonl",
            )

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[psycopg.Connection[Any]]:
        """Begin a transaction in a pipeline. Unless it is committed within, it is rolled back."""
        connection = self._connect()
        self._executed = []
        self._in_transaction = True
        try:
            with connection.pipeline():
                self._begin(begin)
                yield connection
        except psycopg.Error as error:
            if is_passing(error):
                connection.close()
            raise
        finally:
            self._in_transaction = False
            if not connection.closed and connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                with suppress(psycopg.Error):  # then the connection is lost, and the transaction with it
                    connection.execute("ROLLBACK")

    def _begin(self, begin: str, idle_timeout_s: int = IDLE_TIMEOUT_S) -> None:
        connection = self._connect()
        connection.execute(begin)
        connection.execute(
            "SELECT set_config('search_path', %s, true), set_config('statement_timeout', %s, true),"
            " set_config('idle_in_transaction_session_timeout', %s, true)",
            (f'"{self._address.schema}"', f"{STATEMENT_TIMEOUT_S}s", f"{idle_timeout_s}s"),
        )

    def _lock(self) -> None:
        """Wait until no other transaction of the batch is open."""
        self._connect().execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK_CLASS, self._address.schema))

    def _finish(self) -> None:
        """Wait for all statements, and raise the error of the first one that failed or changed too few rows."""
        if self._executed:
            # The statements are executed in order, so the answer of the last one is the last to arrive.
            self._connect().execute("SELECT 1").fetchone()
            self._check_executed()

    def _check_executed(self) -> None:
        executed, self._executed = self._executed, []
        for cursor, expected, otherwise in executed:
            if otherwise and cursor.rowcount != expected:
                raise otherwise

    def _connect(self) -> psycopg.Connection[Any]:
        """Return the connection; connect if it is lost. The server may then be another one than before."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._address, read_only=self._read_only)
            if not self._read_only:
                self._require_durability(self._connection)
        return self._connection

    def _require_durability(self, connection: psycopg.Connection[Any]) -> None:
        settings = read_settings(connection)
        if danger := find_danger(settings):
            raise RunDirError(self.path, *danger) if not self._writer_no else LedgerError(self.path, *danger)
        if risk := find_risk(settings):
            log.warning("! ledger at risk path=%s: %s", self.path, risk)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise LedgerError for an error of PostgreSQL."""
        try:
            yield
        except psycopg.Error as error:
            problem = f"cannot read the ledger ({describe(error)})"
            raise LedgerError(self.path, problem, "check the database") from error

    def _away_error(self, duration: str) -> LedgerError:
        return LedgerError(
            self.path, f"the database has been unavailable {duration}", "start the database, then run again to resume"
        )

    # ---- the schema --------------------------------------------------------------------------------------

    def _create(self) -> None:
        """Create the tables of the batch if there are none, and a row for this process."""
        schema = Identifier(self._address.schema)
        with self._transaction(_WRITE) as connection:
            self._lock()
            if self._find_version() is None:
                if self._row("SELECT to_regnamespace(?)", (f'"{self._address.schema}"',)) == (None,):
                    connection.execute(SQL("CREATE SCHEMA {}").format(schema))
                for statement in read_schema("krea_batch.ledger.postgres").split(";\n"):
                    if statement.strip():
                        connection.execute(statement.encode())
            connection.execute("COMMIT")
        self._require_version()
        with self._transaction(_WRITE) as connection:
            (self._writer_no,) = self._row("INSERT INTO writers DEFAULT VALUES RETURNING writer_no")
            connection.execute("COMMIT")

    def _require_version(self) -> None:
        with self._transaction(_READ):
            version = self._find_version()
        if version is None:
            raise RunDirError(
                self.path,
                f"the database has no batch {self._address.batch!r} (schema {self._address.schema})",
                "check url and batch",
            )
        if version > SCHEMA_VERSION:
            problem = f"written by a newer krea-batch (schema {version})"
            raise RunDirError(self.path, problem, "update krea-batch, or use another batch")
        if version < SCHEMA_VERSION:
            problem = f"written by a krea-batch from before the first release (schema {version})"
            raise RunDirError(self.path, problem, "use that version, or another batch")

    def _find_version(self) -> int | None:
        """Return the version of the tables; None if there are none."""
        if self._row("SELECT to_regclass('ledger_version')") == (None,):
            return None
        (version,) = self._row("SELECT version FROM ledger_version")
        return int(version)

    # ---- statements --------------------------------------------------------------------------------------

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if not self._in_transaction:
            rows: list[tuple[Any, ...]] = self.read(lambda store: store._rows(sql, values))[0]
            return rows
        found = self._connect().execute(_with_percent(sql), _storable(values)).fetchall()
        self._check_executed()
        return found

    def _execute(self, sql: str, values: Sequence[Any] = (), *, otherwise: KreaBatchError | None = None) -> None:
        cursor = self._connect().execute(_with_percent(sql), _storable(values))
        self._executed.append((cursor, 1, otherwise))

    def _execute_rows(self, sql: str, rows: Sequence[tuple[Any, ...]], *, otherwise: KreaBatchError) -> None:
        if rows:
            cursor = self._connect().execute(*_for_rows(sql, rows))
            self._executed.append((cursor, len(rows), otherwise))

    def _fetch_rows(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        if not rows:
            return []
        found = self._connect().execute(*_for_rows(sql, rows)).fetchall()
        self._check_executed()
        return found

    def _write_intents(self, intents: Sequence[Intent]) -> dict[str, int]:
        # New jobs come first, so that jobs that are pending, and have their numbers, leave no gaps.
        rows = [(*intent, self._run_no or 0, position) for position, intent in enumerate(intents)]
        return dict(
            self._fetch_rows(
                "WITH intents AS (SELECT * FROM {rows}), written AS ("
                "INSERT INTO jobs (job_no, job_id, state, body, fingerprint, metadata, submitted_at, tenant,"
                " image_name, attempts, run_no)"
                " SELECT (SELECT coalesce(max(job_no), 0) FROM jobs) + row_number() OVER"
                " (ORDER BY EXISTS (SELECT 1 FROM jobs WHERE job_id = column1), column9),"
                f" column1, '{_SUBMITTING}', column2, column3, column4, column5, column6, nullif(column7, ''), 1,"
                " nullif(column8, 0) FROM intents"
                f" ON CONFLICT (job_id) DO UPDATE SET state = '{_SUBMITTING}', attempts = jobs.attempts + 1,"
                " submitted_at = excluded.submitted_at"
                f" WHERE jobs.state = '{_PENDING}' AND jobs.fingerprint = excluded.fingerprint"
                " RETURNING job_id, job_no"
                "), recorded AS ("
                "INSERT INTO submissions (submission_no, job_no, sent_at, run_no)"
                " SELECT (SELECT coalesce(max(submission_no), 0) FROM submissions) + row_number() OVER"
                " (ORDER BY column9), job_no, column5, nullif(column8, 0)"
                " FROM written JOIN intents ON job_id = column1"
                ") SELECT job_id, job_no FROM written",
                rows,
            )
        )


def _passing_problem(error: Exception) -> str:
    return f"in a database that is away ({describe(error)})" if is_passing(error) else ""


_ARRAYS = {bytes: "bytea[]", float: "double precision[]", int: "bigint[]", str: "text[]"}


def _for_rows(sql: str, rows: Sequence[tuple[Any, ...]]) -> tuple[bytes, list[list[Any]]]:
    """Return a statement for many rows, and its values: one array for each column."""
    types = tuple(_ARRAYS[type(value)] for value in rows[0])
    return _rows_sql(sql, types), [list(_storable(column)) for column in zip(*rows, strict=True)]


@lru_cache(maxsize=64)
def _rows_sql(sql: str, types: tuple[str, ...]) -> bytes:
    arrays = ", ".join(f"%b::{each}" for each in types)  # as text, psycopg quotes each value by a regular expression
    columns = ", ".join(f"column{n}" for n in range(1, len(types) + 1))
    return sql.format(rows=f"unnest({arrays}) AS rows ({columns})").encode()


@lru_cache(maxsize=512)
def _with_percent(sql: str) -> bytes:
    """Return a statement with the placeholders of psycopg."""
    return sql.replace("?", "%s").encode()


def _storable(values: Sequence[Any]) -> Sequence[Any]:
    """Return values without NUL characters in texts: PostgreSQL has none. The message of a gateway may have some."""
    if any(isinstance(value, str) and "\0" in value for value in values):
        return [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values]
    return values
