"""The durable record of a run. A call returns when what it wrote is durable.

protocol     Ledger and LedgerReader: the transitions of jobs, and read-only questions
sql_ledger   SqlLedger: the transitions of jobs, in the SQL that databases have in common
sql_queries  SqlQueries: read-only questions in it
sqlite       SqliteLedger: the ledger in a file
postgres     PostgresLedger: the ledger in a database
opening      opens the ledger of a run directory
consistency  compares the ledger with results.jsonl and images/ before anything is sent
live_runs    tells whether any process works on a run
adoption     records the request_ids that the ledger could not take when they arrived
waiting      waits while a ledger cannot be used for a time
writer       LedgerWriter: many transitions in one commit, on the ledger's own thread
rows         the types of the rows that are read
paging       iterates over rows in pages
"""

from krea_batch.ledger.consistency import find_known_jobs, open_checked, open_ledger
from krea_batch.ledger.live_runs import RunObserver, beats_of, ended_runs, fence_dead_runs
from krea_batch.ledger.opening import bind_database, inspect_database, is_in_database, read_ledger, snapshot_ledger
from krea_batch.ledger.paging import pages, read_outcomes
from krea_batch.ledger.protocol import Ledger, LedgerReader, NewJob
from krea_batch.ledger.rows import AmbiguousJob, Charges, JobTiming, LiveRun, OpenJob, RunRecord
from krea_batch.ledger.writer import MAX_TRANSACTION_ROWS, LedgerWriter

__all__ = [
    "MAX_TRANSACTION_ROWS",
    "AmbiguousJob",
    "Charges",
    "JobTiming",
    "Ledger",
    "LedgerReader",
    "LedgerWriter",
    "LiveRun",
    "NewJob",
    "OpenJob",
    "RunObserver",
    "RunRecord",
    "beats_of",
    "bind_database",
    "ended_runs",
    "fence_dead_runs",
    "find_known_jobs",
    "inspect_database",
    "is_in_database",
    "open_checked",
    "open_ledger",
    "pages",
    "read_ledger",
    "read_outcomes",
    "snapshot_ledger",
]
