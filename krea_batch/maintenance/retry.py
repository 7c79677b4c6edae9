"""Make jobs that ended without an image pending again.

    with RetryPlan(Path("runs/cats")) as plan:
        plan.resubmit(plan.jobs([State.REJECTED]))

Nothing is sent from here; the next run submits the jobs. Every charged POST stays in the ledger, so the charges of
a job add up over all its submissions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from krea_batch.errors import JobError
from krea_batch.jobs import RETRIED_BY_DEFAULT, RETRYABLE, State
from krea_batch.ledger import Ledger
from krea_batch.maintenance.locked_run import LockedRun

_IN_PROGRESS = (State.PENDING, State.ACCEPTED, State.FINISHED)  # the next run submits, polls or downloads them
_NOT_RETRYABLE = {
    State.SUCCEEDED: ("it already has its image", "choose a job that ended without one"),
    State.AMBIGUOUS: ("it may have been charged", "use krea-batch resolve"),
}


class RetryPlan(LockedRun):
    """The unsuccessful jobs of a run; a context manager. Raises as `LockedRun` does."""

    def jobs(self, states: Collection[State] = RETRIED_BY_DEFAULT) -> dict[str, State]:
        """Return the jobs that ended in one of these states of RETRYABLE: id to state, in submit order."""
        return {job_id: state for _, job_id, state in self._store.unsuccessful_jobs(states)}

    def select(self, job_ids: Iterable[str], states: Collection[State] = ()) -> dict[str, State]:
        """Return the jobs with these ids: id to state.

        Jobs in progress are left out, since the next run continues them anyway. Raises JobError for a job that is
        not in the run, has its image, is ambiguous, or ended in none of `states`, if there are any. A job that timed
        out may still arrive without another charge, so TIMED_OUT must be among them.
        """
        selected: dict[str, State] = {}
        for job_id in dict.fromkeys(job_ids):
            outcome = self._store.find_job(job_id)
            if outcome is None:
                raise JobError("the job is not in this run", "see krea-batch status OUT", job_id=job_id)
            if outcome.status in _NOT_RETRYABLE:
                raise JobError(*_NOT_RETRYABLE[outcome.status], job_id=job_id)
            if outcome.status is State.TIMED_OUT and outcome.status not in states:
                raise JobError(
                    "it timed out, and its image may still arrive",
                    "run again to keep polling without a charge, or add --status timed_out to pay for it again",
                    job_id=job_id,
                )
            if states and outcome.status not in states:
                wanted = " or ".join(states)
                raise JobError(f"it is {outcome.status}, not {wanted}", "see krea-batch status OUT", job_id=job_id)
            if outcome.status in RETRYABLE:
                selected[job_id] = outcome.status
        return selected

    def resubmit(self, job_ids: Iterable[str]) -> None:
        """Make the jobs pending again, all or none of them. Each may be charged again.

        Raises KeyError for a job that did not end in one of the states of RETRYABLE.
        """

        def requeue_all(store: Ledger) -> None:
            by_id = {job_id: (job_no, state) for job_no, job_id, state in store.unsuccessful_jobs(RETRYABLE)}
            for job_id in job_ids:
                store.retry(*by_id[job_id])

        self._change(requeue_all)

    def open_jobs(self) -> int:
        """Return the number of jobs that the next run continues with, without a retry."""
        counts = self._store.counts()
        resumed = {state for state in State if state.info.resumes_as in _IN_PROGRESS} - {*RETRIED_BY_DEFAULT}
        return sum(counts.get(state, 0) for state in resumed)

    def pending_count(self) -> int:
        """Return the number of jobs that the next run submits, without a retry. They are part of `open_jobs`."""
        return self._store.counts().get(State.PENDING, 0)
