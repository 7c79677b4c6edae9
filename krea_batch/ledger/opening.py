"""Opens the ledger of a run directory."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from pathlib import Path

from krea_batch.ledger.protocol import Ledger, LedgerReader
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.sqlite.database import wal_of
from krea_batch.storage.run_dir import LEDGER, file_size


def open_for_changes(out: Path) -> Ledger:
    """Open the ledger of a run directory, which is locked; create it if there is none. Raises RunDirError."""
    return SqliteLedger.open(out / LEDGER)


def read_ledger(out: Path) -> AbstractContextManager[LedgerReader]:
    """Open the ledger of a run directory for reading, until the context is left. Raises RunDirError."""
    return closing(SqliteLedger.open(out / LEDGER, read_only=True))


def read_if_any(out: Path) -> AbstractContextManager[LedgerReader]:
    """Open the ledger for reading as `read_ledger` does, or an empty one if there is no ledger yet."""
    path = out / LEDGER
    if not path.exists() and not file_size(wal_of(path)):
        return closing(SqliteLedger.empty(path))
    return read_ledger(out)


def snapshot_ledger(out: Path) -> LedgerReader:
    """Open a snapshot of the ledger, without what is written to it later. Raises RunDirError, LedgerError."""
    return SqliteLedger.snapshot(out / LEDGER)
