"""Opens the ledger of a run directory: a file in it, or a batch in the database that its `ledger.toml` names."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING

from krea_batch.errors import RunDirError
from krea_batch.ledger.postgres.ledger_address import LedgerAddress, read_address, write_address
from krea_batch.ledger.protocol import Ledger, LedgerReader
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.sqlite.database import wal_of
from krea_batch.settings import Settings
from krea_batch.storage.run_dir import LEDGER, LEDGER_ADDRESS, file_size

if TYPE_CHECKING:
    from krea_batch.ledger.postgres.postgres_ledger import PostgresLedger, ServerReport


def open_for_changes(out: Path) -> Ledger:
    """Open the ledger of a run directory, which is locked; create it if there is none. Raises RunDirError."""
    if address := read_address(out):
        return _postgres_ledger(out).open(out / LEDGER_ADDRESS, address)
    return SqliteLedger.open(out / LEDGER)


def is_in_database(out: Path) -> bool:
    """Return whether the ledger of a run directory is in a database, which other machines can use as well."""
    return (out / LEDGER_ADDRESS).exists()


def bind_database(settings: Settings, *, batch_exists: bool = False) -> None:
    """Write where the ledger is into the run directory, if `settings.ledger` says it; or check that it is the same.

    It is written only if the database can be reached, and, with `batch_exists`, has the batch: a name that is
    mistyped would otherwise start a run from nothing, and pay for its jobs again. Raises RunDirError. Blocks.
    """
    if settings.ledger is None:
        return
    out, path = settings.out, settings.out / LEDGER_ADDRESS
    if recorded := read_address(out):
        if (recorded.url, settings.batch or recorded.batch) != (settings.ledger, recorded.batch):
            given = f"not {settings.ledger}" + (f" and batch {settings.batch!r}" if settings.batch else "")
            raise RunDirError(
                path,
                f"its ledger is at {recorded.url}, batch {recorded.batch!r}, {given}",
                f"use another run directory; if the database has moved, correct {LEDGER_ADDRESS}",
            )
        return
    address = LedgerAddress(settings.ledger, settings.batch_name)
    exists = _postgres_ledger(out).exists(path, address)
    if batch_exists and not exists:
        problem = f"{settings.ledger} has no batch {address.batch!r}"
        raise RunDirError(out, problem, "check --batch, or start the run first, with krea-batch run")
    write_address(out, address)


def inspect_database(settings: Settings) -> tuple[LedgerAddress, ServerReport] | None:
    """Return where a run would have its ledger, and what its server is like; None if it is in the run directory.

    Nothing is written. Raises RunDirError, also if the server cannot be reached. Blocks.
    """
    address = read_address(settings.out)
    if settings.ledger and address is None:
        address = LedgerAddress(settings.ledger, settings.batch_name)
    if address is None:
        return None
    return address, _postgres_ledger(settings.out).inspect(settings.out / LEDGER_ADDRESS, address)


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
