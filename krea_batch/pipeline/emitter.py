"""Emit the events of a run, and write its log lines.

An event is emitted after what it reports is durable. Events of single jobs are built only if there is a listener: at
hundreds of jobs per second, unused ones would take a measurable part of the event loop's time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from krea_batch.events import (
    Event,
    GenerationCompleted,
    ImageStored,
    JobResumed,
    Listener,
    PollCompleted,
    PollResult,
    RateChanged,
    RetryScheduled,
    RunClosed,
    RunStopping,
    StateChanged,
    SubmitCompleted,
    SubmitResult,
    SubmitsPaused,
)
from krea_batch.jobs import IN_FLIGHT, State, StoredFile
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.pipeline.stats import RunStats
from krea_batch.rules.found_limit import FoundLimit
from krea_batch.rules.verdicts import (
    Errored,
    Failed,
    Finished,
    PollFailed,
    PollVerdict,
    Waiting,
)

log = logging.getLogger("krea_batch")
log.addHandler(logging.NullHandler())  # The library prints nothing unless the application configures logging.

_POLL_RESULTS: Mapping[type[PollVerdict], PollResult] = {
    Waiting: "waiting",
    Finished: "finished",
    Failed: "failed",
    Errored: "errored",
    PollFailed: "error",
}


class EventEmitter:
    """Calls the listeners of a run, and counts its jobs by state.

    `listeners` is the caller's list, to which listeners can be added at any time. `now_s` is the event loop's
    monotonic clock.
    """

    def __init__(self, listeners: list[Listener], stats: RunStats, now_s: Callable[[], float]) -> None:
        self._listeners = listeners
        self._stats = stats
        self._now_s = now_s
        self.state_counts: Counter[State] = Counter()  # jobs of this run, by current state
        self._failed_events: set[str] = set()  # kinds of events that a listener could not handle
        self._found_limit: FoundLimit | None = None

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with every event from now on."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Stop calling `listener`."""
        self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        """Call every listener, in the order in which they were added.

        An exception of a listener is logged, once for each kind of event, and not passed on.
        """
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # A listener is code of others. Its bugs must not lose an image.
                name = type(event).__name__
                if name not in self._failed_events:
                    self._failed_events.add(name)
                    log.exception("! listener failed event=%s", name)

    # ---- events of the run -------------------------------------------------------------------------------

    def emit_opened(self) -> None:
        """Report the initial rate, just before the stages start."""
        self.emit(RateChanged(self._stats.rate_per_s, self._stats.found_limit))

    def emit_rate(self, per_s: float, found: FoundLimit | None) -> None:
        """Report the submit rate and the limit of the gateway that was found, if one of them has changed."""
        if per_s == self._stats.rate_per_s and found == self._found_limit:
            return
        self._found_limit = found
        self._stats.rate_per_s, self._stats.found_limit = per_s, str(found or "")
        self.emit(RateChanged(per_s, self._stats.found_limit))

    def emit_submits_paused(self, wait_s: float, reason: str) -> None:
        self._stats.paused_until_s = max(self._stats.paused_until_s, self._now_s() + wait_s)
        log.info("! submits paused for_s=%.1f rate_per_s=%.2f reason=%s", wait_s, self._stats.rate_per_s, reason)
        self.emit(SubmitsPaused(wait_s, self._stats.rate_per_s, reason))

    def emit_stopping(self, reason: str) -> None:
        log.warning("! stopping reason=%s", reason)
        self.emit(RunStopping(reason))

    def emit_closed(self) -> None:
        """Report the end of the stages, with the jobs that the next run resumes."""
        self.emit(RunClosed({state: self.state_counts[state] for state in IN_FLIGHT}))

    # ---- events of one job -------------------------------------------------------------------------------

    def emit_state_changes(self, job: InFlightJob, path: Sequence[State]) -> None:
        """Report each transition of a path of states."""
        for old, new in pairwise(path):
            log.debug("= job=%s from=%s to=%s request_id=%s", job.id, old, new, job.request_id)
            self.state_counts[old] -= 1
            self.state_counts[new] += 1
            if self._listeners:
                self.emit(StateChanged(job.id, old, new, job.request_id or None))

    def emit_resumed(self, job: InFlightJob, state: State) -> None:
        """Report a job that an earlier run left in `state`."""
        self.state_counts[state] += 1
        if self._listeners:
            self.emit(JobResumed(job.id, state, job.request_id or None))

    def emit_submit(self, job: InFlightJob, result: SubmitResult, status: int) -> None:
        """Report the recorded result of a POST. `status` is the HTTP status of a refusal, or 0."""
        if self._listeners:
            self.emit(SubmitCompleted(job.id, result, status, self._now_s() - job.sent_s))

    def emit_poll(self, job: InFlightJob, verdict: PollVerdict) -> None:
        if self._listeners:
            self.emit(PollCompleted(job.id, _POLL_RESULTS[type(verdict)]))

    def emit_generation(self, job: InFlightJob, took_s: float | None) -> None:
        """Report a completed job. `took_s` is the gateway's value, or None if there is no plausible one.

        Resumed jobs are not reported: it is unknown when they were accepted.
        """
        if self._listeners and not job.resumed:
            age_s = self._now_s() - job.accepted_s
            lag_s = None if took_s is None else age_s - took_s
            self.emit(GenerationCompleted(job.id, age_s if took_s is None else took_s, lag_s))

    def emit_image_stored(self, job: InFlightJob, stored: StoredFile, started_s: float) -> None:
        """Report a stored image whose download started at `started_s`."""
        if stored.defect:
            log.warning("! job=%s file=%s defect=%s", job.id, stored.path, stored.defect)
        if self._listeners:
            self.emit(ImageStored(job.id, stored.bytes, self._now_s() - started_s, stored.defect))

    def emit_retry(self, job: InFlightJob, stage: str, reason: str) -> None:
        log.info("! job=%s stage=%s reason=%s", job.id, stage, reason)
        if self._listeners:
            self.emit(RetryScheduled(job.id, stage, reason))
