"""Apply transitions to jobs. Nothing else in the pipeline changes the state of a job.

The order of the steps must not change: the ledger, the job and the counters, the events, the next stage. So listeners
never receive an event about something that a crash could undo, and cannot delay the record of an answer.
"""

from __future__ import annotations

import math
import sys
from typing import assert_never

from krea_batch.errors import FencedError, InternalError, LedgerError
from krea_batch.jobs import ErrorInfo, Outcome, State
from krea_batch.ledger import Ledger
from krea_batch.pipeline.charge_budget import Budget
from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.emitter import log
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.protocols import Stages
from krea_batch.rules.lifecycle import Action, Stage, Transition
from krea_batch.rules.verdicts import Waiting
from krea_batch.storage.async_io import run_to_completion
from krea_batch.storage.spill import write_spill

_CHARGES = {Action.ACCEPT: 1, Action.MARK_AMBIGUOUS: 1, Action.RESUBMIT: 1, Action.REQUEUE: -1, Action.GIVE_UP: -1}
"""By how much an action changes the number of charges of a run. ERROR is not charged."""


class TransitionExecutor:
    """Applies transitions to the jobs of a run, and hands each job to its next stage."""

    def __init__(self, run: RunContext, budget: Budget, stages: Stages) -> None:
        self._run = run
        self._budget = budget
        self._stages = stages

    async def apply(self, job: InFlightJob, transition: Transition) -> bool:
        """Apply a transition. It is durable at return, except `Action.FINISH`, which a poll can repeat.

        Return False, with nothing changed, if the transition has a request_id that the ledger has for another job.
        """
        try:
            recorded = await self._record(job, transition)
        except FencedError:
            await self.record_late(job, transition)
            raise
        if recorded is False:
            return False
        self._update_job(job, transition)
        self._count(transition)
        self._emit(job, transition)
        if transition.stop:
            self._run.stop(transition.stop)
        self._hand_over(job, transition, recorded)
        return True

    async def _record(  # noqa: C901 - one case for each action
        self, job: InFlightJob, transition: Transition
    ) -> Outcome | bool:
        """Record the transition in the ledger. Return the outcome of a job that ends, False as `apply` does."""
        record, at, error = self._run.record, self._run.wall_clock(), transition.error or ErrorInfo("", "")
        match transition.action:
            case Action.SUBMIT:
                job.job_no = await record(
                    Ledger.record_intent,
                    job.id,
                    job.body,
                    job.fingerprint,
                    job.metadata,
                    at,
                    job.tenant,
                    job.image_name,
                )
            case Action.REVERT:
                await record(Ledger.revert_intent, job.job_no, _uncharged_result(transition))
            case Action.ACCEPT:
                return await self._record_accepted(job, transition, at)
            case Action.REJECT:
                return await record(Ledger.mark_rejected, job.job_no, error, at, _uncharged_result(transition))
            case Action.MARK_AMBIGUOUS:
                return await self._record_ambiguous(job, transition, error, at)
            case Action.RESUBMIT:
                await record(Ledger.resubmit_submitting, job.job_no, transition.answer)
            case Action.FINISH:
                assert transition.finished  # noqa: S101 - `after_poll` sets it
                self._run.record_later(Ledger.mark_finished, job.job_no, transition.finished, at, job.polls)
            case Action.FAIL:
                return await record(Ledger.mark_failed, job.job_no, error, at, job.polls)
            case Action.GIVE_UP:
                return await record(Ledger.mark_errored, job.job_no, error, at, job.polls)
            case Action.REQUEUE:
                await record(Ledger.requeue_errored, job.job_no, job.polls)
                job.body, job.fingerprint, job.metadata = await record(Ledger.request_of, job.job_no)
            case Action.STORE:
                return await record(Ledger.mark_stored, job.job_no, transition.files, at)
            case Action.REFRESH:
                await record(Ledger.refresh_urls, job.job_no)
            case Action.TIME_OUT:
                return await record(Ledger.mark_timed_out, job.job_no, transition.old, error, at, job.polls)
            case Action.ADOPT:
                return await record(Ledger.adopt, job.job_no, transition.request_id, at)
            case Action.RESUME | Action.ABANDON | Action.RETRY:
                raise InternalError(f"{transition.action!r} is not an action of a run")
            case _:
                assert_never(transition.action)
        return True

    async def _record_accepted(self, job: InFlightJob, transition: Transition, at: float) -> bool:
        try:
            return await self._run.record(Ledger.mark_accepted, job.job_no, transition.request_id, at)
        except FencedError:
            raise
        except LedgerError:
            await self._spill(job, transition.request_id, at)
            raise

    async def record_late(self, job: InFlightJob, transition: Transition) -> None:
        """Record the result of a POST of this run, whose jobs another run has taken over: that one cannot know it.

        Nothing is recorded if another result of the POST was, or if another job has its request_id.
        """
        run, at = self._run, self._run.wall_clock()

        async def record_result(result: str) -> None:
            request_id = transition.request_id
            await run.ledger.record_late(Ledger.record_late_result, run.run_no, job.job_no, result, request_id, at)

        try:
            match transition.action:
                case Action.ACCEPT:
                    await record_result("accepted")
                case Action.REVERT | Action.REJECT:
                    await record_result(_uncharged_result(transition))
                case Action.MARK_AMBIGUOUS if transition.error:
                    await run.ledger.record_late(
                        Ledger.record_late_doubt, run.run_no, job.job_no, transition.error, transition.answer
                    )
                case _:
                    pass  # The run that fenced this one knows as much.
        except LedgerError:
            if transition.request_id:
                await self._spill(job, transition.request_id, at)
            elif transition.action is Action.MARK_AMBIGUOUS and transition.error:
                self.report_doubt(job, transition.error.message)

    async def _record_ambiguous(
        self, job: InFlightJob, transition: Transition, error: ErrorInfo, at: float
    ) -> Outcome:
        try:
            return await self._run.record(Ledger.mark_ambiguous, job.job_no, error, at, transition.answer)
        except FencedError:
            raise  # `record_late` records the reason.
        except LedgerError:
            # The next run finds the POST without a result. The reason may name a request_id, which is nowhere else.
            self.report_doubt(job, error.message)
            raise

    def report_doubt(self, job: InFlightJob, reason: str) -> None:
        """Say why it is unknown whether a job was charged, since the ledger cannot take it."""
        log.error("! in doubt but not recorded: job=%s reason=%s", job.id, reason)
        text = f"it is unknown whether job {job.id!r} of {self._run.settings.out} was charged: {reason}"
        sys.stderr.write(f"krea-batch: {text}\n")

    async def _spill(self, job: InFlightJob, request_id: str, at: float) -> None:
        """Keep a request_id that the ledger cannot take. It is stored nowhere else, and its image is paid for."""
        out = self._run.settings.out
        log.error("! charged but not recorded: job=%s request_id=%s", job.id, request_id)
        try:
            await run_to_completion(self._run.on_disk(write_spill, out, job.id, request_id, at))
        except OSError:
            # The last resort, which an application sees even if it configures no logging.
            sys.stderr.write(f"krea-batch: job {job.id!r} of {out} was charged; its request_id is {request_id}\n")

    def _update_job(self, job: InFlightJob, transition: Transition) -> None:
        match transition.action:
            case Action.ACCEPT | Action.ADOPT:
                job.request_id = transition.request_id
                job.accepted_s = job.last_polled_s = self._run.now_s()
                job.body = job.signed_body = job.metadata = job.fingerprint = b""  # the ledger has them
                job.refusals = 0
            case Action.REQUEUE:
                job.errors += 1
                job.failures = job.key_refusals = 0
                job.last_callback_s = -math.inf
            case Action.FINISH:
                job.finished = transition.finished
                job.failures = 0
            case Action.REFRESH:
                job.refreshes += 1
                job.resumed = True  # The next poll says nothing about how long the job takes.
            case _:
                pass

    def _count(self, transition: Transition) -> None:
        stats = self._run.stats
        if change := _CHARGES.get(transition.action):
            self._budget.add_charges(change)
        if transition.is_server_error and self._run.settings.count_server_errors:
            self._budget.add_charges(1)
        if transition.action is Action.ACCEPT:
            stats.accepted += 1
        elif transition.action is Action.ADOPT:  # The job may have become ambiguous in an earlier run.
            stats.ended_by_state[State.AMBIGUOUS] = max(0, stats.ended_by_state[State.AMBIGUOUS] - 1)

    def _emit(self, job: InFlightJob, transition: Transition) -> None:
        events = self._run.events
        if transition.submit_result:
            events.emit_submit(job, transition.submit_result, transition.status)
        events.emit_state_changes(job, transition.path)
        if transition.retry_reason:
            stage = "submit" if transition.submit_result else "poll"
            events.emit_retry(job, stage, transition.retry_reason)

    def _hand_over(self, job: InFlightJob, transition: Transition, recorded: Outcome | bool) -> None:
        match transition.next_stage:
            case None:
                pass
            case Stage.SUBMITTER:
                self._stages.submit(job, transition.wait_s)
            case Stage.POLL_SCHEDULER:
                self._stages.poll(job, transition.progress or Waiting("QUEUED"))
            case Stage.DOWNLOADER:
                self._stages.download(job)
            case Stage.END:
                assert isinstance(recorded, Outcome)  # noqa: S101 - every action that ends a job records one
                self._stages.end(job, recorded)
            case Stage.NEXT_RUN:
                self._stages.defer(job)
            case _:
                assert_never(transition.next_stage)


def _uncharged_result(transition: Transition) -> str:
    """Return the result of a submission that is not charged, as the ledger has it."""
    if transition.is_server_error:
        return "server_error"
    return "refused" if transition.action is Action.REJECT else transition.submit_result or "not_sent"
