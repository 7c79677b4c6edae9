"""Waits while another program has locked the ledger: a backup, a database browser.

A lock is not a failure of the disk, and it ends at some time. If the run gave up, it would end with paid jobs in
flight. So it waits for up to MAX_LOCKED_S, and logs what it waits for.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from krea_batch.errors import LedgerError

T = TypeVar("T")
log = logging.getLogger("krea_batch")

MAX_LOCKED_S = 900.0  # chosen: copying a ledger of a million jobs takes seconds; a person closes a browser in minutes
LOG_INTERVAL_S = 30.0  # chosen: a line in the log while it is locked
PAUSE_S = 0.05  # chosen: SQLite itself waits in each attempt, except where it sees that waiting is useless


def wait_while_busy(path: Path, work: Callable[[], T]) -> T:
    """Return the result of `work`, which is repeated as a whole while the ledger is locked.

    `work` must leave nothing behind when it raises. Raises LedgerError after MAX_LOCKED_S. Blocks.
    """
    started_s = time.monotonic()
    next_log_s = started_s
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            now_s = time.monotonic()
            if now_s - started_s >= MAX_LOCKED_S:
                raise locked_error(path, f"for {MAX_LOCKED_S / 60:.0f} minutes") from error
        if now_s >= next_log_s:
            next_log_s = now_s + LOG_INTERVAL_S
            log.warning("! ledger locked by another program, waiting path=%s waited_s=%.0f", path, now_s - started_s)
        time.sleep(PAUSE_S)


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
