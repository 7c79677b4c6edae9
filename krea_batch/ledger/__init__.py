"""Remembers. A transition of a job comes in; when the call returns, it is on the disk's own platter or flash.

file      the SQLite file, made or opened
rows      what its rows are read as
books     the questions
store     the transitions, one public method each
together  those of one kind, in one statement
group     many transitions, one commit, in the ledger's own thread

Newcomers: SQLite runs in WAL mode with synchronous=FULL, because NORMAL was measured to lose acknowledged
commits when the power goes.
"""

from krea_batch.ledger.database import SQLITE_VERSION
from krea_batch.ledger.paging import pages
from krea_batch.ledger.rows import Charges, Doubt, OpenJob, RunRow, Stay
from krea_batch.ledger.transitions import Store
from krea_batch.ledger.writer import READ_AT_ONCE, Ledger

__all__ = [
    "READ_AT_ONCE",
    "SQLITE_VERSION",
    "Charges",
    "Doubt",
    "Ledger",
    "OpenJob",
    "RunRow",
    "Stay",
    "Store",
    "pages",
]
