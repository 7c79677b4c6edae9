"""Somebody's word that jobs are to be made after all comes in; when it returns, they are pending.

    with Retries(Path("runs/cats")) as retries:
        retries.again(retries.jobs([State.REJECTED]))

Newcomers: nothing is sent from here; the next run submits them. Every POST that was paid stays on record, so charges
add up over all tries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from krea_batch.errors import JobError
from krea_batch.jobs import RETRYABLE, State
from krea_batch.ledger import LedgerStore
from krea_batch.maintenance.locked_run import LockedRun

WORKED_ON = (State.PENDING, State.ACCEPTED, State.FINISHED)  # the next run submits, polls or downloads them
_NOT_RETRYABLE = {
    State.SUCCEEDED: ("its image is there", "give a job that ended without one"),
    State.AMBIGUOUS: ("nobody knows whether it was paid", "decide with krea-batch resolve"),
}


class RetryPlan(LockedRun):
    """The jobs of a run that ended without an image. Raises as `HeldRun`."""

    def jobs(self, states: Collection[State] = RETRYABLE) -> dict[str, State]:
        """Those that ended in one of these states: id to state, in the order of their submits."""
        return {job_id: state for _, job_id, state in self._store.unsuccessful_jobs(states)}

    def select(self, job_ids: Iterable[str]) -> dict[str, State]:
        """The same for jobs by their ids; those that are still on their way are left out, since they go on anyway.

        Raises JobError for one that is unknown, has its image, or is ambiguous.
        """
        selected: dict[str, State] = {}
        for job_id in dict.fromkeys(job_ids):
            outcome = self._store.find_job(job_id)
            if outcome is None:
                raise JobError("it is not in this run", "see krea-batch status OUT", job_id=job_id)
            if outcome.status in _NOT_RETRYABLE:
                raise JobError(*_NOT_RETRYABLE[outcome.status], job_id=job_id)
            if outcome.status in RETRYABLE:
                selected[job_id] = outcome.status
        return selected

    def resubmit(self, job_ids: Iterable[str]) -> None:
        """They are to be submitted again, all or none of them; each may be paid again. Raises KreaBatchBug."""
        by_id = {job_id: (job_no, state) for job_no, job_id, state in self._store.unsuccessful_jobs(RETRYABLE)}

        def move(store: LedgerStore) -> None:
            for job_id in job_ids:
                store.retry(*by_id[job_id])
            store.set_results_size(None)  # until they are

        self._store.transaction([move])

    def open_jobs(self) -> int:
        """How many jobs the next run goes on with."""
        counts = self._store.counts()
        resumed = [state for state in State if state.info.resumes_as in WORKED_ON and not state.info.retryable]
        return sum(counts.get(state, 0) for state in resumed)

    def pending_count(self) -> int:
        """How many of those were never accepted, and are submitted, too."""
        return self._store.counts().get(State.PENDING, 0)

    def job_count(self) -> int:
        """How many jobs there are."""
        return sum(self._store.counts().values())
