"""Read-only queries of a ledger in a database: the SQL that SQLite and PostgreSQL have in common.

Values stand for `?`. What JSON columns contain is read here and not by the database, because PostgreSQL refuses JSON
with characters that are valid in a prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from krea_batch.jobs import FINAL, RETRYABLE, STATES, Outcome, State
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
    kind_of,
    open_job,
    outcome_of,
    read_files,
    read_media,
    trusted_took_s,
)
from krea_batch.storage.results_rows import ResultsMark

OPEN_JOB_COLUMNS = (
    "job_no, job_id, state, request_id, media, attempts, errors, polls, accepted_at, body, tenant,"
    " coalesce(image_name, '')"
)

DISPOSITIONS = {State.SUCCEEDED: "succeeded"} | {
    state: "unsuccessful" for state, info in STATES.items() if info.unsuccessful
}
"""The column `disposition` by state. Other states have none: this run or a later one resumes the job."""

OPEN_JOBS = "disposition IS NULL"  # must equal the condition of the index jobs_open
UNSUCCESSFUL_JOBS = "disposition = 'unsuccessful'"  # must equal that of jobs_unsuccessful

LIVE_RUNS = "ended_at IS NULL AND fenced = 0"

FREE_JOBS = f"{OPEN_JOBS} AND (run_no IS NULL OR run_no NOT IN (SELECT run_no FROM runs WHERE {LIVE_RUNS}))"
"""The open jobs that no live run has, as SQL."""

RESUMED_AS_THEY_ARE = ", ".join(
    f"'{state}'" for state in State if state.info.resumes_as == state and not state.info.final
)
"""The states in which a run resumes jobs, as an SQL list."""

_FILES_SQL = "CASE WHEN state = 'succeeded' THEN files END"

RETRYABLE_AND_RESUMED = ", ".join(f"'{state}'" for state in RETRYABLE if not state.info.unsuccessful)
"""The retryable states whose jobs a run may also resume without a retry by the user, as an SQL list."""


def read_schema(package: str) -> str:
    """Return the statements of a package's schema.sql, with the dispositions from DISPOSITIONS."""
    cases = " ".join(f"WHEN '{state}' THEN '{disposition}'" for state, disposition in DISPOSITIONS.items())
    return (
        resources.files(package)
        .joinpath("schema.sql")
        .read_text("utf-8")
        .format(disposition=f"CASE state {cases} END")
    )


class SqlQueries(ABC):
    """Read-only queries. See `LedgerReader` for its methods."""

    path: Path

    @abstractmethod
    def _rows(self, sql: str, values: Sequence[Any] = ()) -> Iterable[tuple[Any, ...]]:
        """Return the rows that a statement finds."""

    def _row(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Return the first row that a statement finds; None if it finds none."""
        rows = list(self._rows(sql, values))
        return rows[0] if rows else None

    def ambiguous_job(self, job_no: int) -> OpenJob | None:
        jobs = self._open_jobs("job_no = ? AND state = 'ambiguous'", (job_no,))
        return jobs[0] if jobs else None

    def unsuccessful_jobs(self, states: Collection[State]) -> list[tuple[int, str, State]]:
        rows = self._rows(
            f"SELECT job_no, job_id, state FROM jobs WHERE {UNSUCCESSFUL_JOBS}"
            " UNION ALL SELECT job_no, job_id, state FROM jobs"
            f" WHERE {OPEN_JOBS} AND state IN ({RETRYABLE_AND_RESUMED})"
            " ORDER BY job_no"
        )
        return [(job_no, job_id, State(state)) for job_no, job_id, state in rows if State(state) in states]

    def ambiguous_jobs(self) -> list[AmbiguousJob]:
        rows = list(
            self._rows(
                "SELECT job_no, job_id, submitted_at, coalesce(error_message, 'being submitted'), body FROM jobs"
                f" WHERE {OPEN_JOBS} AND state IN ('ambiguous', 'submitting') ORDER BY job_no"
            )
        )
        # Submissions have no index on their job, so one query reads all answers. The latest of a job comes last.
        sql = "SELECT job_no, answer FROM submissions WHERE answer IS NOT NULL ORDER BY submission_no"
        answers: dict[int, bytes] = dict(self._rows(sql)) if rows else {}
        return [
            AmbiguousJob(job_no, job_id, iso(submitted_at), reason, bytes(body), answers.get(job_no, b""))
            for job_no, job_id, submitted_at, reason, body in rows
        ]

    def latest_run(self) -> RunRecord | None:
        row = self._row(
            "SELECT started_at, rate_per_s, expected_jobs, max_charges, count_server_errors FROM runs"
            " ORDER BY run_no DESC LIMIT 1"
        )
        if row is None:
            return None
        started_at, rate_per_s, expected_jobs, max_charges, count_server_errors = row
        return RunRecord(started_at, rate_per_s, expected_jobs, max_charges, bool(count_server_errors))

    def live_runs(self) -> list[LiveRun]:
        columns = "run_no, worker, started_at, beat, 0, 0, process_lock"
        sql = f"SELECT {columns} FROM runs WHERE {LIVE_RUNS} ORDER BY run_no"
        return [LiveRun(*row) for row in self._rows(sql)]

    def workers(self) -> list[LiveRun]:
        sql = (
            "SELECT run_no, worker, started_at, beat, count(state) FILTER (WHERE state IN"
            " ('submitting', 'accepted', 'finished')), count(state) FILTER (WHERE state = 'pending')"
            f" FROM runs LEFT JOIN (SELECT run_no, state FROM jobs WHERE {OPEN_JOBS}) AS own USING (run_no)"
            f" WHERE {LIVE_RUNS} GROUP BY run_no ORDER BY run_no"
        )
        return [LiveRun(*row) for row in self._rows(sql)]

    def gateway(self) -> str | None:
        row = self._row("SELECT gateway FROM runs ORDER BY run_no DESC LIMIT 1")
        return row[0] if row else None

    def results_bytes(self) -> int | None:
        row = self._row("SELECT results_bytes FROM runs ORDER BY run_no DESC LIMIT 1")
        return row[0] if row else None

    def last_settled_job(self) -> int:
        (job_no,) = self._row(
            f"SELECT CASE WHEN EXISTS (SELECT 1 FROM jobs WHERE {OPEN_JOBS}) THEN 0"
            " ELSE (SELECT coalesce(max(job_no), 0) FROM jobs) END"
        )
        return int(job_no)

    def checkpoint(self) -> bytes | None:
        row = self._row("SELECT data FROM checkpoint")
        return bytes(row[0]) if row else None

    def found_limit(self) -> tuple[bytes, float] | None:
        row = self._row("SELECT data, found_at FROM found_limit")
        return (bytes(row[0]), row[1]) if row else None

    def open_jobs(self, after_job_no: int, limit: int) -> list[OpenJob]:
        condition = f"{OPEN_JOBS} AND state IN ({RESUMED_AS_THEY_ARE}) AND job_no > ? ORDER BY job_no LIMIT ?"
        return self._open_jobs(condition, (after_job_no, limit))

    def _open_jobs(self, condition: str, values: Sequence[Any]) -> list[OpenJob]:
        rows = self._rows(f"SELECT {OPEN_JOB_COLUMNS} FROM jobs WHERE {condition}", values)
        return [open_job(row) for row in rows]

    def latencies(self, limit: int) -> list[tuple[str, float]]:
        rows = self._rows(
            "SELECT body, media, accepted_at, finished_at, EXISTS"
            " (SELECT 1 FROM runs WHERE started_at BETWEEN accepted_at AND finished_at)"
            " FROM jobs WHERE media IS NOT NULL AND finished_at >= accepted_at ORDER BY job_no DESC LIMIT ?",
            (limit,),
        )
        found = []
        for body, media, accepted_at, finished_at, was_interrupted in rows:
            took_s = trusted_took_s(media, accepted_at, finished_at)
            if took_s is None and not was_interrupted:
                took_s = finished_at - accepted_at
            if took_s is not None:
                found.append((kind_of(body), took_s))
        return found[::-1]

    def latest_media_urls(self, limit: int) -> list[str]:
        rows = self._rows("SELECT media FROM jobs WHERE media IS NOT NULL ORDER BY job_no DESC LIMIT ?", (limit,))
        return [url for (media,) in rows for url in read_media(media).media_urls]

    def request_of(self, job_no: int) -> tuple[bytes, bytes, bytes]:
        return self.requests_of([job_no])[job_no]

    def requests_of(self, job_nos: Sequence[int]) -> dict[int, tuple[bytes, bytes, bytes]]:
        sql = f"SELECT job_no, body, fingerprint, metadata FROM jobs WHERE job_no IN ({placeholders_for(job_nos)})"
        return {job_no: (bytes(row[0]), bytes(row[1]), bytes(row[2])) for job_no, *row in self._rows(sql, job_nos)}

    def fingerprints(self, job_ids: Sequence[str]) -> dict[str, bytes]:
        placeholders = placeholders_for(job_ids)
        rows = self._rows(f"SELECT job_id, fingerprint FROM jobs WHERE job_id IN ({placeholders})", job_ids)
        return {job_id: bytes(fingerprint) for job_id, fingerprint in rows}

    def numbered_jobs(self, after_job_no: int, limit: int) -> list[tuple[int, str, bytes]]:
        rows = self._rows(
            "SELECT job_no, job_id, fingerprint FROM jobs WHERE job_no > ? AND ltrim(job_id, '0123456789') = ''"
            " ORDER BY job_no LIMIT ?",
            (after_job_no, limit),
        )
        return [(job_no, job_id, bytes(fingerprint)) for job_no, job_id, fingerprint in rows]

    def outcome(self, job_no: int) -> Outcome:
        row = self._row(f"SELECT {OUTCOME_COLUMNS} FROM jobs WHERE job_no = ?", (job_no,))
        return outcome_of(row)

    def find_job(self, job_id: str) -> Outcome | None:
        row = self._row(f"SELECT {OUTCOME_COLUMNS} FROM jobs WHERE job_id = ?", (job_id,))
        return outcome_of(row) if row else None

    def find_jobs(self, job_ids: Sequence[str]) -> list[Outcome]:
        sql = f"SELECT {OUTCOME_COLUMNS} FROM jobs WHERE job_id IN ({placeholders_for(job_ids)}) ORDER BY job_no"
        return [outcome_of(row) for row in self._rows(sql, job_ids)]

    def outcomes(self, after_job_no: int, limit: int) -> tuple[list[Outcome], int | None]:
        rows = list(
            self._rows(
                f"SELECT {OUTCOME_COLUMNS}, job_no FROM jobs WHERE job_no > ? ORDER BY job_no LIMIT ?",
                (after_job_no, limit),
            )
        )
        ended = [outcome_of(row[:-1]) for row in rows if State(row[1]) in FINAL]
        return ended, rows[-1][-1] if rows else None

    def jobs_page(self, after_job_no: int, limit: int) -> list[tuple[int, Outcome]]:
        sql = f"SELECT {OUTCOME_COLUMNS}, job_no FROM jobs WHERE job_no > ? ORDER BY job_no LIMIT ?"
        return [(row[-1], outcome_of(row[:-1])) for row in self._rows(sql, (after_job_no, limit))]

    def counts(self) -> dict[State, int]:
        rows = self._rows(
            f"SELECT state, count(*) FROM jobs WHERE {OPEN_JOBS} GROUP BY state UNION ALL"
            f" SELECT state, count(*) FROM jobs WHERE {UNSUCCESSFUL_JOBS} GROUP BY state"
        )
        counts = {State(state): count for state, count in rows}
        # Jobs are never deleted, so the highest number is their count, which SQLite finds without a scan.
        (total,) = self._row("SELECT coalesce(max(job_no), 0) FROM jobs")
        if succeeded := total - sum(counts.values()):
            counts[State.SUCCEEDED] = succeeded
        return counts

    def submission_count(self) -> int:
        # Submissions are never deleted, so the highest number is their count.
        (count,) = self._row("SELECT coalesce(max(submission_no), 0) FROM submissions")
        return int(count)

    def top_errors(self, limit: int) -> list[tuple[str, int]]:
        sql = (
            f"SELECT message, count(*) FROM (SELECT error_message AS message FROM jobs WHERE {UNSUCCESSFUL_JOBS}"
            " UNION ALL"
            f" SELECT error_message FROM jobs WHERE {OPEN_JOBS} AND error_message IS NOT NULL) AS messages"
            " GROUP BY message ORDER BY 2 DESC, 1 LIMIT ?"
        )
        return list(self._rows(sql, (limit,)))

    def submissions_page(self, after_submission_no: int, limit: int) -> list[tuple[int, float, str]]:
        sql = (
            "SELECT submission_no, sent_at, coalesce(result, 'in_flight') FROM submissions"
            " WHERE submission_no > ? ORDER BY submission_no LIMIT ?"
        )
        return list(self._rows(sql, (after_submission_no, limit)))

    def timings_page(self, after_job_no: int, limit: int) -> list[JobTiming]:
        sql = (
            "SELECT job_no, accepted_at, finished_at, stored_at, media, polls FROM jobs"
            " WHERE job_no > ? AND accepted_at IS NOT NULL ORDER BY job_no LIMIT ?"
        )
        return [
            JobTiming(
                job_no, accepted_at, finished_at, stored_at, trusted_took_s(media, accepted_at, finished_at), polls
            )
            for job_no, accepted_at, finished_at, stored_at, media, polls in self._rows(sql, (after_job_no, limit))
        ]

    def has_succeeded(self) -> bool:
        return self._row("SELECT 1 FROM jobs WHERE state = 'succeeded' LIMIT 1") is not None

    def charges(self) -> Charges:
        row = self._row(
            "SELECT count(*) FILTER (WHERE result = 'accepted' AND refunded = 0),"
            " count(*) FILTER (WHERE refunded = 1),"
            " count(*) FILTER (WHERE result = 'ambiguous' OR result IS NULL),"
            " count(*) FILTER (WHERE result = 'server_error') FROM submissions"
        )
        return Charges(*row)

    def submission_of(self, request_id: str) -> str | None:
        sql = "SELECT job_id FROM submissions JOIN jobs USING (job_no) WHERE submissions.request_id = ?"
        row = self._row(sql, (request_id,))
        return row[0] if row else None

    def find_numbered_job(self, job_id: str) -> tuple[int, State] | None:
        row = self._row("SELECT job_no, state FROM jobs WHERE job_id = ?", (job_id,))
        return (row[0], State(row[1])) if row else None

    def known_jobs(self, job_ids: Sequence[str]) -> dict[str, KnownJob]:
        rows = self._rows(
            "SELECT job_id, job_no, state, attempts, request_id FROM jobs"
            f" WHERE job_id IN ({placeholders_for(job_ids)})",
            job_ids,
        )
        return {
            job_id: KnownJob(job_no, State(state), attempts, request_id)
            for job_id, job_no, state, attempts, request_id in rows
        }

    def known_request_ids(self, request_ids: Sequence[str]) -> dict[str, int]:
        placeholders = placeholders_for(request_ids)
        sql = f"SELECT request_id, job_no FROM submissions WHERE request_id IN ({placeholders})"
        return dict(self._rows(sql, request_ids))

    def accepted_files(self, names: Sequence[str]) -> dict[str, tuple[str, ...] | None]:
        placeholders = placeholders_for(names)
        rows = self._rows(
            f"SELECT job_id, {_FILES_SQL} FROM jobs WHERE job_id IN ({placeholders}) AND request_id IS NOT NULL"
            f" AND image_name IS NULL UNION ALL SELECT image_name, {_FILES_SQL} FROM jobs"
            f" WHERE image_name IN ({placeholders}) AND image_name IS NOT NULL AND request_id IS NOT NULL",
            (*names, *names),
        )
        return _paths_by_name(rows)

    def accepted_files_folded(self, folded_names: Collection[str]) -> dict[str, tuple[str, ...] | None]:
        rows = self._rows(f"SELECT coalesce(image_name, job_id), {_FILES_SQL} FROM jobs WHERE request_id IS NOT NULL")
        return _paths_by_name((folded, files) for name, files in rows if (folded := name.casefold()) in folded_names)

    def accepted_ids(self, job_ids: Sequence[str]) -> set[str]:
        placeholders = placeholders_for(job_ids)
        sql = f"SELECT job_id FROM jobs WHERE job_id IN ({placeholders}) AND request_id IS NOT NULL"
        return {job_id for (job_id,) in self._rows(sql, job_ids)}

    def job_counts_after(self, job_no: int) -> dict[State, int]:
        rows = self._rows("SELECT state, count(*) FROM jobs WHERE job_no > ? GROUP BY state", (job_no,))
        return {State(state): count for state, count in rows}

    def last_job_no(self) -> int:
        (job_no,) = self._row("SELECT coalesce(max(job_no), 0) FROM jobs")
        return int(job_no)

    def has_free_jobs(self, count: int) -> bool:
        sql = f"SELECT 1 FROM jobs WHERE {FREE_JOBS} AND state = 'pending' LIMIT 1 OFFSET ?"
        return self._row(sql, (count - 1,)) is not None

    def has_unfinished_jobs(self) -> bool:
        sql = f"SELECT 1 FROM jobs WHERE {OPEN_JOBS} AND state IN ('submitting', {RESUMED_AS_THEY_ARE}) LIMIT 1"
        return self._row(sql) is not None

    def has_jobs(self) -> bool:
        return self._row("SELECT 1 FROM jobs LIMIT 1") is not None

    def results_mark(self) -> ResultsMark | None:
        row = self._row("SELECT size_bytes, tail_sha256 FROM results_mark")
        return ResultsMark(row[0], bytes(row[1])) if row else None

    def unsubmitted_names(self) -> Iterator[str]:
        rows = self._rows(
            f"SELECT coalesce(image_name, job_id) FROM jobs WHERE {OPEN_JOBS}"
            " AND state = 'pending' AND request_id IS NULL"
        )
        return (name for (name,) in rows)


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


def placeholders_for(values: Collection[object]) -> str:
    """Return the placeholders of a list in SQL, which finds nothing if there are no values."""
    return ",".join("?" * len(values)) or "NULL"
