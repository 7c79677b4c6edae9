"""One transition of one job comes in; SQL goes out. One public method is one transition is one transaction.

Newcomers: each UPDATE names the state it starts from. When it touches no row, two parts of the engine disagree
about a job, and that is a bug to be shown, not to be written over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from krea_batch.errors import InternalError, RunDirError
from krea_batch.jobs import FINAL, RETRYABLE, ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger.database import open_database
from krea_batch.ledger.queries import OPEN_JOBS, UNSUCCESSFUL, LedgerQueries
from krea_batch.ledger.rows import OUTCOME_COLUMNS, outcome_of
from krea_batch.rules import lifecycle
from krea_batch.rules.verdicts import Finished

T = TypeVar("T")

MAX_ROWS = 64  # chosen: of one statement; more in one make none of them cheaper (measured)
_DISPOSITIONS = {State.SUCCEEDED: "'succeeded'"} | {state: UNSUCCESSFUL for state in State if state.info.unsuccessful}
"""The disposition of the states that no run resumes, as SQL literals."""

Intent = tuple[str, bytes, bytes, bytes, float, str]
"""What `intend` takes."""


class LedgerStore(LedgerQueries):
    """The SQLite file of one run. Not thread-safe: `Ledger` calls it from its one thread."""

    @classmethod
    def snapshot(cls, path: Path) -> LedgerStore:
        """The file as it is now, for reading, whatever is written to it later. Raises as `open`."""
        store = cls.open(path, read_only=True)
        try:
            store._sql.execute("BEGIN")
            store._sql.execute("SELECT max(job_no) FROM jobs").fetchone()  # takes the snapshot
        except sqlite3.Error as error:
            store.close()
            raise store._unreadable(error) from error
        return store

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> LedgerStore:
        """Open the file, making it unless `read_only`. Raises RunFolderError for a stranger's or newer one."""
        try:
            return cls(path, open_database(path, read_only=read_only))
        except sqlite3.Error as error:
            raise RunDirError(path, f"the ledger cannot be opened ({error})", "choose another --out") from error

    def close(self) -> None:
        self._sql.close()

    def transaction(self, operations: Iterable[Callable[[LedgerStore], T]]) -> list[T]:
        """Carry out all works and make them durable, or none of them."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            results = [operation(self) for operation in operations]
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise
        return results

    # ---- the way to a POST -------------------------------------------------------------------------------

    def enqueue(self, job_id: str, body: bytes, fingerprint: bytes, metadata: bytes, tenant: str) -> None:
        """A new job is to be submitted when its turn comes. One that is on record stays as it is."""
        self._sql.execute(
            "INSERT INTO jobs (job_id, state, body, fingerprint, metadata, tenant) VALUES (?, 'pending', ?, ?, ?, ?)"
            " ON CONFLICT (job_id) DO NOTHING",
            (job_id, body, fingerprint, metadata, tenant),
        )

    def record_intent(
        self, job_id: str, body: bytes, fingerprint: bytes, metadata: bytes, at: float, tenant: str
    ) -> int:
        """A new or pending job is about to be POSTed. Returns its number in the ledger."""
        return self.record_intents([(job_id, body, fingerprint, metadata, at, tenant)])[0]

    def record_intents(self, intents: Sequence[Intent]) -> list[int]:
        """The same of several jobs."""
        written = self._fetch_all(
            "INSERT INTO jobs (job_id, state, body, fingerprint, metadata, submitted_at, tenant, attempts)"
            " SELECT column1, 'submitting', column2, column3, column4, column5, column6, 1"
            " FROM {rows} WHERE column1 IS NOT NULL"
            " ON CONFLICT (job_id) DO UPDATE SET state = 'submitting', attempts = attempts + 1,"
            " submitted_at = excluded.submitted_at"
            " WHERE state = 'pending' AND fingerprint = excluded.fingerprint RETURNING job_id, job_no",
            intents,
        )
        job_nos = dict(written)
        if len(written) != len(intents):  # a job that is named twice is written once
            ids = " or ".join(repr(job_id) for job_id, *_ in intents)
            raise InternalError(f"job {ids} is not pending, so it cannot be submitted")
        submissions = [(job_nos[job_id], at) for job_id, _, _, _, at, _ in intents]
        self._fetch_all(
            "INSERT INTO submissions (job_no, sent_at) SELECT column1, column2 FROM {rows} WHERE column1 IS NOT NULL",
            submissions,
        )
        return [job_no for job_no, _ in submissions]

    def revert_intent(self, job_no: int, result: str) -> None:
        """The POST was `refused` or `not_sent`: nothing was queued, the job is pending."""
        self._transition(job_no, State.SUBMITTING, State.PENDING)
        self._set_result(job_no, result)

    def mark_accepted(self, job_no: int, request_id: str, at: float) -> bool:
        """The POST was accepted and is paid. False, and nothing is changed, where another has that request_id."""
        return self.mark_accepted_many([(job_no, request_id, at)])[0]

    def mark_accepted_many(self, accepted: Sequence[tuple[int, str, float]]) -> list[bool]:
        """The same of several jobs."""
        accept = "UPDATE submissions SET result = 'accepted', request_id = column2 FROM {rows}"
        try:
            self._fetch_all(f"{accept} WHERE job_no = column1 AND result IS NULL", accepted)
        except sqlite3.IntegrityError:  # submissions.request_id is UNIQUE
            return [self.mark_accepted(*job) for job in accepted] if len(accepted) > 1 else [False]
        self._transition_many(
            State.SUBMITTING, State.ACCEPTED, "request_id = column2, accepted_at = column3", accepted
        )
        return [True] * len(accepted)

    def mark_rejected(self, job_no: int, error: ErrorInfo, at: float) -> Outcome:
        """The gateway will never take this body."""
        self._set_result(job_no, "refused")
        return self._end_job(job_no, State.SUBMITTING, State.REJECTED, error, at)

    def mark_ambiguous(self, job_no: int, error: ErrorInfo, at: float) -> Outcome:
        """The POST left and nobody knows what became of it."""
        self._set_result(job_no, "ambiguous")
        return self._end_job(job_no, State.SUBMITTING, State.AMBIGUOUS, error, at)

    # ---- out of doubt ------------------------------------------------------------------------------------

    def resubmit(self, job_no: int) -> None:
        """Somebody decided that an ambiguous job is worth another POST."""
        self._transition(job_no, State.AMBIGUOUS, State.PENDING, "error_kind = NULL, error_message = NULL")

    def abandon(self, job_no: int, at: float) -> Outcome:
        """Somebody decided that an ambiguous job is not to be submitted again; its charge stays unknown."""
        return self._end_job(job_no, State.AMBIGUOUS, State.CANCELLED, _ABANDONED, at)

    def adopt(self, job_no: int, request_id: str, at: float) -> bool:
        """Somebody learnt the request_id of an ambiguous job: it was accepted. False where another job has it."""
        if self._has_request_id(request_id):
            return False
        assignments = "request_id = ?, accepted_at = ?, finished_at = NULL, error_kind = NULL, error_message = NULL"
        self._transition(job_no, State.AMBIGUOUS, State.ACCEPTED, assignments, (request_id, at))
        self._sql.execute(
            "UPDATE submissions SET result = 'accepted', request_id = ?1"
            " WHERE submission_no ="
            " (SELECT max(submission_no) FROM submissions WHERE job_no = ?2 AND result = 'ambiguous')",
            (request_id, job_no),
        )
        return True

    def callback_secret(self, new_secret: bytes) -> bytes:
        """What makes this folder's callback addresses; `new` where there is none yet."""
        self._sql.execute(
            "INSERT INTO callback_secret VALUES (1, ?) ON CONFLICT (singleton) DO NOTHING", (new_secret,)
        )
        (secret,) = self._sql.execute("SELECT secret FROM callback_secret").fetchone()
        return bytes(secret)

    def mark_in_flight_ambiguous(self) -> None:
        """The process that had POSTs in the air is dead: their jobs are ambiguous."""
        self._sql.execute("UPDATE submissions SET result = 'ambiguous' WHERE result IS NULL")
        for (job_no,) in self._sql.execute(
            f"SELECT job_no FROM jobs WHERE {OPEN_JOBS} AND state = 'submitting'"
        ).fetchall():
            self._end_job(job_no, State.SUBMITTING, State.AMBIGUOUS, _KILLED, 0.0)

    def retry(self, job_no: int, state: State) -> None:
        """Somebody decided that a job which ended in vain is worth another POST. What it was paid stays on record."""
        if state not in RETRYABLE:
            raise InternalError(f"a job that is {state} is not to be submitted again")
        assignments = "errors = 0, finished_at = NULL, error_kind = NULL, error_message = NULL"
        self._update_state(job_no, state, State.PENDING, assignments)

    # ---- the way to an image ----------------------------------------------------------------------------

    def mark_finished(self, job_no: int, finished: Finished, at: float, polls: int) -> None:
        """The images can be fetched."""
        self.mark_finished_many([(job_no, finished, at, polls)])

    def mark_finished_many(self, finished: Sequence[tuple[int, Finished, float, int]]) -> list[None]:
        """The same of several jobs."""
        rows = [(job_no, msgspec.json.encode(output).decode(), at, polls) for job_no, output, at, polls in finished]
        assignments = "media = column2, finished_at = column3, polls = column4"
        self._transition_many(State.ACCEPTED, State.FINISHED, assignments, rows)
        return [None] * len(rows)

    def mark_stored(self, job_no: int, stored: Sequence[StoredFile], at: float) -> Outcome:
        """Every image of the job is on disk and synced."""
        return self.mark_stored_many([(job_no, stored, at)])[0]

    def mark_stored_many(self, stored: Sequence[tuple[int, Sequence[StoredFile], float]]) -> list[Outcome]:
        """The same of several jobs."""
        rows = [(job_no, msgspec.json.encode(files).decode(), at) for job_no, files, at in stored]
        assignments = "files = column2, stored_at = column3, error_kind = NULL, error_message = NULL"
        self._transition_many(State.FINISHED, State.SUCCEEDED, assignments, rows)
        found = self._fetch_all(
            f"SELECT job_no, {OUTCOME_COLUMNS} FROM {{rows}} JOIN jobs ON job_no = column1", [(n,) for n, *_ in rows]
        )
        outcomes = {n: outcome_of(row) for n, *row in found}
        return [outcomes[n] for n, *_ in rows]

    def mark_failed(self, job_no: int, error: ErrorInfo, at: float, polls: int) -> Outcome:
        """The gateway said FAILED."""
        return self._end_job(job_no, State.ACCEPTED, State.FAILED, error, at, polls)

    def mark_errored(self, job_no: int, error: ErrorInfo, at: float, polls: int) -> Outcome:
        """The gateway said ERROR, and no try is left."""
        self._mark_refunded(job_no)
        return self._end_job(job_no, State.ACCEPTED, State.ERRORED, error, at, polls)

    def requeue_errored(self, job_no: int, polls: int) -> None:
        """The gateway said ERROR, which is free, and the job is pending again."""
        self._mark_refunded(job_no)
        lifecycle.check_transition(State.ERRORED, State.PENDING)
        self._transition(job_no, State.ACCEPTED, State.ERRORED, "polls = ?", (polls,))
        self._transition(job_no, State.ERRORED, State.PENDING)

    def mark_timed_out(self, job_no: int, error: ErrorInfo, at: float, polls: int) -> Outcome:
        """This run waits no longer for the job; its request_id stays, and the next run asks again."""
        finished = self._sql.execute(
            "SELECT 1 FROM jobs WHERE job_no = ? AND state = 'finished'", (job_no,)
        ).fetchone()
        old = State.FINISHED if finished else State.ACCEPTED
        return self._end_job(job_no, old, State.TIMED_OUT, error, at, polls)

    # ---- a new run ---------------------------------------------------------------------------------------

    def start_run(self, gateway: str, version: str, at: float, rate_per_s: float | None = None) -> int:
        """Note that a run begins, of at most `per_s` submits a second.

        Raises RunFolderError where the folder's jobs live at another gateway.
        """
        previous = self._sql.execute("SELECT gateway FROM runs ORDER BY run_no DESC LIMIT 1").fetchone()
        if previous and previous[0] != gateway:
            raise RunDirError(
                self.path,
                f"its jobs were submitted to {previous[0]}, not to {gateway}",
                "use the same gateway, or another --out",
            )
        cursor = self._sql.execute(
            "INSERT INTO runs (started_at, gateway, version, rate_per_s) VALUES (?, ?, ?, ?)",
            (at, gateway, version, rate_per_s),
        )
        return int(cursor.lastrowid or 0)

    def set_expected_jobs(self, expected_jobs: int) -> None:
        """Note how many jobs the folder is to come to."""
        self._sql.execute(
            "UPDATE runs SET expected_jobs = ? WHERE run_no = (SELECT max(run_no) FROM runs)", (expected_jobs,)
        )

    def set_results_size(self, size_bytes: int | None) -> None:
        """Note that results.jsonl holds what the ledger does; None: it does not."""
        self._sql.execute(
            "UPDATE runs SET results_bytes = ? WHERE run_no = (SELECT max(run_no) FROM runs)", (size_bytes,)
        )

    def save_checkpoint(self, data: bytes) -> None:
        """Note how far job files have been read of which every job is on record."""
        self._sql.execute(
            "INSERT INTO checkpoint VALUES (1, ?1) ON CONFLICT (singleton) DO UPDATE SET data = ?1", (data,)
        )

    def end_run(self, run_no: int, at: float) -> None:
        """Note that a run has ended in order."""
        self._sql.execute("UPDATE runs SET ended_at = ? WHERE run_no = ?", (at, run_no))

    def recover(self, *, max_attempts: int, resubmit_ambiguous: bool) -> bool:
        """Bring what the last run left into the states in which this one goes on. True where ends are no more."""
        unended = False
        self.mark_in_flight_ambiguous()
        rows = self._sql.execute(f"SELECT job_no, state, errors FROM jobs WHERE {OPEN_JOBS}").fetchall()
        for job_no, state, errors in rows:
            old = State(state)
            new = lifecycle.on_resume(
                old, errors=errors, max_attempts=max_attempts, resubmit_ambiguous=resubmit_ambiguous
            )
            if new is not None and new is not old:
                self._transition(job_no, old, new, "error_kind = NULL, error_message = NULL")
                unended = unended or old in FINAL
        return unended

    # ---- parts -------------------------------------------------------------------------------------------

    def _transition(
        self, job_no: int, old: State, new: State, assignments: str = "", values: tuple[Any, ...] = ()
    ) -> None:
        lifecycle.check_transition(old, new)
        self._update_state(job_no, old, new, assignments, values)

    def _transition_many(self, old: State, new: State, assignments: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Move the jobs whose numbers the rows begin with."""
        lifecycle.check_transition(old, new)
        update = f"UPDATE jobs SET state = '{new}', {assignments}{_disposition_sql(old, new)} FROM {{rows}}"
        row_count = sum(
            cursor.rowcount
            for cursor in self._execute_batches(f"{update} WHERE job_no = column1 AND state = '{old}'", rows)
        )
        if row_count != len(rows):
            numbers = ", ".join(str(job_no) for job_no, *_ in rows)
            raise InternalError(f"job number {numbers} was to go from {old} to {new}, but is not {old}")

    def _update_state(
        self, job_no: int, old: State, new: State, assignments: str = "", values: tuple[Any, ...] = ()
    ) -> None:
        extra = f", {assignments}" if assignments else ""
        cursor = self._sql.execute(
            f"UPDATE jobs SET state = ?{extra}{_disposition_sql(old, new)} WHERE job_no = ? AND state = ?",
            (new.value, *values, job_no, old.value),
        )
        if cursor.rowcount != 1:
            raise InternalError(f"job number {job_no} was to go from {old} to {new}, but is not {old}")

    def _fetch_all(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What one statement finds for all rows, which stand for `{rows}` in it, as column1, column2 and so on."""
        return list(chain.from_iterable(self._execute_batches(sql, rows)))

    def _execute_batches(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[sqlite3.Cursor]:
        """Rows of NULL, which match nothing, fill up: for few sizes SQLite can keep what it made of the statement."""
        for start in range(0, len(rows), MAX_ROWS):
            batch = rows[start : start + MAX_ROWS]
            size = 1 << (len(batch) - 1).bit_length()
            nulls = repeat(None, (size - len(batch)) * len(batch[0]))
            yield self._sql.execute(_values_sql(sql, size, len(batch[0])), (*chain.from_iterable(batch), *nulls))

    def _end_job(
        self, job_no: int, old: State, new: State, error: ErrorInfo, at: float, polls: int | None = None
    ) -> Outcome:
        self._transition(
            job_no,
            old,
            new,
            "error_kind = ?, error_message = ?, polls = coalesce(?, polls), finished_at = nullif(?, 0)",
            (error.kind, error.message, polls, at),
        )
        return self.outcome(job_no)

    def _has_request_id(self, request_id: str) -> bool:
        return (
            self._sql.execute("SELECT 1 FROM submissions WHERE request_id = ?", (request_id,)).fetchone() is not None
        )

    def _set_result(self, job_no: int, result: str) -> None:
        self._sql.execute(
            "UPDATE submissions SET result = ? WHERE job_no = ? AND result IS NULL",
            (result, job_no),
        )

    def _mark_refunded(self, job_no: int) -> None:
        self._sql.execute(
            "UPDATE submissions SET refunded = 1 WHERE request_id = (SELECT request_id FROM jobs WHERE job_no = ?)",
            (job_no,),
        )
        self._sql.execute("UPDATE jobs SET errors = errors + 1 WHERE job_no = ?", (job_no,))


@lru_cache(maxsize=256)
def _values_sql(sql: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return sql.format(rows=f"(VALUES {', '.join([row] * rows)})")


def _disposition_sql(old: State, new: State) -> str:
    """What a move sets beside the state."""
    return f", disposition = {_DISPOSITIONS.get(new, 'NULL')}" if new in _DISPOSITIONS or old in _DISPOSITIONS else ""


_ABANDONED = ErrorInfo("abandoned", "ambiguous, and it was decided not to submit it again")
_KILLED = ErrorInfo("ambiguous", "the process ended while the POST was in the air")
