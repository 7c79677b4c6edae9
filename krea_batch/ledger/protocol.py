"""What every ledger can do: the transitions of jobs, and read-only questions.

`Ledger` and `LedgerReader` are protocols: a ledger is any object with these methods. A method of a protocol can be
passed to `LedgerWriter.record` without a ledger; `Ledger.counts(ledger)` calls `ledger.counts()`, whatever the class
of the ledger.

Instants are seconds since 1970.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from inspect import isfunction
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from krea_batch.jobs import ErrorInfo, Outcome, State, StoredFile
from krea_batch.ledger.rows import (
    AmbiguousJob,
    Charges,
    JobTiming,
    KnownJob,
    LiveRun,
    OpenJob,
    Reservation,
    RunRecord,
)
from krea_batch.rules.verdicts import Finished
from krea_batch.storage.results_rows import ResultsMark

T = TypeVar("T")
Intent = tuple[str, bytes, bytes, bytes, float, str, str]
"""The arguments of `record_intent`."""
NewJob = tuple[str, bytes, bytes, bytes, str, str]
"""The arguments of `enqueue`."""


def _calls_by_name(protocol: type[T]) -> type[T]:
    """Make each public method of a protocol call the method of the same name of its first argument, a ledger."""
    for name, function in list(vars(protocol).items()):
        if isfunction(function) and not name.startswith("_"):
            setattr(protocol, name, _by_name(function))
    return protocol


def _by_name(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(ledger: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(ledger, method.__name__)(*args, **kwargs)

    return call


@_calls_by_name
class LedgerReader(Protocol):
    """Read-only queries of a ledger. Not thread-safe."""

    path: Path
    """The path of the file, for error messages."""

    def read(self, *queries: Callable[[Self], Any]) -> list[Any]:
        """Return the results of several queries in one transaction. Raises LedgerError if they cannot be read."""

    def close(self) -> None:
        """Close the ledger without a commit."""

    def ambiguous_job(self, job_no: int) -> OpenJob | None:
        """Return the job with this number if it is ambiguous, else None."""

    def unsuccessful_jobs(self, states: Collection[State]) -> list[tuple[int, str, State]]:
        """Return number, id and state of the jobs in these states. All of them must be retryable states."""

    def ambiguous_jobs(self) -> list[AmbiguousJob]:
        """Return the jobs that are ambiguous, or whose POST is pending, or was when its process ended."""

    def latest_run(self) -> RunRecord | None:
        """Return the latest run, or None."""

    def live_runs(self) -> list[LiveRun]:
        """Return the runs that have not ended and are not fenced, in the order of their numbers."""

    def workers(self) -> list[LiveRun]:
        """Return the live runs with the numbers of their jobs. Reads every open job."""

    def gateway(self) -> str | None:
        """Return the gateway of the latest run, as `Settings.origin`, or None."""

    def results_bytes(self) -> int | None:
        """Return the size of results.jsonl if it was complete when the latest run ended, else None."""

    def last_settled_job(self) -> int:
        """Return the number of the last job if no job of the ledger can change any more, else 0."""

    def checkpoint(self) -> bytes | None:
        """Return what `save_checkpoint` recorded last, or None."""

    def found_limit(self) -> tuple[bytes, float] | None:
        """Return what `save_found_limit` recorded last, and when; or None."""

    def open_jobs(self, after_job_no: int, limit: int) -> list[OpenJob]:
        """Return up to `limit` jobs to resume with numbers above `after_job_no`, in order."""

    def latencies(self, limit: int) -> list[tuple[str, float]]:
        """Return kind and latency in seconds of the latest completed jobs, the oldest first.

        The observed latency is the time from the acceptance to the poll that found the job completed. The gateway's
        own value is used if it is at most that; otherwise, the observed one. A job is left out if it needs the
        observed one and a new run started in between, since no poll was sent until then.
        """

    def latest_media_urls(self, limit: int) -> list[str]:
        """Return the URLs of the images of the latest completed jobs."""

    def request_of(self, job_no: int) -> tuple[bytes, bytes, bytes]:
        """Return body, fingerprint and metadata of a job, for another POST."""

    def requests_of(self, job_nos: Sequence[int]) -> dict[int, tuple[bytes, bytes, bytes]]:
        """Return what `request_of` does, for several jobs by their numbers."""

    def fingerprints(self, job_ids: Sequence[str]) -> dict[str, bytes]:
        """Return the fingerprints of those ids that the ledger has."""

    def numbered_jobs(self, after_job_no: int, limit: int) -> list[tuple[int, str, bytes]]:
        """Return job number, id and fingerprint of up to `limit` jobs whose ids are digits, in order."""

    def outcome(self, job_no: int) -> Outcome:
        """Return the outcome of a job."""

    def find_job(self, job_id: str) -> Outcome | None:
        """Return the outcome of a job by its id, whether it has ended or not; None if the ledger does not have it."""

    def find_jobs(self, job_ids: Sequence[str]) -> list[Outcome]:
        """Return the outcomes of those jobs that the ledger has, ended or not, in the order of their numbers."""

    def outcomes(self, after_job_no: int, limit: int) -> tuple[list[Outcome], int | None]:
        """Return a page of outcomes of ended jobs, and the number after which to continue (None at the end)."""

    def jobs_page(self, after_job_no: int, limit: int) -> list[tuple[int, Outcome]]:
        """Return number and outcome of up to `limit` jobs, ended or not, in order."""

    def counts(self) -> dict[State, int]:
        """Return the number of jobs in each state that has any."""

    def submission_count(self) -> int:
        """Return the number of submissions of all runs."""

    def top_errors(self, limit: int) -> list[tuple[str, int]]:
        """Return the most common error messages of jobs without an image, with their numbers."""

    def submissions_page(self, after_submission_no: int, limit: int) -> list[tuple[int, float, str]]:
        """Return number, instant and result of up to `limit` submissions, in order."""

    def timings_page(self, after_job_no: int, limit: int) -> list[JobTiming]:
        """Return the timings of up to `limit` accepted jobs, in order."""

    def has_succeeded(self) -> bool:
        """Return whether any job has succeeded."""

    def charges(self) -> Charges:
        """Return the charges of all runs of the directory."""

    def submission_of(self, request_id: str) -> str | None:
        """Return the id of the job with a submission of this request_id; None if there is none."""

    def find_numbered_job(self, job_id: str) -> tuple[int, State] | None:
        """Return number and state of a job; None if the ledger does not have it."""

    def known_jobs(self, job_ids: Sequence[str]) -> dict[str, KnownJob]:
        """Return those jobs that the ledger has, by id."""

    def known_request_ids(self, request_ids: Sequence[str]) -> dict[str, int]:
        """Return the number of the job for those request_ids that the ledger has."""

    def accepted_files(self, names: Sequence[str]) -> dict[str, tuple[str, ...] | None]:
        """Return the paths of the images of the accepted jobs with these names; None while images are missing.

        The name of a job is its `image_name`, or else its id.
        """

    def accepted_files_folded(self, folded_names: Collection[str]) -> dict[str, tuple[str, ...] | None]:
        """Return the same as `accepted_files`, comparing names after str.casefold. Reads every job."""

    def accepted_ids(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of these ids whose jobs are accepted."""

    def job_counts_after(self, job_no: int) -> dict[State, int]:
        """Return the number of jobs in each state, of those with numbers above `job_no`."""

    def last_job_no(self) -> int:
        """Return the highest number of a job; 0 if there is none."""

    def has_free_jobs(self, count: int) -> bool:
        """Return whether at least `count` pending jobs are free: no live run has them."""

    def has_unfinished_jobs(self) -> bool:
        """Return whether any job is to be submitted or completed, by whichever run."""

    def has_jobs(self) -> bool:
        """Return whether the ledger has any job."""

    def results_mark(self) -> ResultsMark | None:
        """Return what `set_results_mark` recorded last, or None."""

    def unsubmitted_names(self) -> Iterator[str]:
        """Yield the names of the images of pending jobs without an accepted submission."""


@_calls_by_name
class Ledger(LedgerReader, Protocol):
    """The record of what was requested, charged and stored. Each method is one action of `rules.lifecycle`.

    If a job is not in a state from which the action may start, two parts of the engine disagree about it. This is a
    bug: the method raises InternalError, and nothing is written.
    """

    def transaction(self, operation: Callable[[Self], T]) -> T:
        """Apply an operation in a transaction of its own, which is durable at return.

        The operation is repeated while another program has locked the ledger, so it must leave nothing else behind.
        If it raises, nothing is written. Raises LedgerError if the disk fails. Blocks.
        """

    def maintain(self) -> None:
        """Keep the ledger small and quick to open, without waiting for other programs. Raises LedgerError."""

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
        """Record a new job as pending, for the run of this object, or `free` for any run.

        Return False, with nothing changed, if the job is recorded already.
        """

    def enqueue_many(self, jobs: Sequence[NewJob], *, free: bool = False) -> list[bool]:
        """Record several jobs as `enqueue` does, and return the results in order."""

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
        """Record the intent to POST a new or pending job, and return its number. Then the POST may be sent.

        A pending job keeps the `image_name` with which it was recorded.
        """

    def record_intents(self, intents: Sequence[Intent]) -> list[int]:
        """Record the intents to POST several jobs, as `record_intent` does for one, and return their numbers."""

    def revert_intent(self, job_no: int, result: str) -> None:
        """Make a job pending again: its POST was `refused`, a `server_error` or `not_sent`, so nothing was queued."""

    def mark_accepted(self, job_no: int, request_id: str, at: float) -> bool:
        """Record the request_id of an accepted, charged POST. Return False, unchanged, if another job has it."""

    def mark_accepted_many(self, accepted: Sequence[tuple[int, str, float]]) -> list[bool]:
        """Apply `mark_accepted` to several jobs, and return the results in order."""

    def mark_rejected(self, job_no: int, error: ErrorInfo, at: float, result: str = "refused") -> Outcome:
        """Record that the gateway refuses this request for good. `result` is `refused` or `server_error`."""

    def mark_ambiguous(self, job_no: int, error: ErrorInfo, at: float, answer: bytes = b"") -> Outcome:
        """Record that a POST was sent and that it is unknown whether the gateway accepted it.

        `answer` is the beginning of its answer, which `krea-batch resolve` shows.
        """

    def resubmit_submitting(self, job_no: int, answer: bytes = b"") -> None:
        """Record as `mark_ambiguous`, and make the job pending: the user chose in advance to resubmit it."""

    # ---- ambiguous jobs ----------------------------------------------------------------------------------

    def resubmit(self, job_no: int) -> None:
        """Record the user's decision to submit an ambiguous job again."""

    def abandon(self, job_no: int, state: State, at: float) -> Outcome:
        """Record the user's decision not to submit an ambiguous job again, or not to wait for one that timed out."""

    def adopt(self, job_no: int, request_id: str, at: float) -> bool:
        """Record that an ambiguous job was accepted under this request_id. Return False if another job has it."""

    def callback_secret(self, new_secret: bytes) -> bytes:
        """Return the secret of the callback URLs; store `new_secret` if there is none yet."""

    def retry(self, job_no: int, state: State) -> None:
        """Record the user's decision to submit an unsuccessful job again. Earlier charges stay recorded."""

    # ---- images -----------------------------------------------------------------------------------------

    def mark_finished(self, job_no: int, finished: Finished, at: float, polls: int) -> None:
        """Record that the gateway has completed the images, and their URLs."""

    def mark_finished_many(self, finished: Sequence[tuple[int, Finished, float, int]]) -> list[None]:
        """Apply `mark_finished` to several jobs, and return the results in order."""

    def mark_stored(self, job_no: int, stored: Sequence[StoredFile], at: float) -> Outcome:
        """Record that every image of the job is stored, and return its outcome."""

    def mark_stored_many(self, stored: Sequence[tuple[int, Sequence[StoredFile], float]]) -> list[Outcome]:
        """Apply `mark_stored` to several jobs, and return the results in order."""

    def mark_failed(self, job_no: int, error: ErrorInfo, at: float, polls: int) -> Outcome:
        """Record that the gateway reported FAILED."""

    def mark_errored(self, job_no: int, error: ErrorInfo, at: float, polls: int) -> Outcome:
        """Record that the gateway reported ERROR, and no attempt is left."""

    def requeue_errored(self, job_no: int, polls: int) -> None:
        """Record that the gateway reported ERROR, which is not charged, and make the job pending again."""

    def refresh_urls(self, job_no: int) -> None:
        """Record that the URLs of a finished job have expired, so that it is polled again."""

    def mark_timed_out(self, job_no: int, old: State, error: ErrorInfo, at: float, polls: int) -> Outcome:
        """Record that this run stops waiting for an accepted or finished job.

        Its request_id is kept, and the next run polls again.
        """

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
        """Record the start of a run with at most `rate_per_s` submits per second, and return its number.

        `worker` names the process, and `process_lock` the lock that it holds until the run has ended. Raises
        RunDirError if earlier runs used another gateway.
        """

    def bind_run(self, run_no: int | None) -> None:
        """Let each later transaction of this object be one of this run; None: of no run. Not itself a transaction.

        A transaction of a run shows that the run is alive. It raises FencedError, and nothing is written, if the run
        is fenced.
        """

    def set_expected_jobs(self, expected_jobs: int) -> None:
        """Record how many jobs the run directory will have."""

    def set_results_size(self, size_bytes: int | None) -> None:
        """Record the size of a complete results.jsonl; None if it is not complete."""

    def save_checkpoint(self, data: bytes) -> None:
        """Record how far the job files were read. Every job before that must be in the ledger."""

    def save_found_limit(self, data: bytes, at: float) -> None:
        """Record the limit of the gateway that this run has found."""

    def end_run(self, run_no: int, at: float) -> None:
        """Record the normal end of a run."""

    def recover(self, *, max_attempts: int, resubmit_ambiguous: bool) -> bool:
        """Move free jobs, those that no live run has, into the states in which they are resumed.

        Return True if jobs that had ended are open again.
        """

    # ---- several runs at the same time -------------------------------------------------------------------

    def fence(self, run_no: int, beat: int) -> bool:
        """End a run from outside if its beat is still this one: it was killed, or stands still.

        Jobs whose POST is pending become ambiguous, and its other jobs are free. Return False, with nothing changed,
        if it has written something in the meantime, or has ended.
        """

    def fence_others(self) -> None:
        """End all other runs as `fence` does, and delete the rate events.

        Only for a process that has the run directory alone.
        """

    def claim_jobs(self, states: Collection[State], limit: int) -> list[OpenJob]:
        """Take up to `limit` free jobs in these states for the run of this object, in the order of their numbers."""

    def record_late_result(
        self, run_no: int | None, job_no: int, result: str, request_id: str = "", at: float = 0.0
    ) -> bool:
        """Record how a POST ended that a run had sent before it was fenced; None: whichever run it was.

        `result` is `accepted`, with the request_id, or else `refused`, `server_error` or `not_sent`. If the job is
        still ambiguous because of this POST, it is accepted or pending afterwards, and free. Return False if nothing
        was recorded, because another job has the request_id or the result is known.
        """

    def clock_s(self) -> float | None:
        """Return the instant of a clock that all runs share; None if their processes share a monotonic clock."""

    def rate_events(self, after_event_no: int) -> list[tuple[int, bytes]]:
        """Return number and content of the latest rate events, in order."""

    def add_rate_events(self, data: bytes) -> int:
        """Add rate events for the other runs, delete old ones, and return the number of the new row.

        Other runs add none until the end of this transaction, if `rate_events` was called in it before.
        """

    def record_late_doubt(self, run_no: int, job_no: int, error: ErrorInfo, answer: bytes) -> None:
        """Record why the result of a POST stays unknown that a run had sent before it was fenced.

        The reason may name a request_id that is nowhere else. Nothing is recorded if the job is not ambiguous because
        of this POST any more.
        """

    def reserve_charges(self, count: int, max_charges: int, *, count_server_errors: bool) -> Reservation:
        """Reserve up to `count` charges for the run of this object, as far as all runs together stay in the limit.

        Each intent that the run records uses one of them.
        """

    def return_charges(self, count: int) -> None:
        """Give back charges that were reserved and are not needed."""

    # ---- the files ---------------------------------------------------------------------------------------

    def set_results_mark(self, mark: ResultsMark) -> None:
        """Record that results.jsonl starts with these bytes. The jobs of their rows must be in the ledger."""
