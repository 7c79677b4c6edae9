"""Opens or creates the SQLite file of a ledger, and checks that it is one.

The file has the prompts and the secret of the callback URLs, so only its owner may read it. SQLite gives the `-wal`
and `-shm` files beside it the same mode.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from krea_batch.errors import RunDirError
from krea_batch.ledger.sql_queries import read_schema
from krea_batch.ledger.sqlite.busy import is_busy, locked_error, wait_while_busy
from krea_batch.storage.atomic import open_file
from krea_batch.storage.operating_system import is_read_only, make_private
from krea_batch.storage.os_errors import next_step
from krea_batch.storage.run_dir import file_size, is_locked

APPLICATION_ID = 0x4B524541  # "KREA"
SCHEMA_VERSION = 11
SQLITE_VERSION = sqlite3.sqlite_version
BUSY_TIMEOUT_S = 10.0  # chosen: read locks of other processes, such as `status`, are much shorter
BUSY_ATTEMPT_S = 1.0  # chosen: how long SQLite waits for a lock by itself; then `wait_while_busy` does
WAL_LIMIT_BYTES = 4 << 20  # SQLite's own limit for checkpoints (1,000 pages); the file is cut to it when it is reused
CACHE_KIB = 16_384  # measured: with the default of 2 MB, a job of 100,000 costs 1.3 times as much as one of 3,000
MAX_CACHED_STATEMENTS = 512  # chosen: statements for several rows exist in several sizes


def open_database(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the file; create it unless `read_only`.

    With `read_only`, the file may be on a disk, or in a directory, that cannot be written. Raises RunDirError for a
    foreign or newer file, for one that cannot be created, and for a missing one beside a WAL; LedgerError if another
    program has locked the file for long; other errors of sqlite3.
    """
    _require_file_of_wal(path)
    if not read_only:
        _create_private(path)
        return wait_while_busy(path, lambda: _open_existing(path))
    try:
        return _for_reading(_connect_to_read(path))
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise locked_error(path) from error
        raise


def _open_existing(path: Path) -> sqlite3.Connection:
    connection = _connect(path, "mode=rw")
    try:
        _initialize(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def empty_database() -> sqlite3.Connection:
    """Return a ledger in memory, without jobs."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _create_tables(connection)
    return connection


def wal_of(path: Path) -> Path:
    """Return the write-ahead log of a ledger."""
    return path.with_name(f"{path.name}-wal")


def _require_file_of_wal(path: Path) -> None:
    """Raise RunDirError if there is a WAL without the file it belongs to: SQLite would delete the WAL."""
    if not file_size(path) and file_size(wal_of(path)):
        raise RunDirError(
            path,
            f"the file is missing or empty, but {wal_of(path).name} has transactions of it",
            f"copy the {path.name} of this run back, or move {wal_of(path).name} away",
        )


def _create_private(path: Path) -> None:
    """Create the file for its owner only, unless it exists: SQLite would let everyone read it."""
    try:
        fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        problem = f"cannot create the ledger ({error.strerror})"
        raise RunDirError(path, problem, "use another run directory") from error
    try:
        make_private(fd)  # whatever the umask is
    finally:
        os.close(fd)


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect in a mode that works in a read-only directory (SQLite, Write-Ahead Logging, Read-Only Databases)."""
    try:
        return _connect(path, "mode=rw")  # Where it is possible, "ro" would leave WAL files behind.
    except sqlite3.OperationalError as error:
        if not _is_not_writable(error):
            raise
    try:
        return _connect(path, "mode=ro")  # needs the files of a WAL
    except sqlite3.OperationalError as error:
        if not _is_not_writable(error) or is_locked(path.parent):
            raise
    wal = wal_of(path)
    if file_size(wal):  # "immutable" would ignore it, and the jobs that only it has.
        problem = f"{wal.name} cannot be read, because the directory cannot be written"
        raise RunDirError(path, problem, f"copy {path.name} and {wal.name} to a writable directory and look there")
    return _connect(path, "mode=ro&immutable=1")


def _is_not_writable(error: sqlite3.Error) -> bool:
    name = str(getattr(error, "sqlite_errorname", ""))
    return name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))


def _connect(path: Path, query: str) -> sqlite3.Connection:
    """Open the file and read its header. Raises sqlite3.Error, and RunDirError for a foreign or newer file."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=MAX_CACHED_STATEMENTS,
    )
    try:
        _check_owner(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


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
        connection = empty_database()
    connection.execute("PRAGMA query_only = ON")
    return connection


def _has_tables(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])


def _initialize(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    # Only on macOS, as `storage.operating_system.full_sync`; elsewhere without effect.
    connection.execute("PRAGMA fullfsync = ON")
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("BEGIN")
    connection.execute("PRAGMA user_version = 0")  # fail now: SQLite opens files that it cannot write
    connection.execute("ROLLBACK")
    _create_tables(connection)
    connection.execute(f"PRAGMA busy_timeout = {round(BUSY_ATTEMPT_S * 1000)}")


def _create_tables(connection: sqlite3.Connection) -> None:
    if _has_tables(connection):
        return
    schema = read_schema("krea_batch.ledger.sqlite")
    connection.executescript(
        f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};{schema} COMMIT;"
    )


def open_error(path: Path, error: sqlite3.Error) -> RunDirError:
    """Return the error for a ledger that cannot be opened. The operating system knows the cause that SQLite hides."""
    problem, step = f"cannot open the ledger ({error})", next_step_of(error)
    if _is_not_writable(error) and (denied := _find_denied(path)):
        file, verb, number = denied
        problem, step = f"cannot {verb} {file} ({os.strerror(number)})", next_step(OSError(number, ""))
    return RunDirError(path, problem, f"{step}, or use another run directory")


def _find_denied(path: Path) -> tuple[Path, str, int] | None:
    """Return the first file of the ledger that may not be read or written, which of both, and the errno for it."""
    for needed, verb in ((os.R_OK, "read"), (os.W_OK, "write")):
        for file in (path.parent, path, wal_of(path), path.with_name(f"{path.name}-shm")):
            if file.exists() and not os.access(file, needed):
                is_read_only_disk = needed == os.W_OK and is_read_only(file)
                return file, verb, errno.EROFS if is_read_only_disk else errno.EACCES
    return None


def next_step_of(error: sqlite3.Error | OSError) -> str:
    """Return what a user can do about an error of the ledger, as `storage.os_errors.next_step`."""
    if isinstance(error, OSError):
        return next_step(error)
    name = str(getattr(error, "sqlite_errorname", ""))  # the errors of the sqlite3 module itself have none
    return next((step for prefix, step in _NEXT_STEPS.items() if name.startswith(prefix)), "check the disk")


_NEXT_STEPS = {
    "SQLITE_FULL": "free some disk space",
    "SQLITE_CANTOPEN": "check the permissions of the run directory and the limit of open files (ulimit -n)",
    "SQLITE_READONLY": "check the permissions of the run directory",
    "SQLITE_PERM": "check the permissions of the run directory",
    "SQLITE_BUSY": "close the other program that uses the ledger",
    "SQLITE_LOCKED": "close the other program that uses the ledger",
    "SQLITE_NOTADB": "restore the ledger from a copy",
    "SQLITE_CORRUPT": "restore the ledger from a copy",
}
"""What to do, by the beginning of the name of an SQLite result code (SQLite, Result and Error Codes)."""
