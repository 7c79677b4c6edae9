"""The transitions of jobs in a database: the SQL that SQLite and PostgreSQL have in common.

The states of an UPDATE are those of the action's path. If it changes no row, InternalError is raised.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Self, TypeVar

import msgspec

from krea_batch.errors import FencedError, InternalError, KreaBatchError, RunDirError
from krea_batch.jobs import FINAL, ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger.protocol import Intent, NewJob
from krea_batch.ledger.rows import OUTCOME_COLUMNS, OpenJob, Reservation, outcome_of
from krea_batch.ledger.sql_queries import DISPOSITIONS, FREE_JOBS, LIVE_RUNS, OPEN_JOBS, SqlQueries, placeholders_for
from krea_batch.rules import lifecycle
from krea_batch.rules.lifecycle import Action, path_of
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.results_rows import ResultsMark

T = TypeVar("T")

DELETED_RATE_EVENTS = 100  # chosen: so many are deleted together
MAX_RATE_EVENTS = 1000  # chosen: ten seconds of several runs; a run that stalled for longer starts again


class SqlLedger(SqlQueries):
    """The transitions of jobs. See `Ledger` for its methods.

    A database has a statement for many rows: `{rows}` in it stands for them, with column1, column2 and so on.
    """

    def __init__(self) -> None:
        self._run_no: int | None = None
        self._change = _RunChange()
        self._uncounted: tuple[int, int] | None = None  # charges and server errors of no run

    @abstractmethod
    def _execute(self, sql: str, values: Sequence[Any] = (), *, otherwise: KreaBatchError | None = None) -> None:
        """Execute a statement.

        If it does not change exactly one row, `otherwise` is raised: now, or else before the next rows that are read
        are returned and before the transaction is committed.
        """

    @abstractmethod
    def _execute_rows(self, sql: str, rows: Sequence[tuple[Any, ...]], *, otherwise: KreaBatchError) -> None:
        """Execute a statement for many rows, which changes one row for each, or else as `_execute`."""

    @abstractmethod
    def _fetch_rows(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
        """Return what a statement for many rows finds."""

    @abstractmethod
    def _write_intents(self, intents: Sequence[Intent]) -> dict[str, int]:
        """Write new jobs and those pending jobs that have the same fingerprint as submitting, with a submission each.

        Return their numbers by id.
        """

    def _apply(self, operation: Callable[[Self], T]) -> T:
        """Apply an operation within a transaction of the run of this object, and count what it changes."""
        self._change = _RunChange()
        if self._run_no is not None:
            self._beat(self._run_no)
        result = operation(self)
        self._count()
        return result

    def _beat(self, run_no: int) -> None:
        """Record that the run is alive. Raises FencedError if another run has taken its jobs."""
        sql = "UPDATE runs SET beat = beat + 1 WHERE run_no = ? AND fenced = 0"
        self._execute(sql, (run_no,), otherwise=FencedError(self.path))

    def _count(self) -> None:
        """Add what the transaction has changed so far to the counters of its run, if it has one."""
        change, self._change = self._change, _RunChange()
        if self._run_no is not None and (change.charged or change.server_errors or change.intents):
            self._execute(
                "UPDATE runs SET charged = charged + ?, server_errors = server_errors + ?,"
                " reserved = CASE WHEN reserved > ? THEN reserved - ? ELSE 0 END WHERE run_no = ?",
                (change.charged, change.server_errors, change.intents, change.intents, self._run_no),
            )

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
        return self.enqueue_many([(job_id, body, fingerprint, metadata, tenant, image_name)], free=free)[0]

    def enqueue_many(self, jobs: Sequence[NewJob], *, free: bool = False) -> list[bool]:
        first = {job_id: position for position, (job_id, *_) in reversed(list(enumerate(jobs)))}
        run_no = None if free else self._run_no
        rows = self._fetch_rows(
            "INSERT INTO jobs (job_no, job_id, state, body, fingerprint, metadata, tenant, image_name, run_no)"
            " SELECT (SELECT coalesce(max(job_no), 0) FROM jobs) + row_number() OVER (ORDER BY column7),"
            " column1, 'pending', column2, column3, column4, column5, nullif(column6, ''),"
            f" {run_no or 'NULL'} FROM {{rows}} WHERE column1 IS NOT NULL"
            " AND NOT EXISTS (SELECT 1 FROM jobs WHERE job_id = column1) RETURNING job_id",
            [(*jobs[position], position) for position in sorted(first.values())],
        )
        new = {job_id for (job_id,) in rows}
        return [job_id in new and first[job_id] == position for position, (job_id, *_) in enumerate(jobs)]

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
        is_each_once = len({job_id for job_id, *_ in intents}) == len(intents)
        job_nos = self._write_intents(intents) if is_each_once else {}
        if len(job_nos) != len(intents):
            ids = " or ".join(repr(job_id) for job_id, *_ in intents)
            raise InternalError(f"job {ids} is not pending, so it cannot be submitted")
        self._change.charged += len(intents)
        self._change.intents += len(intents)
        return [job_nos[job_id] for job_id, *_ in intents]

    def revert_intent(self, job_no: int, result: str) -> None:
        self._transition(job_no, Action.REVERT, State.SUBMITTING)
        self._set_refused(job_no, result)

    def mark_accepted(self, job_no: int, request_id: str, at: float) -> bool:
        return self.mark_accepted_many([(job_no, request_id, at)])[0]

    def mark_accepted_many(self, accepted: Sequence[tuple[int, str, float]]) -> list[bool]:
        first = {request_id: job_no for job_no, request_id, _ in reversed(accepted)}
        accepted_now = [job for job in accepted if first[job[1]] == job[0]]
        updated = self._fetch_rows(
            "UPDATE submissions SET result = 'accepted', request_id = column2 FROM {rows}"
            " WHERE job_no = column1 AND result IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM submissions AS other WHERE other.request_id = column2) RETURNING job_no",
            accepted_now,
        )
        refused = {job_no for job_no, *_ in accepted} - {job_no for (job_no,) in updated}
        if refused:  # Either another submission has the request_id, or the job is not submitting.
            placeholders = placeholders_for(refused)
            refused = {
                job_no
                for (job_no,) in self._rows(
                    f"SELECT job_no FROM submissions WHERE result IS NULL AND job_no IN ({placeholders})",
                    tuple(refused),
                )
            }
        moved = [job for job in accepted if job[0] not in refused]
        assignments = "request_id = column2, accepted_at = column3"
        self._transition_many(Action.ACCEPT, State.SUBMITTING, assignments, moved)
        return [job_no not in refused for job_no, *_ in accepted]

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
        self._execute(
            "UPDATE submissions SET result = 'accepted', request_id = ?"
            " WHERE submission_no ="
            " (SELECT max(submission_no) FROM submissions WHERE job_no = ? AND result = 'ambiguous')",
            (request_id, job_no),
        )
        return True

    def callback_secret(self, new_secret: bytes) -> bytes:
        self._execute("INSERT INTO callback_secret VALUES (1, ?) ON CONFLICT (singleton) DO NOTHING", (new_secret,))
        (secret,) = self._row("SELECT secret FROM callback_secret")
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
        returning = f"job_no, {OUTCOME_COLUMNS}"
        found = self._transition_many(Action.STORE, State.FINISHED, assignments, rows, returning)
        outcomes = {job_no: outcome_of(row) for job_no, *row in found}
        return [outcomes[job_no] for job_no, *_ in rows]

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
        process_lock: str = "",
    ) -> int:
        previous = self.gateway()
        if previous and previous != gateway:
            raise RunDirError(
                self.path,
                f"its jobs were submitted to {_describe(previous)}, not to {_describe(gateway)}",
                "use another run directory, or the same gateway",
            )
        (run_no,) = self._row(
            "INSERT INTO runs (run_no, started_at, gateway, version, rate_per_s, max_charges, count_server_errors,"
            " worker, process_lock)"
            " VALUES ((SELECT coalesce(max(run_no), 0) + 1 FROM runs), ?, ?, ?, ?, ?, ?, ?, ?) RETURNING run_no",
            (at, gateway, version, rate_per_s, max_charges, int(count_server_errors), worker, process_lock),
        )
        return int(run_no)

    def set_expected_jobs(self, expected_jobs: int) -> None:
        self._execute(
            "UPDATE runs SET expected_jobs = ? WHERE run_no = (SELECT max(run_no) FROM runs)", (expected_jobs,)
        )

    def set_results_size(self, size_bytes: int | None) -> None:
        self._execute(
            "UPDATE runs SET results_bytes = ? WHERE run_no = (SELECT max(run_no) FROM runs)", (size_bytes,)
        )

    def save_checkpoint(self, data: bytes) -> None:
        self._execute(
            "INSERT INTO checkpoint VALUES (1, ?) ON CONFLICT (singleton) DO UPDATE SET data = excluded.data", (data,)
        )

    def save_found_limit(self, data: bytes, at: float) -> None:
        self._execute(
            "INSERT INTO found_limit VALUES (1, ?, ?)"
            " ON CONFLICT (singleton) DO UPDATE SET data = excluded.data, found_at = excluded.found_at",
            (data, at),
        )

    def end_run(self, run_no: int, at: float) -> None:
        self._execute("UPDATE runs SET ended_at = ? WHERE run_no = ?", (at, run_no))

    def bind_run(self, run_no: int | None) -> None:
        self._run_no = run_no

    def recover(self, *, max_attempts: int, resubmit_ambiguous: bool) -> bool:
        unended = False
        self._mark_in_flight_ambiguous()
        rows = list(self._rows(f"SELECT job_no, state, errors FROM jobs WHERE {FREE_JOBS}"))
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
        fenced = self._row(
            f"UPDATE runs SET fenced = 1 WHERE run_no = ? AND beat = ? AND {LIVE_RUNS} RETURNING run_no",
            (run_no, beat),
        )
        if fenced:
            self._mark_in_flight_ambiguous()
        return fenced is not None

    def fence_others(self) -> None:
        self._execute(f"UPDATE runs SET fenced = 1 WHERE run_no <> ? AND {LIVE_RUNS}", (self._run_no or 0,))
        self._execute("DELETE FROM rate_events")  # their clock may have been reset by a restart of the machine
        self._mark_in_flight_ambiguous()

    def _mark_in_flight_ambiguous(self) -> None:
        """Mark free jobs as ambiguous whose POST was pending when their run ended."""
        self._execute(
            "UPDATE submissions SET result = 'ambiguous' WHERE result IS NULL"
            f" AND (run_no IS NULL OR run_no NOT IN (SELECT run_no FROM runs WHERE {LIVE_RUNS}))"
        )
        for (job_no,) in list(
            self._rows(
                f"SELECT job_no FROM jobs WHERE {OPEN_JOBS} AND state = 'submitting' AND NOT EXISTS"
                " (SELECT 1 FROM submissions WHERE submissions.job_no = jobs.job_no AND result IS NULL)"
            )
        ):
            self._end_job(job_no, Action.MARK_AMBIGUOUS, State.SUBMITTING, _KILLED, 0.0)

    def claim_jobs(self, states: Collection[State], limit: int) -> list[OpenJob]:
        jobs = self._open_jobs(
            f"{FREE_JOBS} AND state IN ({placeholders_for(states)}) ORDER BY job_no LIMIT ?", (*states, limit)
        )
        self._execute_rows(
            f"UPDATE jobs SET run_no = {self._run_no} FROM {{rows}} WHERE job_no = column1",
            [(job.job_no,) for job in jobs],
            otherwise=InternalError("a job that was to be claimed is missing"),
        )
        return jobs

    def record_late_result(
        self, run_no: int | None, job_no: int, result: str, request_id: str = "", at: float = 0.0
    ) -> bool:
        submission_no = self._last_ambiguous(job_no, run_no)
        if submission_no is None or (request_id and self._has_request_id(request_id)):
            return False
        self._execute(
            "UPDATE submissions SET result = ?, request_id = nullif(?, '') WHERE submission_no = ?",
            (result, request_id, submission_no),
        )
        if result != "accepted":
            self._execute(
                "UPDATE runs SET charged = charged - 1, server_errors = server_errors + ? WHERE run_no = ?",
                (int(result == "server_error"), run_no),
            )
        if self._is_in_doubt_about(job_no, submission_no):
            if result == "accepted":
                assignments = f"request_id = ?, accepted_at = ?, {_NO_END}"
                self._transition(job_no, Action.ADOPT, State.AMBIGUOUS, assignments, (request_id, at))
            else:
                self._transition(job_no, Action.RESUBMIT, State.AMBIGUOUS, _NO_END)
        return True

    def record_late_doubt(self, run_no: int, job_no: int, error: ErrorInfo, answer: bytes) -> None:
        submission_no = self._last_ambiguous(job_no, run_no)
        if submission_no is None or not self._is_in_doubt_about(job_no, submission_no):
            return
        self._execute("UPDATE submissions SET answer = ? WHERE submission_no = ?", (answer or None, submission_no))
        sql = "UPDATE jobs SET error_kind = ?, error_message = ? WHERE job_no = ?"
        self._execute(sql, (error.kind, error.message, job_no))

    def _last_ambiguous(self, job_no: int, run_no: int | None) -> int | None:
        """Return the number of the job's last ambiguous submission, of this run unless it is None."""
        sql = "SELECT max(submission_no) FROM submissions WHERE job_no = ? AND result = 'ambiguous'"
        if run_no is None:
            (submission_no,) = self._row(sql, (job_no,))
        else:
            (submission_no,) = self._row(f"{sql} AND run_no = ?", (job_no, run_no))
        return submission_no  # type: ignore[no-any-return]

    def _is_in_doubt_about(self, job_no: int, submission_no: int) -> bool:
        """Return whether a job is ambiguous because of this submission, its last one."""
        row = self._row(
            "SELECT 1 FROM jobs WHERE job_no = ? AND state = 'ambiguous'"
            " AND ? = (SELECT max(submission_no) FROM submissions WHERE job_no = ?)",
            (job_no, submission_no, job_no),
        )
        return row is not None

    def rate_events(self, after_event_no: int) -> list[tuple[int, bytes]]:
        sql = "SELECT event_no, data FROM rate_events WHERE event_no > ? ORDER BY event_no"
        return list(self._rows(sql, (after_event_no,)))

    def add_rate_events(self, data: bytes) -> int:
        (event_no,) = self._row(
            "INSERT INTO rate_events VALUES ((SELECT coalesce(max(event_no), 0) + 1 FROM rate_events), ?)"
            " RETURNING event_no",
            (data,),
        )
        if event_no % DELETED_RATE_EVENTS == 0:
            self._execute("DELETE FROM rate_events WHERE event_no <= ?", (event_no - MAX_RATE_EVENTS,))
        return int(event_no)

    def reserve_charges(self, count: int, max_charges: int, *, count_server_errors: bool) -> Reservation:
        self._count()  # The transaction may have other operations, such as a refund.
        charged, server_errors, reserved = self._row(
            "SELECT coalesce(sum(charged), 0), coalesce(sum(server_errors), 0),"
            f" coalesce(sum(reserved) FILTER (WHERE {LIVE_RUNS}), 0) FROM runs"
        )
        if self._uncounted is None:  # Only `krea-batch recover` adds submissions without a run.
            charges = self.charges()
            self._uncounted = charges.charged + charges.unknown - charged, charges.server_errors - server_errors
        counted = charged + self._uncounted[0]
        if count_server_errors:
            counted += server_errors + self._uncounted[1]
        granted = max(0, min(count, max_charges - counted - reserved))
        self._execute("UPDATE runs SET reserved = reserved + ? WHERE run_no = ?", (granted, self._run_no))
        (in_flight,) = self._row("SELECT count(*) FROM submissions WHERE result IS NULL")
        return Reservation(granted, exhausted=counted - in_flight >= max_charges)

    def return_charges(self, count: int) -> None:
        sql = "UPDATE runs SET reserved = CASE WHEN reserved > ? THEN reserved - ? ELSE 0 END WHERE run_no = ?"
        self._execute(sql, (count, count, self._run_no))

    # ---- the files ---------------------------------------------------------------------------------------

    def set_results_mark(self, mark: ResultsMark) -> None:
        self._execute(
            "INSERT INTO results_mark VALUES (1, ?, ?) ON CONFLICT (singleton)"
            " DO UPDATE SET size_bytes = excluded.size_bytes, tail_sha256 = excluded.tail_sha256",
            mark,
        )

    # ---- helpers -----------------------------------------------------------------------------------------

    def _transition(
        self, job_no: int, action: Action, old: State, assignments: str = "", values: tuple[Any, ...] = ()
    ) -> None:
        new = path_of(action, old)[-1]
        extra = f", {assignments}" if assignments else ""
        self._execute(
            f"UPDATE jobs SET state = ?{extra}{_disposition_sql(old, new)} WHERE job_no = ? AND state = ?",
            (new.value, *values, job_no, old.value),
            otherwise=_not_in_state([job_no], old, new),
        )

    def _transition_many(
        self,
        action: Action,
        old: State,
        assignments: str,
        rows: Sequence[tuple[Any, ...]],
        returning: str = "",
    ) -> list[tuple[Any, ...]]:
        """Move several jobs; the first column of each row is the job's number. Return these columns of them."""
        new = path_of(action, old)[-1]
        error = _not_in_state([job_no for job_no, *_ in rows], old, new)
        update = (
            f"UPDATE jobs SET state = '{new}', {assignments}{_disposition_sql(old, new)} FROM {{rows}}"
            f" WHERE job_no = column1 AND state = '{old}'"
        )
        if not returning:
            self._execute_rows(update, rows, otherwise=error)
            return []
        found = list(self._fetch_rows(f"{update} RETURNING {returning}", rows))
        if len(found) != len(rows):
            raise error
        return found

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
        return self._row("SELECT 1 FROM submissions WHERE request_id = ?", (request_id,)) is not None

    def _set_result(self, job_no: int, result: str, answer: bytes = b"") -> None:
        self._execute(
            "UPDATE submissions SET result = ?, answer = ? WHERE job_no = ? AND result IS NULL",
            (result, answer or None, job_no),
        )

    def _set_refused(self, job_no: int, result: str) -> None:
        """Set the result of a submission that is not charged."""
        self._set_result(job_no, result)
        self._change.charged -= 1
        self._change.server_errors += result == "server_error"

    def _mark_refunded(self, job_no: int) -> None:
        self._change.charged -= 1
        self._execute(
            "UPDATE submissions SET refunded = 1 WHERE request_id = (SELECT request_id FROM jobs WHERE job_no = ?)",
            (job_no,),
        )
        self._execute("UPDATE jobs SET errors = errors + 1 WHERE job_no = ?", (job_no,))


class _RunChange:
    """What a transaction changes in the counters of its run."""

    __slots__ = ("charged", "intents", "server_errors")

    def __init__(self) -> None:
        self.charged = 0
        self.intents = 0
        self.server_errors = 0


def _not_in_state(job_nos: Sequence[int], old: State, new: State) -> InternalError:
    numbers = ", ".join(map(str, job_nos))
    return InternalError(f"job number {numbers} was to go from {old} to {new}, but is not {old}")


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
