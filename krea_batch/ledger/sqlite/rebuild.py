"""Adds to the ledger what results.jsonl knows and the ledger does not.

A row says how a job ended, so the job gets that state without the table of transitions. A row does not say
everything: of several submissions, only the last accepted one is known. It also does not say how often the job ended
in ERROR. The number of submissions is taken for that, so that the job is not submitted again unless the user asks for
it.
"""

from __future__ import annotations

import msgspec

from krea_batch.errors import RunDirError
from krea_batch.jobs import Outcome, State
from krea_batch.ledger.consistency import RowHead, is_later
from krea_batch.ledger.rows import KnownJob, seconds_of
from krea_batch.ledger.sql_queries import DISPOSITIONS
from krea_batch.ledger.sqlite.sqlite_ledger import SqliteLedger
from krea_batch.rules.verdicts import SERVER_ERRORS
from krea_batch.storage.run_dir import IMAGES, TAKEN_SUFFIX


def rebuild_job(ledger: SqliteLedger, row: Outcome, body: bytes, fingerprint: bytes) -> int | None:
    """Add the job of a row, or update it if the row is later than the ledger. Idempotent.

    Return the job's number, or None if the ledger knew the job as it is in the row, or in a later state.

    `body` is the row's request, encoded as it was sent. Raises RunDirError if the ledger has another request under
    the id, or another job with the request_id: the row is of another run.
    """
    job = ledger.known_jobs([row.id]).get(row.id)
    owner = ledger.submission_of(row.request_id) if row.request_id else None
    is_other_request = job is not None and msgspec.json.decode(ledger.request_of(job.job_no)[0]) != row.request
    if is_other_request or (owner is not None and owner != row.id):
        what = f"request_id {row.request_id}" if owner not in (None, row.id) else "id"
        raise RunDirError(
            ledger.path,
            f"job {row.id!r} of results.jsonl is not the job that the ledger has under its {what}: the two files"
            " belong to different runs",
            "move one of them away",
        )
    head = RowHead(row.id, row.status, row.request_id, row.attempts)
    if job is None:
        job_no = _insert(ledger, row, body, fingerprint)
    elif is_later(head, job, request_known=owner is not None):
        job_no = job.job_no
        _update(ledger, job_no, row)
    else:
        return None
    _record_submissions(ledger, job_no, row, job, request_known=owner is not None)
    return job_no


_COLUMNS = (
    "state", "disposition", "request_id", "files", "attempts", "errors", "polls", "error_kind", "error_message",
    "submitted_at", "accepted_at", "finished_at", "stored_at",
)  # fmt: skip


def _values(row: Outcome) -> tuple[object, ...]:
    """Return the values of _COLUMNS."""
    state = row.status
    return (
        state.value, DISPOSITIONS.get(state), row.request_id, msgspec.json.encode(row.files).decode(), row.attempts,
        row.attempts if state is State.ERRORED else 0, row.polls,
        row.error.kind if row.error else None, row.error.message if row.error else None,
        *map(seconds_of, (row.submitted_at, row.accepted_at, row.finished_at, row.stored_at)),
    )  # fmt: skip


def _insert(ledger: SqliteLedger, row: Outcome, body: bytes, fingerprint: bytes) -> int:
    columns = ("job_id", "body", "fingerprint", "metadata", "image_name", *_COLUMNS)
    metadata = msgspec.json.encode(row.metadata)
    cursor = ledger._sql.execute(
        f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
        (row.id, body, fingerprint, metadata, _image_name_of(row), *_values(row)),
    )
    return int(cursor.lastrowid or 0)


def _image_name_of(row: Outcome) -> str | None:
    """Return the name of the job's first image if it is not the id, as far as a row has images."""
    folder = f"{IMAGES}/"
    if not row.files or not row.files[0].path.startswith(folder):
        return None
    name = row.files[0].path.removeprefix(folder).rpartition(".")[0]
    preferred = TAKEN_SUFFIX.sub("", name)
    return None if row.id in (name, preferred) else preferred


def _update(ledger: SqliteLedger, job_no: int, row: Outcome) -> None:
    keep = {"request_id": "coalesce(?, request_id)", "errors": "max(errors, ?)"}
    assignments = ", ".join(f"{column} = {keep.get(column, '?')}" for column in _COLUMNS)
    ledger._sql.execute(f"UPDATE jobs SET {assignments} WHERE job_no = ?", (*_values(row), job_no))


def _record_submissions(
    ledger: SqliteLedger, job_no: int, row: Outcome, job: KnownJob | None, *, request_known: bool
) -> None:
    """Record the submissions that the row proves, and their results.

    The ledger may have the latest one without its result: then `job` has as many attempts as the row.
    """
    latest_is_accepted = row.status.info.charged is True or row.status is State.ERRORED
    open_submission = job is not None and job.attempts == row.attempts
    sent_at = seconds_of(row.submitted_at) or seconds_of(row.accepted_at) or 0.0
    refunded = int(row.status is State.ERRORED)
    if row.request_id and not request_known:
        values = ("accepted", row.request_id, refunded)
        if not (latest_is_accepted and open_submission and _settle(ledger, job_no, *values)):
            _add(ledger, job_no, sent_at, *values)
    elif row.request_id and refunded:
        ledger._sql.execute("UPDATE submissions SET refunded = 1 WHERE request_id = ?", (row.request_id,))
    if not latest_is_accepted and row.attempts:
        result = "ambiguous" if row.status.info.charged is not False else _result_of_refusal(row)
        if not (open_submission and _settle(ledger, job_no, result, None, 0)):
            _add(ledger, job_no, sent_at, result, None, 0)


def _result_of_refusal(row: Outcome) -> str:
    is_server_error = row.error and row.error.kind in {f"http_{status}" for status in SERVER_ERRORS}
    return "server_error" if is_server_error else "refused"


def _settle(ledger: SqliteLedger, job_no: int, result: str, request_id: str | None, refunded: int) -> bool:
    """Set the result of the latest submission if it is unknown. Return False if there is no such submission."""
    cursor = ledger._sql.execute(
        "UPDATE submissions SET result = ?, request_id = ?, refunded = ? WHERE submission_no ="
        " (SELECT max(submission_no) FROM submissions WHERE job_no = ?)"
        " AND (result IS NULL OR result = 'ambiguous')",
        (result, request_id, refunded, job_no),
    )
    return cursor.rowcount == 1


def _add(
    ledger: SqliteLedger, job_no: int, sent_at: float, result: str, request_id: str | None, refunded: int
) -> None:
    ledger._sql.execute(
        "INSERT INTO submissions (job_no, sent_at, result, request_id, refunded) VALUES (?, ?, ?, ?, ?)",
        (job_no, sent_at, result, request_id, refunded),
    )
