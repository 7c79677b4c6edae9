"""A listener that keeps Prometheus metrics.

    metrics = MetricsListener()               # with its own registry: metrics.registry
    Engine("runs/cats", listeners=[metrics])

A label value is from a fixed list, or an HTTP status; it is never an id or a prompt, so the number of time series
stays small. Counters start at 0 with each process; the totals of the run directory are in its ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from krea_batch.events import (
    CallbackReceived,
    CallbackResult,
    Event,
    GenerationCompleted,
    ImageStored,
    JobEnded,
    JobResumed,
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
from krea_batch.jobs import FINAL, IN_FLIGHT, State

CHARGE_KINDS = ("charged", "refunded", "unknown", "resolved")
RETRY_STAGES = ("submit", "poll", "download", "sink")  # the stages of events.RetryScheduled

# Chosen: narrow buckets around the usual values, wider ones up to the setting that ends the wait.
SUBMIT_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # to request_timeout_s
# The API document's example takes 15 s; job_timeout_s ends the wait.
GENERATION_BUCKETS_S = (
    1.0,
    2.0,
    4.0,
    6.0,
    8.0,
    10.0,
    12.5,
    15.0,
    20.0,
    25.0,
    30.0,
    45.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
)
LAG_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 20.0, 60.0)  # around poll_interval_s
DOWNLOAD_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
JOB_BUCKETS_S = (*GENERATION_BUCKETS_S, 3600.0, 86400.0)  # a stopped run can be resumed hours later


class MetricsListener:
    """A listener that keeps metrics in `registry`, or in a registry of its own.

    One instance may listen to several engines. Counters then add up, and the rate is the last one that any of them
    reported.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._clock = clock  # seconds since 1970
        self._paused_until_at = 0.0
        self._make_job_metrics()
        self._make_submit_metrics()
        self._make_poll_metrics()
        self._make_download_metrics()
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            StateChanged: self._on_state_changed,
            JobEnded: self._on_job_ended,
            JobResumed: self._on_job_resumed,
            SubmitCompleted: self._on_submit_completed,
            PollCompleted: self._on_poll_completed,
            CallbackReceived: self._on_callback_received,
            GenerationCompleted: self._on_generation_completed,
            ImageStored: self._on_image_stored,
            RateChanged: self._on_rate_changed,
            SubmitsPaused: self._on_submits_paused,
            RetryScheduled: self._on_retry_scheduled,
            RunStopping: self._on_run_stopping,
            RunClosed: self._on_run_closed,
        }

    def __call__(self, event: Event) -> None:
        """Update the metrics that an event concerns. Other events change nothing."""
        if handler := self._handlers.get(type(event)):
            handler(event)

    # ---- definitions ---------------------------------------------------------------------------------------

    def _make_job_metrics(self) -> None:
        self._jobs = self._counter("jobs", "Jobs that ended.", "status", FINAL)
        self._in_flight = self._gauge("jobs_in_flight", "Jobs between submit and stored.", "state", IN_FLIGHT)
        self._job_s = self._histogram(
            "job_seconds", "From the last submit of a job until it was stored.", JOB_BUCKETS_S
        )
        self._retries = self._counter("retries", "Failed requests that are retried.", "stage", RETRY_STAGES)
        self._early_stops = self._total("early_stops", "Runs that stopped early.")

    def _make_submit_metrics(self) -> None:
        self._submits = self._counter("submits", "POSTs, by result.", "result", get_args(SubmitResult))
        self._submit_s = self._histogram(
            "submit_seconds", "From a POST until its result was in the ledger.", SUBMIT_BUCKETS_S
        )
        self._submit_errors = self._counter("submit_errors", "POSTs that the gateway refused.", "status", ("429",))
        self._charges = self._counter(
            "charges",
            "Accepted POSTs (charged), those of them that ended in ERROR (refunded), ambiguous POSTs (unknown), "
            "and those of them that were proved to be accepted (resolved, and charged).",
            "kind",
            CHARGE_KINDS,
        )
        self._rate = self._create(Gauge, "rate_per_second", "Current rate limit in submits per second.")
        self._submit_pauses = self._total("submit_pauses", "Times that all submits were paused.")
        self._paused_until = self._create(
            Gauge, "submits_paused_until_timestamp_seconds", "When paused submits resume, in seconds since 1970."
        )

    def _make_poll_metrics(self) -> None:
        self._polls = self._counter("polls", "Poll responses, by result.", "result", get_args(PollResult))
        self._callbacks = self._counter(
            "callbacks", "Callbacks for jobs of this run, by result.", "result", get_args(CallbackResult)
        )
        self._generation_s = self._histogram(
            "generation_seconds",
            "From accepted to finished by the gateway's timestamps, or else until detected.",
            GENERATION_BUCKETS_S,
        )
        self._lag_s = self._histogram(
            "lag_seconds", "From finished, by the gateway's timestamps, until detected.", LAG_BUCKETS_S
        )

    def _make_download_metrics(self) -> None:
        self._downloads = self._total("downloads", "Images stored.")
        self._downloaded_bytes = self._total("downloaded_bytes", "Bytes of the images stored.")
        self._download_s = self._histogram(
            "download_seconds", "From the last request for an image until it was stored.", DOWNLOAD_BUCKETS_S
        )

    def _create(self, kind: Callable[..., Any], name: str, documentation: str, **options: Any) -> Any:
        return kind(f"krea_batch_{name}", documentation, registry=self.registry, **options)

    def _total(self, name: str, documentation: str) -> Counter:
        metric: Counter = self._create(Counter, name, documentation)
        return metric

    def _counter(self, name: str, documentation: str, label: str, values: Iterable[str]) -> Counter:
        metric: Counter = self._create(Counter, name, documentation, labelnames=[label])
        for value in values:
            metric.labels(str(value))  # exported from the start, so that a rate() sees the first increment
        return metric

    def _gauge(self, name: str, documentation: str, label: str, values: Iterable[str]) -> Gauge:
        metric: Gauge = self._create(Gauge, name, documentation, labelnames=[label])
        for value in values:
            metric.labels(str(value))
        return metric

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        metric: Histogram = self._create(Histogram, name, documentation, buckets=buckets)
        return metric

    # ---- one method per event ------------------------------------------------------------------------------

    def _on_state_changed(self, event: StateChanged) -> None:
        if event.old in IN_FLIGHT:
            self._in_flight.labels(event.old.value).dec()
        if event.new in IN_FLIGHT:
            self._in_flight.labels(event.new.value).inc()
        if event.old is State.ACCEPTED and event.new in (State.PENDING, State.ERRORED):
            self._charges.labels("refunded").inc()
        if event.old is State.AMBIGUOUS and event.new is State.ACCEPTED:
            self._charges.labels("resolved").inc()
            self._charges.labels("charged").inc()

    def _on_job_ended(self, event: JobEnded) -> None:
        outcome = event.outcome
        self._jobs.labels(outcome.status.value).inc()
        if outcome.succeeded and outcome.submitted_at and outcome.stored_at:
            self._job_s.observe(_between_s(outcome.submitted_at, outcome.stored_at))

    def _on_job_resumed(self, event: JobResumed) -> None:
        if event.state in IN_FLIGHT:
            self._in_flight.labels(event.state.value).inc()

    def _on_submit_completed(self, event: SubmitCompleted) -> None:
        self._submits.labels(event.result).inc()
        if event.result != "not_sent":
            self._submit_s.observe(event.took_s)
        if event.status:
            self._submit_errors.labels(str(event.status)).inc()
        if event.result == "accepted":
            self._charges.labels("charged").inc()
        elif event.result == "ambiguous":
            self._charges.labels("unknown").inc()

    def _on_poll_completed(self, event: PollCompleted) -> None:
        self._polls.labels(event.result).inc()

    def _on_callback_received(self, event: CallbackReceived) -> None:
        self._callbacks.labels(event.result).inc()

    def _on_generation_completed(self, event: GenerationCompleted) -> None:
        self._generation_s.observe(event.took_s)
        if event.lag_s is not None:
            self._lag_s.observe(event.lag_s)

    def _on_image_stored(self, event: ImageStored) -> None:
        self._downloads.inc()
        self._downloaded_bytes.inc(event.bytes)
        self._download_s.observe(event.took_s)

    def _on_rate_changed(self, event: RateChanged) -> None:
        self._rate.set(event.per_s)

    def _on_submits_paused(self, event: SubmitsPaused) -> None:
        self._submit_pauses.inc()
        self._paused_until_at = max(self._paused_until_at, self._clock() + event.wait_s)
        self._paused_until.set(self._paused_until_at)

    def _on_retry_scheduled(self, event: RetryScheduled) -> None:
        self._retries.labels(event.stage).inc()

    def _on_run_stopping(self, _: RunStopping) -> None:
        self._early_stops.inc()

    def _on_run_closed(self, event: RunClosed) -> None:
        for state, count in event.unfinished.items():
            self._in_flight.labels(state.value).dec(count)


def _between_s(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
