"""The ledger in an SQLite file in WAL mode.

sqlite_ledger  SqliteLedger: the transitions of jobs, and read-only questions
database       opens or creates the file
busy           waits while another program has locked the file
rebuild        adds jobs of results.jsonl that the ledger does not have
schema.sql     the tables

`synchronous` is FULL, because NORMAL was measured to lose acknowledged commits when the power fails.
"""

from krea_batch.ledger.sqlite.database import SQLITE_VERSION
from krea_batch.ledger.sqlite.sqlite_ledger import SqliteLedger

__all__ = ["SQLITE_VERSION", "SqliteLedger"]
