"""Opens or creates the SQLite file of a ledger, and checks that it is one."""

from __future__ import annotations

import sqlite3
from importlib.resources import files
from pathlib import Path

from krea_batch.errors import RunDirError
from krea_batch.jobs import STATES, State

APPLICATION_ID = 0x4B524541  # "KREA"
SCHEMA_VERSION = 4
SQLITE_VERSION = sqlite3.sqlite_version
BUSY_TIMEOUT_S = 10.0  # chosen: read locks of other processes, such as `status`, are much shorter
CACHE_KIB = 16_384  # measured: with the default of 2 MB, a job of 100,000 costs 1.3 times as much as one of 3,000
MAX_CACHED_STATEMENTS = 512  # chosen: statements for several rows exist in several sizes


def open_database(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the file; create it unless `read_only`. Raises RunDirError for a foreign or newer file."""
    connection = _connect(path, "rw" if read_only else "rwc")  # "ro" would leave WAL files behind
    try:
        _check_owner(connection, path)
        if not read_only:
            _initialize(connection)
    except BaseException:
        connection.close()
        raise
    return _for_reading(connection) if read_only else connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=MAX_CACHED_STATEMENTS,
    )


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    has_tables = _has_tables(connection)
    if has_tables and application_id != APPLICATION_ID:
        raise RunDirError(path, "not a krea-batch ledger", "use another run directory")
    if version > SCHEMA_VERSION:
        raise RunDirError(
            path,
            f"written by a newer krea-batch (schema {version})",
            "update krea-batch, or use another run directory",
        )
    if has_tables and version < SCHEMA_VERSION:
        raise RunDirError(
            path,
            f"written by a krea-batch from before the first release (schema {version})",
            "use that version, or another run directory",
        )


def _for_reading(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Return a read-only connection; an empty ledger if a process died while it created this one."""
    if not _has_tables(connection):
        connection.close()
        connection = sqlite3.connect(":memory:", isolation_level=None)
        _create_tables(connection)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _has_tables(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])


def _initialize(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("BEGIN")
    connection.execute("PRAGMA user_version = 0")  # fail now: SQLite opens files that it cannot write
    connection.execute("ROLLBACK")
    _create_tables(connection)


def _create_tables(connection: sqlite3.Connection) -> None:
    if _has_tables(connection):
        return
    connection.executescript(
        f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};{schema()} COMMIT;"
    )


def schema() -> str:
    """Return the statements that create the tables, with the dispositions from the table of states."""
    unsuccessful = ", ".join(f"'{state}'" for state, info in STATES.items() if info.unsuccessful)
    succeeded = f"WHEN state = '{State.SUCCEEDED}' THEN 'succeeded'"
    disposition = f"CASE {succeeded} WHEN state IN ({unsuccessful}) THEN 'unsuccessful' END"
    return files("krea_batch.ledger").joinpath("schema.sql").read_text("utf-8").format(disposition=disposition)
