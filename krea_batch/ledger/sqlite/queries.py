"""Read-only queries of the ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from krea_batch.errors import LedgerError
from krea_batch.jobs import FINAL, RETRYABLE, Outcome, State
from krea_batch.ledger.rows import (
    OUTCOME_COLUMNS,
    AmbiguousJob,
    Charges,
    JobTiming,
    KnownJob,
    LiveRun,
    OpenJob,
    RunRecord,
    iso,
    open_job,
    outcome_of,
    read_files,
    read_media,
)
from krea_batch.ledger.sqlite.database import next_step_of
from krea_batch.storage.results_rows import ResultsMark

_BODY_TEXT = "CAST(body AS TEXT)"
KIND_SQL = f"json_extract({_BODY_TEXT}, '$.aspect_ratio') || ' ' || json_extract({_BODY_TEXT}, '$.creativity')"
OPEN_JOB_COLUMNS = (
    "job_no, job_id, state, request_id, media, attempts, errors, polls, accepted_at,"
    f" coalesce({KIND_SQL}, ''), tenant, coalesce(image_name, '')"
)

OPEN_JOBS = "disposition IS NULL"  # must equal the condition of the index jobs_open
UNSUCCESSFUL_JOBS = "disposition = 'unsuccessful'"  # must equal that of jobs_unsuccessful

LIVE_RUNS = "ended_at IS NULL AND NOT fenced"

FREE_JOBS = f"{OPEN_JOBS} AND (run_no IS NULL OR run_no NOT IN (SELECT run_no FROM runs WHERE {LIVE_RUNS}))"
"""The open jobs that no live run has, as SQL."""

OBSERVED_S = "finished_at - accepted_at"
TRUSTED_TOOK_S = (
    f"CASE WHEN json_extract(media, '$.took_s') BETWEEN 0 AND {OBSERVED_S} THEN json_extract(media, '$.took_s') END"
)
"""The gateway's own latency of a job, as SQL; NULL if it reported none, or one that our clock contradicts."""

RESUMED_AS_THEY_ARE = ", ".join(
    f"'{state}'" for state in State if state.info.resumes_as == state and not state.info.final
)
"""The states in which a run resumes jobs, as an SQL list."""

_FILES_SQL = "CASE WHEN state = 'succeeded' THEN files END"

RETRYABLE_AND_RESUMED = ", ".join(f"'{state}'" for state in RETRYABLE if not state.info.unsuccessful)
"""The retryable states whose jobs a run may also resume without a retry by the user, as an SQL list."""


class SqliteQueries:
    """Read-only queries of one run's SQLite file. See `LedgerReader` for its methods."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._sql = connection

    def close(self) -> None:
        self._sql.close()

    def read(self, *queries: Callable[[Self], Any]) -> list[Any]:
        with self.errors():
            if self._sql.in_transaction:  # a snapshot is
                return [query(self) for query in queries]
            self._sql.execute("BEGIN")
            try:
                return [query(self) for query in queries]
            finally:
                self._sql.execute("ROLLBACK")

    def ambiguous_job(self, job_no: int) -> OpenJob | None:
        jobs = self._open_jobs("job_no = ? AND state = 'ambiguous'", (job_no,))
        return jobs[0] if jobs else None

    def unsuccessful_jobs(self, states: Collection[State]) -> list[tuple[int, str, State]]:
        rows = self._sql.execute(
            f"SELECT job_no, job_id, state FROM jobs WHERE {UNSUCCESSFUL_JOBS}"
            " UNION ALL SELECT job_no, job_id, state FROM jobs"
            f" WHERE {OPEN_JOBS} AND state IN ({RETRYABLE_AND_RESUMED})"
            " ORDER BY job_no"
        )
        return [(job_no, job_id, State(state)) for job_no, job_id, state in rows if State(state) in states]

    def ambiguous_jobs(self) -> list[AmbiguousJob]:
        rows = self._sql.execute(
            "SELECT job_no, job_id, submitted_at, coalesce(error_message, 'being submitted'), body FROM jobs"
            f" WHERE {OPEN_JOBS} AND state IN ('ambiguous', 'submitting') ORDER BY job_no"
        ).fetchall()
        # Submissions have no index on their job, so one query reads all answers. The latest of a job comes last.
        sql = "SELECT job_no, answer FROM submissions WHERE answer IS NOT NULL ORDER BY submission_no"
        answers: dict[int, bytes] = dict(self._sql.execute(sql)) if rows else {}
        return [
            AmbiguousJob(job_no, job_id, iso(submitted_at), reason, bytes(body), answers.get(job_no, b""))
            for job_no, job_id, submitted_at, reason, body in rows
        ]

    def latest_run(self) -> RunRecord | None:
        row = self._sql.execute(
            "SELECT started_at, rate_per_s, expected_jobs, max_charges, count_server_errors FROM runs"
            " ORDER BY run_no DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        started_at, rate_per_s, expected_jobs, max_charges, count_server_errors = row
        return RunRecord(started_at, rate_per_s, expected_jobs, max_charges, bool(count_server_errors))

    def live_runs(self) -> list[LiveRun]:
        sql = f"SELECT run_no, worker, started_at, beat FROM runs WHERE {LIVE_RUNS} ORDER BY run_no"
        return [LiveRun(*row) for row in self._sql.execute(sql)]

    def workers(self) -> list[LiveRun]:
        sql = (
            "SELECT run_no, worker, started_at, beat, count(state) FILTER (WHERE state IN"
            " ('submitting', 'accepted', 'finished')), count(state) FILTER (WHERE state = 'pending')"
            f" FROM runs LEFT JOIN (SELECT run_no, state FROM jobs WHERE {OPEN_JOBS}) USING (run_no)"
            f" WHERE {LIVE_RUNS} GROUP BY run_no ORDER BY run_no"
        )
        return [LiveRun(*row) for row in self._sql.execute(sql)]

    def gateway(self) -> str | None:
        row = self._sql.execute("SELECT gateway FROM runs ORDER BY run_no DESC LIMIT 1").fetchone()
        return row[0] if row else None

    def results_bytes(self) -> int | None:
        row = self._sql.execute("SELECT results_bytes FROM runs ORDER BY run_no DESC LIMIT 1").fetchone()
        return row[0] if row else None

    def last_settled_job(self) -> int:
        (job_no,) = self._sql.execute(
            f"SELECT CASE WHEN EXISTS (SELECT 1 FROM jobs WHERE {OPEN_JOBS}) THEN 0"
            " ELSE (SELECT coalesce(max(job_no), 0) FROM jobs) END"
        ).fetchone()
        return int(job_no)

    def checkpoint(self) -> bytes | None:
        row = self._sql.execute("SELECT data FROM checkpoint").fetchone()
        return bytes(row[0]) if row else None

    def found_limit(self) -> tuple[bytes, float] | None:
        row = self._sql.execute("SELECT data, found_at FROM found_limit").fetchone()
        return (bytes(row[0]), row[1]) if row else None

    def open_jobs(self, after_job_no: int, limit: int) -> list[OpenJob]:
        condition = f"{OPEN_JOBS} AND state IN ({RESUMED_AS_THEY_ARE}) AND job_no > ? ORDER BY job_no LIMIT ?"
        return self._open_jobs(condition, (after_job_no, limit))

    def _open_jobs(self, condition: str, values: Sequence[Any]) -> list[OpenJob]:
        rows = self._sql.execute(f"SELECT {OPEN_JOB_COLUMNS} FROM jobs WHERE {condition}", values)
        return [open_job(row) for row in rows]

    def latencies(self, limit: int) -> list[tuple[str, float]]:
        rows = self._sql.execute(
            f"SELECT coalesce({KIND_SQL}, ''), coalesce({TRUSTED_TOOK_S}, CASE WHEN NOT EXISTS (SELECT 1 FROM runs"
            f" WHERE started_at BETWEEN accepted_at AND finished_at) THEN {OBSERVED_S} END)"
            " FROM jobs WHERE media IS NOT NULL ORDER BY job_no DESC LIMIT ?",
            (limit,),
        )
        return [(kind, took_s) for kind, took_s in rows if took_s is not None and took_s >= 0][::-1]

    def latest_media_urls(self, limit: int) -> list[str]:
        rows = self._sql.execute(
            "SELECT media FROM jobs WHERE media IS NOT NULL ORDER BY job_no DESC LIMIT ?", (limit,)
        )
        return [url for (media,) in rows for url in read_media(media).media_urls]

    def request_of(self, job_no: int) -> tuple[bytes, bytes, bytes]:
        row = self._sql.execute("SELECT body, fingerprint, metadata FROM jobs WHERE job_no = ?", (job_no,)).fetchone()
        return bytes(row[0]), bytes(row[1]), bytes(row[2])

    def fingerprints(self, job_ids: Sequence[str]) -> dict[str, bytes]:
        placeholders = ",".join("?" * len(job_ids))
        rows = self._sql.execute(f"SELECT job_id, fingerprint FROM jobs WHERE job_id IN ({placeholders})", job_ids)
        return {job_id: bytes(fingerprint) for job_id, fingerprint in rows}

    def numbered_jobs(self, after_job_no: int, limit: int) -> list[tuple[int, str, bytes]]:
        rows = self._sql.execute(
            "SELECT job_no, job_id, fingerprint FROM jobs WHERE job_no > ? AND job_id NOT GLOB '*[^0-9]*'"
            " ORDER BY job_no LIMIT ?",
            (after_job_no, limit),
        )
        return [(job_no, job_id, bytes(fingerprint)) for job_no, job_id, fingerprint in rows]

    def outcome(self, job_no: int) -> Outcome:
        row = self._sql.execute(f"SELECT {OUTCOME_COLUMNS} FROM jobs WHERE job_no = ?", (job_no,)).fetchone()
        return outcome_of(row)

    def find_job(self, job_id: str) -> Outcome | None:
        row = self._sql.execute(f"SELECT {OUTCOME_COLUMNS} FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        return outcome_of(row) if row else None

    def find_jobs(self, job_ids: Sequence[str]) -> list[Outcome]:
        sql = f"SELECT {OUTCOME_COLUMNS} FROM jobs WHERE job_id IN ({','.join('?' * len(job_ids))})"
        return [outcome_of(row) for row in self._sql.execute(sql, job_ids)]

    def outcomes(self, after_job_no: int, limit: int) -> tuple[list[Outcome], int | None]:
        rows = self._sql.execute(
            f"SELECT {OUTCOME_COLUMNS}, job_no FROM jobs WHERE job_no > ? ORDER BY job_no LIMIT ?",
            (after_job_no, limit),
        ).fetchall()
        ended = [outcome_of(row[:-1]) for row in rows if State(row[1]) in FINAL]
        return ended, rows[-1][-1] if rows else None

    def jobs_page(self, after_job_no: int, limit: int) -> list[tuple[int, Outcome]]:
        sql = f"SELECT {OUTCOME_COLUMNS}, job_no FROM jobs WHERE job_no > ? ORDER BY job_no LIMIT ?"
        return [(row[-1], outcome_of(row[:-1])) for row in self._sql.execute(sql, (after_job_no, limit))]

    def counts(self) -> dict[State, int]:
        rows = self._sql.execute(
            f"SELECT state, count(*) FROM jobs WHERE {OPEN_JOBS} GROUP BY state UNION ALL"
            f" SELECT state, count(*) FROM jobs WHERE {UNSUCCESSFUL_JOBS} GROUP BY state"
        )
        counts = {State(state): count for state, count in rows}
        # Jobs are never deleted, so the highest number is their count, which SQLite finds without a scan.
        (total,) = self._sql.execute("SELECT coalesce(max(job_no), 0) FROM jobs").fetchone()
        if succeeded := total - sum(counts.values()):
            counts[State.SUCCEEDED] = succeeded
        return counts

    def submission_count(self) -> int:
        # Submissions are never deleted, so the highest number is their count.
        (count,) = self._sql.execute("SELECT coalesce(max(submission_no), 0) FROM submissions").fetchone()
        return int(count)

    def top_errors(self, limit: int) -> list[tuple[str, int]]:
        sql = (
            f"SELECT message, count(*) FROM (SELECT error_message AS message FROM jobs WHERE {UNSUCCESSFUL_JOBS}"
            " UNION ALL"
            f" SELECT error_message FROM jobs WHERE {OPEN_JOBS} AND error_message IS NOT NULL)"
            " GROUP BY message ORDER BY 2 DESC, 1 LIMIT ?"
        )
        return self._sql.execute(sql, (limit,)).fetchall()

    def submissions_page(self, after_submission_no: int, limit: int) -> list[tuple[int, float, str]]:
        sql = (
            "SELECT submission_no, sent_at, coalesce(result, 'in_flight') FROM submissions"
            " WHERE submission_no > ? ORDER BY submission_no LIMIT ?"
        )
        return self._sql.execute(sql, (after_submission_no, limit)).fetchall()

    def timings_page(self, after_job_no: int, limit: int) -> list[JobTiming]:
        sql = (
            f"SELECT job_no, accepted_at, finished_at, stored_at, {TRUSTED_TOOK_S}, polls FROM jobs"
            " WHERE job_no > ? AND accepted_at IS NOT NULL ORDER BY job_no LIMIT ?"
        )
        return [JobTiming(*row) for row in self._sql.execute(sql, (after_job_no, limit))]

    def has_succeeded(self) -> bool:
        return self._sql.execute("SELECT 1 FROM jobs WHERE state = 'succeeded' LIMIT 1").fetchone() is not None

    def charges(self) -> Charges:
        row = self._sql.execute(
            "SELECT count(*) FILTER (WHERE result = 'accepted' AND NOT refunded),"
            " count(*) FILTER (WHERE refunded),"
            " count(*) FILTER (WHERE result = 'ambiguous' OR result IS NULL),"
            " count(*) FILTER (WHERE result = 'server_error') FROM submissions"
        ).fetchone()
        return Charges(*row)

    def submission_of(self, request_id: str) -> str | None:
        sql = "SELECT job_id FROM submissions JOIN jobs USING (job_no) WHERE submissions.request_id = ?"
        row = self._sql.execute(sql, (request_id,)).fetchone()
        return row[0] if row else None

    def find_numbered_job(self, job_id: str) -> tuple[int, State] | None:
        row = self._sql.execute("SELECT job_no, state FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        return (row[0], State(row[1])) if row else None

    def known_jobs(self, job_ids: Sequence[str]) -> dict[str, KnownJob]:
        rows = self._sql.execute(
            "SELECT job_id, job_no, state, attempts, request_id FROM jobs"
            f" WHERE job_id IN ({','.join('?' * len(job_ids))})",
            job_ids,
        )
        return {
            job_id: KnownJob(job_no, State(state), attempts, request_id)
            for job_id, job_no, state, attempts, request_id in rows
        }

    def known_request_ids(self, request_ids: Sequence[str]) -> dict[str, int]:
        placeholders = ",".join("?" * len(request_ids))
        sql = f"SELECT request_id, job_no FROM submissions WHERE request_id IN ({placeholders})"
        return dict(self._sql.execute(sql, request_ids).fetchall())

    def accepted_files(self, names: Sequence[str]) -> dict[str, tuple[str, ...] | None]:
        placeholders = ",".join(f"?{n}" for n in range(1, len(names) + 1))
        rows = self._sql.execute(
            f"SELECT job_id, {_FILES_SQL} FROM jobs WHERE job_id IN ({placeholders}) AND request_id IS NOT NULL"
            f" AND image_name IS NULL UNION ALL SELECT image_name, {_FILES_SQL} FROM jobs"
            f" WHERE image_name IN ({placeholders}) AND image_name IS NOT NULL AND request_id IS NOT NULL",
            names,
        )
        return _paths_by_name(rows)

    def accepted_files_folded(self, folded_names: Collection[str]) -> dict[str, tuple[str, ...] | None]:
        rows = self._sql.execute(
            f"SELECT coalesce(image_name, job_id), {_FILES_SQL} FROM jobs WHERE request_id IS NOT NULL"
        )
        return _paths_by_name((folded, files) for name, files in rows if (folded := name.casefold()) in folded_names)

    def accepted_ids(self, job_ids: Sequence[str]) -> set[str]:
        placeholders = ",".join("?" * len(job_ids))
        sql = f"SELECT job_id FROM jobs WHERE job_id IN ({placeholders}) AND request_id IS NOT NULL"
        return {job_id for (job_id,) in self._sql.execute(sql, job_ids)}

    def job_counts_after(self, job_no: int) -> dict[State, int]:
        rows = self._sql.execute("SELECT state, count(*) FROM jobs WHERE job_no > ? GROUP BY state", (job_no,))
        return {State(state): count for state, count in rows}

    def last_job_no(self) -> int:
        (job_no,) = self._sql.execute("SELECT coalesce(max(job_no), 0) FROM jobs").fetchone()
        return int(job_no)

    def find_damage(self) -> str | None:
        """Return the first inconsistency that SQLite finds in the file; None if there is none."""
        try:
            (problem,) = self._sql.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            problem = str(error)
        return None if problem == "ok" else str(problem)

    def has_free_jobs(self, count: int) -> bool:
        sql = f"SELECT 1 FROM jobs WHERE {FREE_JOBS} AND state = 'pending' LIMIT 1 OFFSET ?"
        return self._sql.execute(sql, (count - 1,)).fetchone() is not None

    def has_unfinished_jobs(self) -> bool:
        sql = f"SELECT 1 FROM jobs WHERE {OPEN_JOBS} AND state IN ('submitting', {RESUMED_AS_THEY_ARE}) LIMIT 1"
        return self._sql.execute(sql).fetchone() is not None

    def has_jobs(self) -> bool:
        return self._sql.execute("SELECT 1 FROM jobs LIMIT 1").fetchone() is not None

    def results_mark(self) -> ResultsMark | None:
        row = self._sql.execute("SELECT size_bytes, tail_sha256 FROM results_mark").fetchone()
        return ResultsMark(row[0], bytes(row[1])) if row else None

    def unsubmitted_names(self) -> Iterator[str]:
        rows = self._sql.execute(
            f"SELECT coalesce(image_name, job_id) FROM jobs WHERE {OPEN_JOBS}"
            " AND state = 'pending' AND request_id IS NULL"
        )
        return (name for (name,) in rows)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise LedgerError for an error of SQLite."""
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(self.path, f"cannot read the ledger ({error})", next_step_of(error)) from error


def _paths_by_name(rows: Iterable[tuple[str, str | None]]) -> dict[str, tuple[str, ...] | None]:
    """Return the paths of all images by the name of their jobs; None if a job of the name has no images yet."""
    paths: dict[str, tuple[str, ...] | None] = {}
    for name, files in rows:
        others = paths.get(name, ())
        if files is None or others is None:
            paths[name] = None
        else:
            paths[name] = (*others, *(file.path for file in read_files(files)))
    return paths
