"""Waits while a ledger cannot be used for a time: another program has locked it, or the database is away.

That is not a failure of the disk, and it ends at some time. If the run gave up, it would end with paid jobs in
flight. So it waits for up to MAX_WAIT_S, and logs what it waits for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from krea_batch.errors import LedgerError

T = TypeVar("T")
log = logging.getLogger("krea_batch")

MAX_WAIT_S = 900.0  # chosen: copying a ledger of a million jobs takes seconds; a person closes a browser in minutes
LOG_INTERVAL_S = 30.0  # chosen: a line in the log while it waits
PAUSE_S = 0.05  # chosen: SQLite itself waits in each attempt, except where it sees that waiting is useless


def wait_while(
    path: Path,
    problem: Callable[[Exception], str],
    work: Callable[[], T],
    too_long: Callable[[str], LedgerError],
    *,
    pauses_per_attempt: int = 1,
) -> T:
    """Return the result of `work`, which is repeated as a whole while the ledger cannot be used.

    `work` must leave nothing behind when it raises. `problem` describes an error after which `work` is repeated; any
    other error, for which it returns "", is raised. Raises `too_long` with a duration after MAX_WAIT_S. Blocks.
    """
    started_s = time.monotonic()
    next_log_s = started_s
    while True:
        try:
            return work()
        except Exception as error:
            what = problem(error)
            if not what:
                raise
            now_s = time.monotonic()
            if now_s - started_s >= MAX_WAIT_S:
                raise too_long(f"for {MAX_WAIT_S / 60:.0f} minutes") from error
        if now_s >= next_log_s:
            next_log_s = now_s + LOG_INTERVAL_S
            log.warning("! ledger %s, waiting path=%s waited_s=%.0f", what, path, now_s - started_s)
        time.sleep(PAUSE_S * pauses_per_attempt)
