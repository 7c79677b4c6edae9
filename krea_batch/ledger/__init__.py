"""The durable record of a run: SQLite in WAL mode. Calls return after fsync.

database     opens or creates the file
busy         waits while another program has locked it
consistency  compares it with results.jsonl and images/ before anything is sent
rebuild      adds jobs of results.jsonl that it does not have
adoption     records the request_ids that it could not take when they arrived
transitions  LedgerStore: one method per transition of a job
queries      LedgerQueries: read-only questions
writer       LedgerWriter: many transitions in one commit, on the ledger's own thread
rows         the values that rows are read as
paging       iterates over rows in pages
schema.sql   the tables

`synchronous` is FULL, because NORMAL was measured to lose acknowledged commits when the power fails.
"""

from krea_batch.ledger.consistency import find_known_jobs, open_checked, open_ledger
from krea_batch.ledger.database import SQLITE_VERSION
from krea_batch.ledger.paging import pages
from krea_batch.ledger.rows import AmbiguousJob, Charges, JobTiming, OpenJob, RunRecord
from krea_batch.ledger.transitions import LedgerStore
from krea_batch.ledger.writer import MAX_TRANSACTION_ROWS, LedgerWriter

__all__ = [
    "MAX_TRANSACTION_ROWS",
    "SQLITE_VERSION",
    "AmbiguousJob",
    "Charges",
    "JobTiming",
    "LedgerStore",
    "LedgerWriter",
    "OpenJob",
    "RunRecord",
    "find_known_jobs",
    "open_checked",
    "open_ledger",
    "pages",
]
