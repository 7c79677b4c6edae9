"""Somebody's word on ambiguous jobs comes in; it is on record, and in results.jsonl, when it returns.

    with Doubts(Path("runs/cats")) as doubts:
        doubts.adopt({"fox": "krea-2-large-text-to-image_019d…"})
        doubts.abandon(job.id for job in doubts.jobs)

Newcomers: nothing is sent from here. A job that is to be submitted again is pending, one whose request_id was
found is accepted, and the next run of the folder goes on with both.
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
    """The ambiguous jobs of a run, also while it runs: those being submitted just now are among them.

    Raises RunFolderError where there is no run.
    """
    require_run(out)
    with closing(LedgerStore.open(out / LEDGER, read_only=True)) as store:
        (jobs,) = store.read(LedgerStore.ambiguous_jobs)
    return list(jobs)


class AmbiguousJobs(LockedRun):
    """The ambiguous jobs of a run that nobody is working on; a context manager that holds the folder meanwhile.

    Each method decides all the jobs it is given or, where one of them cannot be decided so, none. Raises
    RunFolderError where there is no run or another process is working in it; JobError for a job that is not
    ambiguous. Call it from where no event loop is running.
    """

    @property
    def jobs(self) -> list[AmbiguousJob]:
        """Those that are ambiguous now."""
        return self._store.ambiguous_jobs()

    def resubmit(self, job_ids: Iterable[str]) -> None:
        """The next run submits them again; each may then be paid twice."""
        self._decide(job_ids, lambda store, job: store.resubmit(job.job_no))

    def abandon(self, job_ids: Iterable[str]) -> None:
        """They end as cancelled; whether they were paid stays unknown."""
        self._decide(job_ids, lambda store, job: store.abandon(job.job_no, self._clock()))

    def adopt(self, request_ids: Mapping[str, str]) -> None:
        """They were accepted, under these request_ids (by job id); the next run polls and downloads them."""

        def decide(store: LedgerStore, job: AmbiguousJob) -> None:
            request_id = request_ids[job.job_id]
            if not is_request_id(request_id):
                hint = "give it as the gateway did, like krea-2-large-text-to-image_019d…"
                raise JobError(f"{request_id!r} is no request_id", hint, job_id=job.job_id)
            if not store.adopt(job.job_no, request_id, self._clock()):
                raise JobError(f"{request_id} belongs to another job", "look it up once more", job_id=job.job_id)

        self._decide(request_ids, decide)

    def _decide(self, job_ids: Iterable[str], decide: Callable[[LedgerStore, AmbiguousJob], Any]) -> None:
        ambiguous = {job.job_id: job for job in self.jobs}

        def decide_all(store: LedgerStore) -> None:
            for job_id in dict.fromkeys(job_ids):
                if job_id not in ambiguous:
                    raise JobError("it is not ambiguous", "see krea-batch resolve OUT --list", job_id=job_id)
                decide(store, ambiguous[job_id])
            store.set_results_size(None)  # until they are

        self._store.transaction([decide_all])
