"""Opens the ledger of a run directory: a file in it, or a batch in the database that its `ledger.toml` names."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING

from krea_batch.errors import RunDirError
from krea_batch.ledger.postgres.ledger_address import read_address
from krea_batch.ledger.protocol import Ledger, LedgerReader
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.sqlite.database import wal_of
from krea_batch.storage.run_dir import LEDGER, LEDGER_ADDRESS, file_size

if TYPE_CHECKING:
    from krea_batch.ledger.postgres.postgres_ledger import PostgresLedger


def open_for_changes(out: Path) -> Ledger:
    """Open the ledger of a run directory, which is locked; create it if there is none. Raises RunDirError."""
    if address := read_address(out):
        return _postgres_ledger(out).open(out / LEDGER_ADDRESS, address)
    return SqliteLedger.open(out / LEDGER)


def is_in_database(out: Path) -> bool:
    """Return whether the ledger of a run directory is in a database, which other machines can use as well."""
    return (out / LEDGER_ADDRESS).exists()


def read_ledger(out: Path) -> AbstractContextManager[LedgerReader]:
    """Open the ledger of a run directory for reading, until the context is left. Raises RunDirError.

    It is empty if the database has no such batch yet.
    """
    if address := read_address(out):
        kind, path = _postgres_ledger(out), out / LEDGER_ADDRESS
        exists = kind.exists(path, address)
        return closing(kind.open(path, address, read_only=True) if exists else SqliteLedger.empty(path))
    return closing(SqliteLedger.open(out / LEDGER, read_only=True))


def read_if_any(out: Path) -> AbstractContextManager[LedgerReader]:
    """Open the ledger for reading as `read_ledger` does, or an empty one if there is no ledger yet."""
    path = out / LEDGER
    if not path.exists() and not file_size(wal_of(path)) and not (out / LEDGER_ADDRESS).exists():
        return closing(SqliteLedger.empty(path))
    return read_ledger(out)


def snapshot_ledger(out: Path) -> LedgerReader:
    """Open a snapshot of the ledger, without what is written to it later. Raises RunDirError, LedgerError."""
    if address := read_address(out):
        kind, path = _postgres_ledger(out), out / LEDGER_ADDRESS
        return kind.snapshot(path, address) if kind.exists(path, address) else SqliteLedger.empty(path)
    return SqliteLedger.snapshot(out / LEDGER)


def _postgres_ledger(out: Path) -> type[PostgresLedger]:
    """Import what needs the extra. Raises RunDirError if it is not installed."""
    try:
        from krea_batch.ledger.postgres.postgres_ledger import PostgresLedger
    except ImportError as error:
        problem = f"the ledger is in PostgreSQL, which requires psycopg ({error})"
        raise RunDirError(out / LEDGER_ADDRESS, problem, "pip install 'krea-batch[postgres]'") from None
    return PostgresLedger
