"""Remembers. A transition of a job comes in; when the call returns, it is on the disk's own platter or flash.

store   the SQL, one public method a transition
group   many transitions, one commit, in the ledger's own thread

Newcomers: SQLite runs in WAL mode with synchronous=FULL, because NORMAL was measured to lose acknowledged
commits when the power goes.
"""

from krea_batch.ledger.group import READ_AT_ONCE, Ledger, pages
from krea_batch.ledger.store import SQLITE_VERSION, Charges, Doubt, OpenJob, RunRow, Stay, Store

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
