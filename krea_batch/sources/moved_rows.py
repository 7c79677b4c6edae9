"""Gives the rows of an edited file the ids under which their requests were submitted.

The id of a row without one is its number, so inserting or removing a line shifts the numbers of all rows after it.
The ledger has the paid jobs under the old numbers. The rules, in this order:

1. A row whose number has the same request in the ledger keeps it.
2. A row whose request is in the ledger under a number that no other row has by now takes this number. Of several
   equal requests, the first row takes the lowest number.
3. A row whose number is not in the ledger keeps it.
4. All other rows are new, and get the next free numbers: above those of all rows, all ids and the ledger.

If the ledger has a request under the number of a new row, and no row has this request any more, the row may have been
changed rather than inserted. Such rows are reported and get no number, unless the caller asks for it.

The result depends only on the files and the ledger. A run that was killed finds the new rows that it recorded by rule
2, so nothing is submitted twice.
"""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

import msgspec

from krea_batch.errors import InputError
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources.duplicate_ids import default_id

_MAX_DIGITS = 18  # chosen: fits into an integer of SQLite

_TABLES = """
CREATE TABLE recorded (number INTEGER PRIMARY KEY, request BLOB, claimed INTEGER DEFAULT 0);
CREATE TABLE unassigned (number INTEGER PRIMARY KEY, request BLOB);
CREATE TABLE assigned (number INTEGER PRIMARY KEY, id_number INTEGER);
"""
_ASSIGN_SAME_NUMBER = """
CREATE TABLE same AS SELECT number FROM unassigned JOIN recorded USING (number, request);
UPDATE recorded SET claimed = 1 WHERE number IN (SELECT number FROM same);
DELETE FROM unassigned WHERE number IN (SELECT number FROM same);
"""
_ASSIGN_SAME_REQUEST = """
INSERT INTO assigned
WITH rows AS (SELECT number, request, row_number() OVER (PARTITION BY request ORDER BY number) AS n FROM unassigned),
     free AS (SELECT number, request, row_number() OVER (PARTITION BY request ORDER BY number) AS n FROM recorded
              WHERE NOT claimed)
SELECT rows.number, free.number FROM rows JOIN free USING (request, n);
UPDATE recorded SET claimed = 1 WHERE number IN (SELECT id_number FROM assigned);
DELETE FROM unassigned WHERE number IN (SELECT number FROM assigned);
"""


class RecordedJobs(msgspec.Struct, frozen=True):
    """What the ledger has: the `count` of all jobs, and the ids that are numbers, each with its fingerprint."""

    count: int
    numbered: Callable[[], Iterator[tuple[str, bytes]]]


class RowIds(msgspec.Struct, frozen=True):
    """The rows whose id is not their own number: sorted `rows`, and their `id_numbers` at the same index.

    The requests of the first `kept` of all these are in the ledger. `changed` rows may have been changed.
    """

    rows: Sequence[int] = ()
    id_numbers: Sequence[int] = ()
    kept: int = 0
    changed: Sequence[int] = ()

    def id_of(self, number: int) -> str:
        """Return the id of the row with this number, which has none in the file."""
        if self.rows:
            index = bisect_left(self.rows, number)
            if index < len(self.rows) and self.rows[index] == number:
                return default_id(self.id_numbers[index])
        return default_id(number)


def assign_ids(
    rows: Iterable[tuple[int, Sequence[Job]]], recorded: RecordedJobs, *, submit_changed: bool = False
) -> RowIds:
    """Return the ids of the rows without one, by the rules of this module, in 16 bytes per row.

    Raises InputError if the temporary file cannot be written.
    """
    try:
        return _assign_ids(rows, recorded, submit_changed=submit_changed)
    except sqlite3.OperationalError as error:
        problem = f"cannot write the ids of rows to a temporary file ({error})"
        raise InputError(problem, "set TMPDIR to a directory with free space") from error


def _assign_ids(rows: Iterable[tuple[int, Sequence[Job]]], recorded: RecordedJobs, *, submit_changed: bool) -> RowIds:
    with closing(sqlite3.connect("", isolation_level=None)) as database:  # in a temporary file
        database.executescript(_TABLES)
        database.execute("BEGIN")
        numbered = ((number_of(job_id), request) for job_id, request in recorded.numbered())
        database.executemany(
            "INSERT INTO recorded (number, request) VALUES (?, ?)", (each for each in numbered if each[0] is not None)
        )
        last_number = _add_rows(database, rows)
        (last_recorded,) = database.execute("SELECT coalesce(max(number), 0) FROM recorded").fetchone()
        for statements in (_ASSIGN_SAME_NUMBER, _ASSIGN_SAME_REQUEST):
            for statement in statements.split(";")[:-1]:
                database.execute(statement)
        (kept,) = database.execute("SELECT count(*) FROM assigned").fetchone()
        changed = array("q")
        if not submit_changed:
            sql = "SELECT number FROM unassigned JOIN recorded USING (number) WHERE NOT claimed ORDER BY number"
            changed.extend(number for (number,) in database.execute(sql))
            database.execute("DELETE FROM unassigned WHERE number IN (SELECT number FROM recorded WHERE NOT claimed)")
        database.execute(
            "INSERT INTO assigned SELECT number, ? + row_number() OVER (ORDER BY number) FROM unassigned"
            " JOIN recorded USING (number)",
            (max(last_number, last_recorded),),
        )
        numbers, id_numbers = array("q"), array("q")
        for number, id_number in database.execute("SELECT number, id_number FROM assigned ORDER BY number"):
            numbers.append(number)
            id_numbers.append(id_number)
    return RowIds(numbers, id_numbers, kept, changed)


def number_of(job_id: str) -> int | None:
    """Return the number of the row that would have this id by default; None if no row would."""
    if job_id.isascii() and job_id.isdigit() and len(job_id) <= _MAX_DIGITS and default_id(int(job_id)) == job_id:
        return int(job_id)
    return None


def _add_rows(database: sqlite3.Connection, rows: Iterable[tuple[int, Sequence[Job]]]) -> int:
    """Add the rows without an id, and claim the ids of the others. Return the highest number of both."""
    last_number = 0
    for number, jobs in rows:
        last_number = max(last_number, number)
        for job in jobs:
            if not job.id:
                database.execute("INSERT INTO unassigned VALUES (?, ?)", (number, wire.fingerprint(job)))
            elif (id_number := number_of(job.id)) is not None:
                database.execute("UPDATE recorded SET claimed = 1 WHERE number = ?", (id_number,))
                last_number = max(last_number, id_number)
    return last_number
