"""The transitions of jobs, written to SQLite.

The states of an UPDATE are those of the action's path. If it changes no row, InternalError is raised.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from krea_batch.errors import FencedError, InternalError, LedgerError, RunDirError
from krea_batch.jobs import FINAL, ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger.protocol import Intent
from krea_batch.ledger.rows import OUTCOME_COLUMNS, OpenJob, Reservation, outcome_of
from krea_batch.ledger.sqlite.busy import wait_while_busy
from krea_batch.ledger.sqlite.database import DISPOSITIONS, empty_database, next_step_of, open_database, open_error
from krea_batch.ledger.sqlite.queries import FREE_JOBS, LIVE_RUNS, OPEN_JOBS, SqliteQueries
from krea_batch.rules import lifecycle
from krea_batch.rules.lifecycle import Action, path_of
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.results_rows import ResultsMark

T = TypeVar("T")

MAX_RATE_EVENTS = 1000  # chosen: ten seconds of several runs; a run that stood still for longer starts again
MAX_ROWS = 64  # measured: more rows in one statement do not make a row cheaper


class SqliteLedger(SqliteQueries):
    """The ledger of a run directory in an SQLite file. See `Ledger` for its methods."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        self._run_no: int | None = None
        self._change = _RunChange()
        self._uncounted: tuple[int, int] | None = None  # charges and server errors of no run

    @classmethod
    def snapshot(cls, path: Path) -> SqliteLedger:
        """Open the file for reading, as it is now, whatever is written to it later. Raises as `open` does."""
        store = cls.open(path, read_only=True)
        try:
            with store.errors():
                store._sql.execute("BEGIN")
                store._sql.execute("SELECT max(job_no) FROM jobs").fetchone()  # takes the snapshot
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def empty(cls, path: Path) -> SqliteLedger:
        """Return a ledger without jobs, in memory, in place of the file at `path`."""
        return cls(path, empty_database())

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> SqliteLedger:
        """Open the file; create it unless `read_only`. Raises RunDirError for a foreign or newer file."""
        try:
            return cls(path, open_database(path, read_only=read_only))
        except sqlite3.Error as error:
            raise open_error(path, error) from error

    def transaction(self, operation: Callable[[Self], T]) -> T:
        try:
            return wait_while_busy(self.path, lambda: self._attempt(operation))
        except sqlite3.Error as error:
            problem = f"cannot write the ledger ({error})"
            raise LedgerError(self.path, problem, f"{next_step_of(error)}, then run again to resume") from error

    def _attempt(self, operation: Callable[[Self], T]) -> T:
        """Apply an operation in a transaction, unless another program has locked the file."""
        self._sql.execute("BEGIN IMMEDIATE")
        self._change = _RunChange()
        try:
            if self._run_no is not None:
                self._beat(self._run_no)
            result = operation(self)
            if self._run_no is not None:
                self._count(self._run_no)
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise
        return result

    def _beat(self, run_no: int) -> None:
        """Record that the run is alive. Raises FencedError if another run has taken its jobs."""
        cursor = self._sql.execute("UPDATE runs SET beat = beat + 1 WHERE run_no = ? AND NOT fenced", (run_no,))
        if cursor.rowcount != 1:
            raise FencedError(self.path)

    def _count(self, run_no: int) -> None:
        """Add what the transaction has changed to the counters of the run."""
        change = self._change
        if change.charged or change.server_errors or change.intents:
            self._sql.execute(
                "UPDATE runs SET charged = charged + ?, server_errors = server_errors + ?,"
                " reserved = max(0, reserved - ?) WHERE run_no = ?",
                (change.charged, change.server_errors, change.intents, run_no),
            )

    def maintain(self) -> None:
        """Copy the WAL into the file, as far as readers allow."""
        with self.errors():
            self._sql.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # ---- submitting --------------------------------------------------------------------------------------

    def enqueue(
        self,
        job_id: str,
        body: bytes,
        fingerprint: bytes,
        metadata: bytes,
        tenant: str,
        image_name: str = "",
        *,
        free: bool = False,
    ) -> bool:
        cursor = self._sql.execute(
            "INSERT INTO jobs (job_id, state, body, fingerprint, metadata, tenant, image_name, run_no)"
            " VALUES (?, 'pending', ?, ?, ?, ?, nullif(?, ''), ?) ON CONFLICT (job_id) DO NOTHING",
            (job_id, body, fingerprint, metadata, tenant, image_name, None if free else self._run_no),
        )
        return cursor.rowcount == 1

    def record_intent(
        self,
        job_id: str,
        body: bytes,
        fingerprint: bytes,
        metadata: bytes,
        at: float,
        tenant: str,
        image_name: str = "",
    ) -> int:
        return self.record_intents([(job_id, body, fingerprint, metadata, at, tenant, image_name)])[0]

    def record_intents(self, intents: Sequence[Intent]) -> list[int]:
        written = self._fetch_all(
            "INSERT INTO jobs (job_id, state, body, fingerprint, metadata, submitted_at, tenant, image_name,"
            " attempts)"
            " SELECT column1, 'submitting', column2, column3, column4, column5, column6, nullif(column7, ''), 1"
            " FROM {rows} WHERE column1 IS NOT NULL"
            " ON CONFLICT (job_id) DO UPDATE SET state = 'submitting', attempts = attempts + 1,"
            " submitted_at = excluded.submitted_at"
            " WHERE state = 'pending' AND fingerprint = excluded.fingerprint RETURNING job_id, job_no",
            intents,
        )
        job_nos = dict(written)
        if len(written) != len(intents):  # a job that is passed twice is written once
            ids = " or ".join(repr(job_id) for job_id, *_ in intents)
            raise InternalError(f"job {ids} is not pending, so it cannot be submitted")
        submissions = [(job_nos[job_id], at, self._run_no) for job_id, _, _, _, at, *_ in intents]
        self._fetch_all(
            "INSERT INTO submissions (job_no, sent_at, run_no) SELECT column1, column2, column3 FROM {rows}"
            " WHERE column1 IS NOT NULL",
            submissions,
        )
        self._change.charged += len(submissions)
        self._change.intents += len(submissions)
        return [job_no for job_no, *_ in submissions]

    def revert_intent(self, job_no: int, result: str) -> None:
        self._transition(job_no, Action.REVERT, State.SUBMITTING)
        self._set_refused(job_no, result)

    def mark_accepted(self, job_no: int, request_id: str, at: float) -> bool:
        return self.mark_accepted_many([(job_no, request_id, at)])[0]

    def mark_accepted_many(self, accepted: Sequence[tuple[int, str, float]]) -> list[bool]:
        accept = "UPDATE submissions SET result = 'accepted', request_id = column2 FROM {rows}"
        try:
            self._fetch_all(f"{accept} WHERE job_no = column1 AND result IS NULL", accepted)
        except sqlite3.IntegrityError:  # submissions.request_id is UNIQUE
            return [self.mark_accepted(*job) for job in accepted] if len(accepted) > 1 else [False]
        assignments = "request_id = column2, accepted_at = column3"
        self._transition_many(Action.ACCEPT, State.SUBMITTING, assignments, accepted)
        return [True] * len(accepted)

    def mark_rejected(self, job_no: int, error: ErrorInfo, at: float, result: str = "refused") -> Outcome:
        self._set_refused(job_no, result)
        return self._end_job(job_no, Action.REJECT, State.SUBMITTING, error, at)

    def mark_ambiguous(self, job_no: int, error: ErrorInfo, at: float, answer: bytes = b"") -> Outcome:
        self._set_result(job_no, "ambiguous", answer)
        return self._end_job(job_no, Action.MARK_AMBIGUOUS, State.SUBMITTING, error, at)

    def resubmit_submitting(self, job_no: int, answer: bytes = b"") -> None:
        self._set_result(job_no, "ambiguous", answer)
        self._transition(job_no, Action.RESUBMIT, State.SUBMITTING)

    # ---- ambiguous jobs ----------------------------------------------------------------------------------

    def resubmit(self, job_no: int) -> None:
        assignments = f"error_kind = NULL, error_message = NULL, {self._claimed}"
        self._transition(job_no, Action.RESUBMIT, State.AMBIGUOUS, assignments)

    def abandon(self, job_no: int, state: State, at: float) -> Outcome:
        return self._end_job(job_no, Action.ABANDON, state, _ABANDONED[state], at)

    def adopt(self, job_no: int, request_id: str, at: float) -> bool:
        if self._has_request_id(request_id):
            return False
        assignments = f"request_id = ?, accepted_at = ?, {_NO_END}, {self._claimed}"
        self._transition(job_no, Action.ADOPT, State.AMBIGUOUS, assignments, (request_id, at))
        self._sql.execute(
            "UPDATE submissions SET result = 'accepted', request_id = ?1"
            " WHERE submission_no ="
            " (SELECT max(submission_no) FROM submissions WHERE job_no = ?2 AND result = 'ambiguous')",
            (request_id, job_no),
        )
        return True

    def callback_secret(self, new_secret: bytes) -> bytes:
        self._sql.execute(
            "INSERT INTO callback_secret VALUES (1, ?) ON CONFLICT (singleton) DO NOTHING", (new_secret,)
        )
        (secret,) = self._sql.execute("SELECT secret FROM callback_secret").fetchone()
        return bytes(secret)

    def retry(self, job_no: int, state: State) -> None:
        self._transition(job_no, Action.RETRY, state, f"errors = 0, {_NO_END}, {self._claimed}")

    @property
    def _claimed(self) -> str:
        """The assignment of a job to the run of this object; without one, the job is free."""
        return f"run_no = {self._run_no or 'NULL'}"

    # ---- images -----------------------------------------------------------------------------------------

    def mark_finished(self, job_no: int, finished: Finished, at: float, polls: int) -> None:
        self.mark_finished_many([(job_no, finished, at, polls)])

    def mark_finished_many(self, finished: Sequence[tuple[int, Finished, float, int]]) -> list[None]:
        rows = [(job_no, msgspec.json.encode(output).decode(), at, polls) for job_no, output, at, polls in finished]
        assignments = "media = column2, finished_at = column3, polls = column4"
        self._transition_many(Action.FINISH, State.ACCEPTED, assignments, rows)
        return [None] * len(rows)

    def mark_stored(self, job_no: int, stored: Sequence[StoredFile], at: float) -> Outcome:
        return self.mark_stored_many([(job_no, stored, at)])[0]

    def mark_stored_many(self, stored: Sequence[tuple[int, Sequence[StoredFile], float]]) -> list[Outcome]:
        rows = [(job_no, msgspec.json.encode(files).decode(), at) for job_no, files, at in stored]
        assignments = "files = column2, stored_at = column3, error_kind = NULL, error_message = NULL"
        self._transition_many(Action.STORE, State.FINISHED, assignments, rows)
        job_nos = [(job_no,) for job_no, *_ in rows]
        found = self._fetch_all(
            f"SELECT job_no, {OUTCOME_COLUMNS} FROM {{rows}} JOIN jobs ON job_no = column1", job_nos
        )
        outcomes = {job_no: outcome_of(row) for job_no, *row in found}
        return [outcomes[job_no] for (job_no,) in job_nos]

    def mark_failed(self, job_no: int, error: ErrorInfo, at: float, polls: int) -> Outcome:
        return self._end_job(job_no, Action.FAIL, State.ACCEPTED, error, at, polls)

    def mark_errored(self, job_no: int, error: ErrorInfo, at: float, polls: int) -> Outcome:
        self._mark_refunded(job_no)
        return self._end_job(job_no, Action.GIVE_UP, State.ACCEPTED, error, at, polls)

    def requeue_errored(self, job_no: int, polls: int) -> None:
        self._mark_refunded(job_no)
        self._transition(job_no, Action.REQUEUE, State.ACCEPTED, "polls = ?", (polls,))

    def refresh_urls(self, job_no: int) -> None:
        self._transition(job_no, Action.REFRESH, State.FINISHED, "media = NULL, finished_at = NULL")

    def mark_timed_out(self, job_no: int, old: State, error: ErrorInfo, at: float, polls: int) -> Outcome:
        return self._end_job(job_no, Action.TIME_OUT, old, error, at, polls)

    # ---- runs --------------------------------------------------------------------------------------------

    def start_run(
        self,
        gateway: str,
        version: str,
        at: float,
        rate_per_s: float | None = None,
        *,
        max_charges: int | None = None,
        count_server_errors: bool = False,
        worker: str = "",
    ) -> int:
        previous = self.gateway()
        if previous and previous != gateway:
            raise RunDirError(
                self.path,
                f"its jobs were submitted to {_describe(previous)}, not to {_describe(gateway)}",
                "use another run directory, or the same gateway",
            )
        cursor = self._sql.execute(
            "INSERT INTO runs (started_at, gateway, version, rate_per_s, max_charges, count_server_errors, worker)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (at, gateway, version, rate_per_s, max_charges, count_server_errors, worker),
        )
        return int(cursor.lastrowid or 0)

    def set_expected_jobs(self, expected_jobs: int) -> None:
        self._sql.execute(
            "UPDATE runs SET expected_jobs = ? WHERE run_no = (SELECT max(run_no) FROM runs)", (expected_jobs,)
        )

    def set_results_size(self, size_bytes: int | None) -> None:
        self._sql.execute(
            "UPDATE runs SET results_bytes = ? WHERE run_no = (SELECT max(run_no) FROM runs)", (size_bytes,)
        )

    def save_checkpoint(self, data: bytes) -> None:
        self._sql.execute(
            "INSERT INTO checkpoint VALUES (1, ?1) ON CONFLICT (singleton) DO UPDATE SET data = ?1", (data,)
        )

    def save_found_limit(self, data: bytes, at: float) -> None:
        self._sql.execute(
            "INSERT INTO found_limit VALUES (1, ?1, ?2)"
            " ON CONFLICT (singleton) DO UPDATE SET data = ?1, found_at = ?2",
            (data, at),
        )

    def end_run(self, run_no: int, at: float) -> None:
        self._sql.execute("UPDATE runs SET ended_at = ? WHERE run_no = ?", (at, run_no))

    def bind_run(self, run_no: int | None) -> None:
        self._run_no = run_no

    def recover(self, *, max_attempts: int, resubmit_ambiguous: bool) -> bool:
        unended = False
        self._mark_in_flight_ambiguous()
        rows = self._sql.execute(f"SELECT job_no, state, errors FROM jobs WHERE {FREE_JOBS}").fetchall()
        for job_no, state, errors in rows:
            old = State(state)
            new = lifecycle.on_resume(
                old, errors=errors, max_attempts=max_attempts, resubmit_ambiguous=resubmit_ambiguous
            )
            if new is not None and new is not old:
                action = Action.RESUBMIT if old is State.AMBIGUOUS else Action.RESUME
                self._transition(job_no, action, old, "error_kind = NULL, error_message = NULL")
                unended = unended or old in FINAL
        return unended

    # ---- several runs at the same time -------------------------------------------------------------------

    def fence(self, run_no: int, beat: int) -> bool:
        cursor = self._sql.execute(
            f"UPDATE runs SET fenced = 1 WHERE run_no = ? AND beat = ? AND {LIVE_RUNS}", (run_no, beat)
        )
        if cursor.rowcount == 1:
            self._mark_in_flight_ambiguous()
        return cursor.rowcount == 1

    def fence_others(self) -> None:
        self._sql.execute(f"UPDATE runs SET fenced = 1 WHERE run_no IS NOT ? AND {LIVE_RUNS}", (self._run_no,))
        self._sql.execute("DELETE FROM rate_events")  # their clock may have been reset by a restart of the machine
        self._mark_in_flight_ambiguous()

    def _mark_in_flight_ambiguous(self) -> None:
        """Mark free jobs as ambiguous whose POST was pending when their run ended."""
        self._sql.execute(
            "UPDATE submissions SET result = 'ambiguous' WHERE result IS NULL"
            f" AND (run_no IS NULL OR run_no NOT IN (SELECT run_no FROM runs WHERE {LIVE_RUNS}))"
        )
        for (job_no,) in self._sql.execute(
            f"SELECT job_no FROM jobs WHERE {OPEN_JOBS} AND state = 'submitting' AND NOT EXISTS"
            " (SELECT 1 FROM submissions WHERE submissions.job_no = jobs.job_no AND result IS NULL)"
        ).fetchall():
            self._end_job(job_no, Action.MARK_AMBIGUOUS, State.SUBMITTING, _KILLED, 0.0)

    def claim_jobs(self, states: Collection[State], limit: int) -> list[OpenJob]:
        jobs = self._open_jobs(
            f"{FREE_JOBS} AND state IN ({','.join('?' * len(states))}) ORDER BY job_no LIMIT ?", (*states, limit)
        )
        self._fetch_all(
            f"UPDATE jobs SET run_no = {self._run_no} FROM {{rows}} WHERE job_no = column1",
            [(job.job_no,) for job in jobs],
        )
        return jobs

    def record_late_result(
        self, run_no: int, job_no: int, result: str, request_id: str = "", at: float = 0.0
    ) -> bool:
        (submission_no,) = self._sql.execute(
            "SELECT max(submission_no) FROM submissions WHERE job_no = ? AND run_no = ? AND result = 'ambiguous'",
            (job_no, run_no),
        ).fetchone()
        if submission_no is None or (request_id and self._has_request_id(request_id)):
            return False
        self._sql.execute(
            "UPDATE submissions SET result = ?, request_id = nullif(?, '') WHERE submission_no = ?",
            (result, request_id, submission_no),
        )
        if result != "accepted":
            self._sql.execute(
                "UPDATE runs SET charged = charged - 1, server_errors = server_errors + ? WHERE run_no = ?",
                (result == "server_error", run_no),
            )
        if self._is_in_doubt_about(job_no, submission_no):
            if result == "accepted":
                assignments = f"request_id = ?, accepted_at = ?, {_NO_END}"
                self._transition(job_no, Action.ADOPT, State.AMBIGUOUS, assignments, (request_id, at))
            else:
                self._transition(job_no, Action.RESUBMIT, State.AMBIGUOUS, _NO_END)
        return True

    def _is_in_doubt_about(self, job_no: int, submission_no: int) -> bool:
        """Return whether a job is ambiguous because of this submission, its last one."""
        row = self._sql.execute(
            "SELECT 1 FROM jobs WHERE job_no = ?1 AND state = 'ambiguous'"
            " AND ?2 = (SELECT max(submission_no) FROM submissions WHERE job_no = ?1)",
            (job_no, submission_no),
        ).fetchone()
        return row is not None

    def clock_s(self) -> float | None:
        return None

    def rate_events(self, after_event_no: int) -> list[tuple[int, bytes]]:
        sql = "SELECT event_no, data FROM rate_events WHERE event_no > ? ORDER BY event_no"
        return self._sql.execute(sql, (after_event_no,)).fetchall()

    def add_rate_events(self, data: bytes) -> int:
        event_no = int(self._sql.execute("INSERT INTO rate_events (data) VALUES (?)", (data,)).lastrowid or 0)
        self._sql.execute("DELETE FROM rate_events WHERE event_no <= ?", (event_no - MAX_RATE_EVENTS,))
        return event_no

    def reserve_charges(self, count: int, max_charges: int, *, count_server_errors: bool) -> Reservation:
        charged, server_errors, reserved = self._sql.execute(
            "SELECT coalesce(sum(charged), 0), coalesce(sum(server_errors), 0),"
            f" coalesce(sum(reserved) FILTER (WHERE {LIVE_RUNS}), 0) FROM runs"
        ).fetchone()
        if self._uncounted is None:  # Only `krea-batch recover` adds submissions without a run.
            charges = self.charges()
            self._uncounted = charges.charged + charges.unknown - charged, charges.server_errors - server_errors
        counted = charged + self._uncounted[0]
        if count_server_errors:
            counted += server_errors + self._uncounted[1]
        granted = max(0, min(count, max_charges - counted - reserved))
        self._sql.execute("UPDATE runs SET reserved = reserved + ? WHERE run_no = ?", (granted, self._run_no))
        (in_flight,) = self._sql.execute("SELECT count(*) FROM submissions WHERE result IS NULL").fetchone()
        return Reservation(granted, exhausted=counted - in_flight >= max_charges)

    def return_charges(self, count: int) -> None:
        self._sql.execute("UPDATE runs SET reserved = max(0, reserved - ?) WHERE run_no = ?", (count, self._run_no))

    # ---- the files ---------------------------------------------------------------------------------------

    def set_results_mark(self, mark: ResultsMark) -> None:
        self._sql.execute(
            "INSERT INTO results_mark VALUES (1, ?1, ?2)"
            " ON CONFLICT (singleton) DO UPDATE SET size_bytes = ?1, tail_sha256 = ?2",
            mark,
        )

    # ---- helpers -----------------------------------------------------------------------------------------

    def _transition(
        self, job_no: int, action: Action, old: State, assignments: str = "", values: tuple[Any, ...] = ()
    ) -> None:
        new = path_of(action, old)[-1]
        extra = f", {assignments}" if assignments else ""
        cursor = self._sql.execute(
            f"UPDATE jobs SET state = ?{extra}{_disposition_sql(old, new)} WHERE job_no = ? AND state = ?",
            (new.value, *values, job_no, old.value),
        )
        if cursor.rowcount != 1:
            raise InternalError(f"job number {job_no} was to go from {old} to {new}, but is not {old}")

    def _transition_many(self, action: Action, old: State, assignments: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Move several jobs; the first column of each row is the job's number."""
        new = path_of(action, old)[-1]
        update = f"UPDATE jobs SET state = '{new}', {assignments}{_disposition_sql(old, new)} FROM {{rows}}"
        row_count = sum(
            cursor.rowcount
            for cursor in self._execute_batches(f"{update} WHERE job_no = column1 AND state = '{old}'", rows)
        )
        if row_count != len(rows):
            numbers = ", ".join(str(job_no) for job_no, *_ in rows)
            raise InternalError(f"job number {numbers} was to go from {old} to {new}, but is not {old}")

    def _fetch_all(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return what a statement finds; `{rows}` in it stands for the rows, with column1, column2 and so on."""
        return list(chain.from_iterable(self._execute_batches(sql, rows)))

    def _execute_batches(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[sqlite3.Cursor]:
        """Execute a statement in batches, padded with rows of NULL, so that SQLite can cache few statements."""
        for start in range(0, len(rows), MAX_ROWS):
            batch = rows[start : start + MAX_ROWS]
            size = 1 << (len(batch) - 1).bit_length()
            nulls = repeat(None, (size - len(batch)) * len(batch[0]))
            yield self._sql.execute(_values_sql(sql, size, len(batch[0])), (*chain.from_iterable(batch), *nulls))

    def _end_job(
        self, job_no: int, action: Action, old: State, error: ErrorInfo, at: float, polls: int | None = None
    ) -> Outcome:
        self._transition(
            job_no,
            action,
            old,
            "error_kind = ?, error_message = ?, polls = coalesce(?, polls), finished_at = nullif(?, 0)",
            (error.kind, error.message, polls, at),
        )
        return self.outcome(job_no)

    def _has_request_id(self, request_id: str) -> bool:
        return (
            self._sql.execute("SELECT 1 FROM submissions WHERE request_id = ?", (request_id,)).fetchone() is not None
        )

    def _set_result(self, job_no: int, result: str, answer: bytes = b"") -> None:
        self._sql.execute(
            "UPDATE submissions SET result = ?, answer = nullif(?, x'') WHERE job_no = ? AND result IS NULL",
            (result, answer, job_no),
        )

    def _set_refused(self, job_no: int, result: str) -> None:
        """Set the result of a submission that is not charged."""
        self._set_result(job_no, result)
        self._change.charged -= 1
        self._change.server_errors += result == "server_error"

    def _mark_refunded(self, job_no: int) -> None:
        self._change.charged -= 1
        self._sql.execute(
            "UPDATE submissions SET refunded = 1 WHERE request_id = (SELECT request_id FROM jobs WHERE job_no = ?)",
            (job_no,),
        )
        self._sql.execute("UPDATE jobs SET errors = errors + 1 WHERE job_no = ?", (job_no,))


class _RunChange:
    """What a transaction changes in the counters of its run."""

    __slots__ = ("charged", "intents", "server_errors")

    def __init__(self) -> None:
        self.charged = 0
        self.intents = 0
        self.server_errors = 0


@lru_cache(maxsize=256)
def _values_sql(sql: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return sql.format(rows=f"(VALUES {', '.join([row] * rows)})")


def _describe(origin: str) -> str:
    """Return the origin of a gateway, and what it may be if it is on this machine: users know it by an option."""
    return f"{origin} (the simulator, or another gateway of this machine)" if "//127.0.0.1" in origin else origin


def _disposition_sql(old: State, new: State) -> str:
    """Return what a transition sets besides the state."""
    if new in DISPOSITIONS:
        return f", disposition = '{DISPOSITIONS[new]}'"
    return ", disposition = NULL" if old in DISPOSITIONS else ""


_NO_END = "finished_at = NULL, error_kind = NULL, error_message = NULL"
_ABANDONED = {
    State.AMBIGUOUS: ErrorInfo("abandoned", "ambiguous, and the user decided not to submit it again"),
    State.TIMED_OUT: ErrorInfo("abandoned", "timed out, and the user decided not to wait for it"),
}
_KILLED = ErrorInfo("ambiguous", "the process ended while the POST was pending")
