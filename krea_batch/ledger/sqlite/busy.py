"""Waits while another program has locked the file: a backup, a database browser."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from krea_batch.errors import LedgerError
from krea_batch.ledger.waiting import wait_while

T = TypeVar("T")


def wait_while_busy(path: Path, work: Callable[[], T]) -> T:
    """Return the result of `work`, which is repeated as a whole while the file is locked; see `wait_while`."""
    return wait_while(path, _problem, work, partial(locked_error, path))


def _problem(error: Exception) -> str:
    return "locked by another program" if isinstance(error, sqlite3.OperationalError) and is_busy(error) else ""


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another connection has a lock that this one needs."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY  # the higher bits say why


def locked_error(path: Path, duration: str = "") -> LedgerError:
    """Return the error for a ledger that stays locked."""
    return LedgerError(
        path,
        f"another program has locked the ledger {duration}".rstrip(),
        "close the program that has it open (a backup, a database browser), then run again to resume",
    )
