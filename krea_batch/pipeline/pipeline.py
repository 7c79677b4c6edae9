"""The stages of a run, connected. Each stage hands a job over with a method of `Pipeline`.

jobs ─► producer, admission ─► submitter ─► poll_scheduler ─► downloader ─► end
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from anyio.abc import TaskGroup

from krea_batch.errors import RunStopped
from krea_batch.events import JobEnded
from krea_batch.jobs import Outcome, State
from krea_batch.ledger import MAX_TRANSACTION_ROWS, Ledger, OpenJob
from krea_batch.pipeline.admission import AdmissionQueue
from krea_batch.pipeline.callback_handler import CallbackHandler
from krea_batch.pipeline.charge_budget import Budget, ChargeBudget, SharedChargeBudget
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.coordinator import Request, WorkerCoordinator
from krea_batch.pipeline.downloader import Downloader
from krea_batch.pipeline.executor import TransitionExecutor
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.poll_scheduler import PollScheduler
from krea_batch.pipeline.producer import Producer
from krea_batch.pipeline.reference_uploads import ReferenceUploads
from krea_batch.pipeline.shared_rate_limiter import SharedRateLimiter
from krea_batch.pipeline.submitter import Submitter
from krea_batch.pipeline.waiters import WaiterRegistry
from krea_batch.rules.fail_fast import IdenticalFailureGuard
from krea_batch.rules.verdicts import Progress
from krea_batch.storage.results_file import ResultsFile
from krea_batch.storage.sinks import Sink

if TYPE_CHECKING:
    from krea_batch.storage.reference_store import ReferenceStore  # obstore is optional

MAX_ADMITTED = 16  # chosen: jobs at the submitter have had their turn; 16 of them take 20 ms at 800/s


class Pipeline:
    """The stages of one run, and where a job goes from each of them: it implements `protocols.Stages`."""

    def __init__(
        self,
        run: RunContext,
        results: ResultsFile,
        failure_guard: IdenticalFailureGuard,
        *,
        sink: Sink | None,
        references: ReferenceStore | None,
    ) -> None:
        self._run = run
        self._results = results
        self._failure_guard = failure_guard
        settings = run.settings
        shared_budget = SharedChargeBudget(
            settings.max_charges, run.stop, run.record, count_server_errors=settings.count_server_errors
        )
        self.budget: Budget = shared_budget if settings.shared else ChargeBudget(settings.max_charges, run.stop)
        self.references = ReferenceUploads(run, references)
        executor = TransitionExecutor(run, self.budget, self)
        self.downloader = Downloader(run, executor, self, sink=sink)
        self.poll_scheduler = PollScheduler(run, executor, self)
        self.callback_handler = CallbackHandler(run, executor, self.poll_scheduler.on_callback)
        self.submitter = Submitter(
            run, executor, self, self.budget, self.references, self.callback_handler.on_callback
        )
        self.admission = AdmissionQueue(
            run,
            partial(self.submitter.wait_for_capacity, MAX_ADMITTED),
            self._on_admitted,
            self._on_not_admitted,
        )
        self.waiters = WaiterRegistry(run, self.admission.put)
        self.coordinator = (
            WorkerCoordinator(run, self.waiters, shared_budget, self._resume, self._count_waiting)
            if settings.shared
            else None
        )

    # ---- the tasks ---------------------------------------------------------------------------------------

    def start(self, tasks: TaskGroup) -> None:
        """Start the stages."""
        for stage in (self.callback_handler, self.admission, self.submitter, self.poll_scheduler, self.downloader):
            tasks.start_soon(stage.work)
        if self.coordinator:
            tasks.start_soon(self.coordinator.work)
        if isinstance(self._run.rate_limiter, SharedRateLimiter):
            self._run.rate_limiter.demand = lambda: self.submitter.waiting
            tasks.start_soon(self._run.rate_limiter.work)

    def producer(self) -> Producer:
        """Return a producer for the jobs of one source."""
        return Producer(
            self._run,
            self.references.build,
            self.submitter.wait_for_capacity,
            self._on_admitted,
            self.waiters.take_over,
            self.coordinator.enqueue if self.coordinator else None,
        )

    @property
    def is_idle(self) -> bool:
        """Whether no job is queued or in flight, and no callback for an ambiguous job is expected."""
        return not self._run.taken_ids and not self.callback_handler.expecting

    async def wait_idle(self) -> None:
        """Wait until no job is queued or in flight, and no callback for an ambiguous job is expected."""
        while not self.is_idle:
            await self._run.taken_ids.wait_none()
            await self.callback_handler.wait()

    async def wait_all_ended(self) -> None:
        """Wait until no job is queued or in flight, in this run or in others that share the directory."""
        if self.coordinator:
            await self.coordinator.wait_none_open()
        await self.wait_idle()

    def _count_waiting(self) -> int:
        """Return the number of jobs that this run has and has not submitted."""
        return self._run.stats.jobs_queued + self.submitter.waiting

    async def resume_open_jobs(self) -> None:
        """Take the jobs that an earlier run left, each in the stage of its state."""
        if self.coordinator:
            await self.coordinator.look()
        else:
            await self._resume_all()
        self.callback_handler.on_open_jobs_resumed()

    async def _resume_all(self) -> None:
        """Take all open jobs of the ledger, as the only run that works on it."""
        after_no = 0
        while batch := await self._run.record(Ledger.open_jobs, after_no, MAX_TRANSACTION_ROWS):
            for record in batch:
                is_pending = record.state is State.PENDING
                request = await self._run.record(Ledger.request_of, record.job_no) if is_pending else None
                self._resume(record, request)
            after_no = batch[-1].job_no

    def _resume(self, record: OpenJob, request: Request | None) -> None:
        """Take a job of an earlier run; a pending one with its request."""
        job = InFlightJob.from_ledger(record)
        self._run.taken_ids.take(job.id)
        self._run.events.emit_resumed(job, record.state)
        if request:
            job.body, job.fingerprint, job.metadata = request
            self.admission.put(job)
            return
        self._run.in_flight_limit.acquire_resumed()
        if record.state is State.FINISHED:
            job.finished = record.media
            self.downloader.put(job)
        else:
            self._run.resume_in_process(job)
            self.poll_scheduler.resume(job)

    # ---- from stage to stage -----------------------------------------------------------------------------

    def submit(self, job: InFlightJob, wait_s: float = 0.0) -> None:
        """Take a pending job that has a slot, to be submitted after `wait_s` seconds at the earliest."""
        self.submitter.enqueue(job, wait_s)

    def poll(self, job: InFlightJob, progress: Progress) -> None:
        """Take an accepted job, with the status that is known of it."""
        self._failure_guard.record_accepted()
        self.waiters.on_accepted(job)
        self.poll_scheduler.put(job, progress)

    def download(self, job: InFlightJob) -> None:
        """Take a finished job."""
        self.downloader.put(job)

    def end(self, job: InFlightJob, outcome: Outcome) -> None:
        """Take a job that has ended for this run."""
        self._run.in_flight_limit.release()
        self.submitter.recheck()
        self._run.stats.ended_by_state[outcome.status] += 1
        if outcome.status is State.AMBIGUOUS:
            self.callback_handler.expect(job.job_no, self.poll_scheduler.callback_wait_s(job))
        if reason := self._failure_guard.record_ended(outcome):
            self._run.stop(RunStopped(reason, "fix the cause, then run again to resume"))
        self._run.events.emit(JobEnded(outcome))
        if not self._run.settings.shared:  # Else the last run that ends writes the file.
            self._results.append(outcome)
        self._run.taken_ids.release(job.id)
        self.waiters.on_ended(outcome)

    def defer(self, job: InFlightJob) -> None:
        """Take a job that stays in the ledger for the next run."""
        self._run.in_flight_limit.release()
        self._run.taken_ids.release(job.id)
        # Without a stop, the stages are ending because of an error, which the waiters get once they have ended.
        if self._run.stopped:
            self.waiters.fail(job.id)

    def _on_admitted(self, job: InFlightJob) -> None:
        """Take a job from a producer or the admission queue, with its slot."""
        self.waiters.on_admitted(job)
        self.submit(job)

    def _on_not_admitted(self, job: InFlightJob) -> None:
        """Take a job that was not admitted before the run stopped."""
        self.waiters.fail(job.id)
