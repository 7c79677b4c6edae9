"""Record the user's decisions about ambiguous jobs.

    with AmbiguousJobs(Path("runs/cats")) as ambiguous:
        ambiguous.adopt({"fox": "krea-2-large-text-to-image_019d…"})
        ambiguous.abandon(job.job_id for job in ambiguous.jobs)

A decision is in the ledger when its method returns, and in results.jsonl when the context is left. A job to resubmit
becomes pending, a job with a known request_id becomes accepted, and the next run continues with both. Nothing is sent
from here but the polls of `confirm`, which are free.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from krea_batch.errors import JobError
from krea_batch.gateway.proof import prove
from krea_batch.gateway.wire import is_request_id
from krea_batch.jobs import State
from krea_batch.ledger import AmbiguousJob, Ledger, LedgerReader, read_ledger
from krea_batch.ledger.rows import seconds_of
from krea_batch.maintenance.locked_run import LockedRun
from krea_batch.rules.lease import LEASE_S
from krea_batch.rules.lifecycle import GONE_STATUSES
from krea_batch.rules.verdicts import PollFailed, PollVerdict
from krea_batch.storage.run_dir import require_run

SETTLED_AFTER_S = LEASE_S + 240.0  # a lease, and the longest that a POST waits for its answer (gateway/client.py)


def list_ambiguous(out: Path) -> list[AmbiguousJob]:
    """Return the ambiguous jobs of a run, without locking it.

    Jobs are included whose POST is in flight, or was when the process ended. Raises RunDirError if there is no run.
    """
    require_run(out)
    with read_ledger(out) as store:
        (jobs,) = store.read(LedgerReader.ambiguous_jobs)
    return list(jobs)


async def confirm(
    request_ids: Mapping[str, str],
    poll: Callable[[str], Awaitable[PollVerdict]],
    *,
    interval_s: float,
) -> None:
    """Raise JobError unless the gateway knows each of these request_ids (job id to request_id), by polls.

    `poll` is `GatewayClient.poll`; a failed poll is repeated after `interval_s` seconds. Without this check, a
    request_id with a typing error would be polled in every run.
    """
    for job_id, request_id in request_ids.items():
        verdict = await prove(poll, request_id, interval_s=interval_s)
        if not isinstance(verdict, PollFailed):
            continue
        if verdict.status in GONE_STATUSES:
            raise JobError(f"the gateway does not know {request_id}", "look it up again", job_id=job_id)
        raise JobError(f"{request_id} cannot be checked ({verdict.reason})", "try again later", job_id=job_id)


class AmbiguousJobs(LockedRun):
    """The ambiguous jobs of a run that no process uses, or that runs share; a context manager that locks it.

    Each method applies to all given jobs, or to none if one of them is invalid. Raises RunDirError if there is no run
    or another process uses it; JobError for a job in another state. Use it where no event loop is running.
    """

    @property
    def jobs(self) -> list[AmbiguousJob]:
        """The jobs that are ambiguous now; resolved ones are no longer among them."""
        return [job for job in self._store.ambiguous_jobs() if self._store.ambiguous_job(job.job_no)]

    def resubmit(self, job_ids: Iterable[str]) -> None:
        """Make the jobs pending, so that a run submits them. Each may be charged a second time.

        Raises JobError for a job whose answer a run that shares the directory may still be waiting for.
        """

        def decide(store: Ledger, job: AmbiguousJob) -> None:
            age_s = self._clock() - (seconds_of(job.submitted_at) or 0.0)
            if not self.is_alone and age_s < SETTLED_AFTER_S:
                problem = "the process that submitted it may still get an answer"
                raise JobError(problem, f"try again in {SETTLED_AFTER_S - age_s:.0f} s", job_id=job.job_id)
            store.resubmit(job.job_no)

        self._decide(job_ids, decide)

    def abandon(self, job_ids: Iterable[str]) -> None:
        """End jobs that are ambiguous or timed out as cancelled. The charge of an ambiguous one stays unknown."""

        def abandon_all(store: Ledger) -> None:
            for job_id in dict.fromkeys(job_ids):
                found = store.find_numbered_job(job_id)
                if found is None or found[1] not in (State.AMBIGUOUS, State.TIMED_OUT):
                    raise _not_ambiguous(store, job_id)
                store.abandon(*found, self._clock())

        self._change(abandon_all)

    def adopt(self, request_ids: Mapping[str, str]) -> None:
        """Record that the jobs were accepted with these request_ids: job id to request_id.

        The next run polls and stores them; nothing is charged again. Use `confirm` before. Raises JobError as
        `check_adoption` does.
        """
        self.check_adoption(request_ids)

        def decide(store: Ledger, job: AmbiguousJob) -> None:
            if not store.adopt(job.job_no, request_ids[job.job_id], self._clock()):
                raise _of_another_job(job.job_id, request_ids[job.job_id])

        self._decide(request_ids, decide)

    def check_adoption(self, request_ids: Mapping[str, str]) -> None:
        """Raise JobError if `adopt` could not record one of these request_ids; nothing is changed.

        The job is not ambiguous, the text is not a request_id, or it is the request_id of another job.
        """
        ambiguous = {job.job_id for job in self.jobs}
        seen: set[str] = set()
        for job_id, request_id in request_ids.items():
            if job_id not in ambiguous:
                raise _not_ambiguous(self._store, job_id)
            if not is_request_id(request_id):
                hint = "copy it as the gateway returned it, e.g. krea-2-large-text-to-image_019d…"
                raise JobError(f"{request_id!r} is not a request_id", hint, job_id=job_id)
            if request_id in seen or self._store.submission_of(request_id) is not None:
                raise _of_another_job(job_id, request_id)
            seen.add(request_id)

    def _decide(self, job_ids: Iterable[str], decide: Callable[[Ledger, AmbiguousJob], Any]) -> None:
        def decide_all(store: Ledger) -> None:
            ambiguous = {job.job_id: job for job in self.jobs}
            for job_id in dict.fromkeys(job_ids):
                if job_id not in ambiguous:
                    raise _not_ambiguous(store, job_id)
                decide(store, ambiguous[job_id])

        self._change(decide_all)


def _of_another_job(job_id: str, request_id: str) -> JobError:
    return JobError(f"{request_id} belongs to another job", "look it up again", job_id=job_id)


def _not_ambiguous(store: Ledger, job_id: str) -> JobError:
    _, state = store.find_numbered_job(job_id) or (0, None)
    if state is State.TIMED_OUT:
        hint = (
            "run again to keep polling, end it with --abandon, or pay again with krea-batch retry --status timed_out"
        )
        return JobError("the job is not ambiguous but timed_out", hint, job_id=job_id)
    problem = f"the job is not ambiguous but {state}" if state else "the job is not in this run"
    return JobError(problem, "see krea-batch resolve OUT --list", job_id=job_id)
