"""Record the user's decisions about ambiguous jobs.

    with AmbiguousJobs(Path("runs/cats")) as ambiguous:
        ambiguous.adopt({"fox": "krea-2-large-text-to-image_019d…"})
        ambiguous.abandon(job.job_id for job in ambiguous.jobs)

A decision is in the ledger when its method returns, and in results.jsonl when the context is left. Nothing is sent
from here. A job to resubmit becomes pending, a job with a known request_id becomes accepted, and the next run
continues with both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from krea_batch.errors import JobError
from krea_batch.gateway.wire import is_request_id
from krea_batch.ledger import AmbiguousJob, LedgerStore
from krea_batch.maintenance.locked_run import LockedRun
from krea_batch.storage.run_dir import LEDGER, require_run


def list_ambiguous(out: Path) -> list[AmbiguousJob]:
    """Return the ambiguous jobs of a run, without locking it.

    Jobs are included whose POST is in flight, or was when the process ended. Raises RunDirError if there is no run.
    """
    require_run(out)
    with closing(LedgerStore.open(out / LEDGER, read_only=True)) as store:
        (jobs,) = store.read(LedgerStore.ambiguous_jobs)
    return list(jobs)


class AmbiguousJobs(LockedRun):
    """The ambiguous jobs of a run that no process uses; a context manager that locks the run directory.

    Each method applies to all given jobs, or to none if one of them is invalid. Raises RunDirError if there is no run
    or another process uses it; JobError for a job that is not ambiguous. Use it where no event loop is running.
    """

    @property
    def jobs(self) -> list[AmbiguousJob]:
        """The jobs that are ambiguous now; resolved ones are no longer among them."""
        return self._store.ambiguous_jobs()

    def resubmit(self, job_ids: Iterable[str]) -> None:
        """Make the jobs pending, so that the next run submits them. Each may be charged a second time."""
        self._decide(job_ids, lambda store, job: store.resubmit(job.job_no))

    def abandon(self, job_ids: Iterable[str]) -> None:
        """End the jobs as cancelled. Whether they were charged stays unknown."""
        self._decide(job_ids, lambda store, job: store.abandon(job.job_no, self._clock()))

    def adopt(self, request_ids: Mapping[str, str]) -> None:
        """Record that the jobs were accepted with these request_ids: job id to request_id.

        The next run polls and stores them; nothing is charged again. Raises JobError also for a text that is not a
        request_id, and for a request_id of another job.
        """

        def decide(store: LedgerStore, job: AmbiguousJob) -> None:
            request_id = request_ids[job.job_id]
            if not is_request_id(request_id):
                hint = "copy it as the gateway returned it, e.g. krea-2-large-text-to-image_019d…"
                raise JobError(f"{request_id!r} is not a request_id", hint, job_id=job.job_id)
            if not store.adopt(job.job_no, request_id, self._clock()):
                raise JobError(f"{request_id} belongs to another job", "look it up again", job_id=job.job_id)

        self._decide(request_ids, decide)

    def _decide(self, job_ids: Iterable[str], decide: Callable[[LedgerStore, AmbiguousJob], Any]) -> None:
        ambiguous = {job.job_id: job for job in self.jobs}

        def decide_all(store: LedgerStore) -> None:
            for job_id in dict.fromkeys(job_ids):
                if job_id not in ambiguous:
                    raise JobError("the job is not ambiguous", "see krea-batch resolve OUT --list", job_id=job_id)
                decide(store, ambiguous[job_id])

        self._change(decide_all)
