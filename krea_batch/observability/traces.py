"""A listener that records OpenTelemetry spans: one for each job, and under it its submits, wait and download.

    krea-2-large              from the recorded intent to submit until the job has ended
    ├── submit                a POST until its result is in the ledger; one per attempt
    ├── wait                  from accepted until detected as finished
    └── download              until every image is stored

Each job is a trace of its own, because it outlives the request that created it and sometimes the process. Job ids
are unique in one run directory only, so each engine needs a `TracingListener` of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider

from krea_batch.events import Event, JobEnded, JobResumed, RetryScheduled, RunClosed, StateChanged, SubmitCompleted
from krea_batch.jobs import Outcome, State

JOB_SPAN = "krea-2-large"
STAGE_SPANS = {State.ACCEPTED: "wait", State.FINISHED: "download"}
REQUEST_ATTRIBUTES = ("aspect_ratio", "creativity", "seed")  # never the prompt


class _JobSpans:
    """The open spans of one job."""

    __slots__ = ("context", "job", "stage")

    def __init__(self, job: Span) -> None:
        self.job = job
        self.context = trace.set_span_in_context(job, Context())
        self.stage: Span | None = None


class TracingListener:
    """A listener that records spans with `provider`, by default the global one."""

    def __init__(
        self, tracer_provider: TracerProvider | None = None, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._tracer = trace.get_tracer("krea_batch", version("krea-batch"), tracer_provider)
        self._clock_ns = clock_ns
        self._open_jobs: dict[str, _JobSpans] = {}
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            StateChanged: self._on_state_changed,
            JobResumed: self._on_job_resumed,
            SubmitCompleted: self._on_submit_completed,
            RetryScheduled: self._on_retry_scheduled,
            JobEnded: self._on_job_ended,
            RunClosed: self._on_run_closed,
        }

    def __call__(self, event: Event) -> None:
        """Start and end the spans that an event concerns. Other events change nothing."""
        if handler := self._handlers.get(type(event)):
            handler(event)

    @property
    def open_jobs(self) -> int:
        """The number of jobs whose span has not ended."""
        return len(self._open_jobs)

    # ---- one method per event ----------------------------------------------------------------------------

    def _on_state_changed(self, event: StateChanged) -> None:
        spans = self._open_jobs.get(event.job_id) or self._start_job(event.job_id)
        if event.request_id:
            spans.job.set_attribute("krea_batch.request_id", event.request_id)
        self._enter_stage(spans, event.new)

    def _on_job_resumed(self, event: JobResumed) -> None:
        spans = self._start_job(event.job_id)
        spans.job.set_attribute("krea_batch.resumed", True)
        if event.request_id:
            spans.job.set_attribute("krea_batch.request_id", event.request_id)
        self._enter_stage(spans, event.state)

    def _on_submit_completed(self, event: SubmitCompleted) -> None:
        spans = self._open_jobs.get(event.job_id) or self._start_job(event.job_id)
        now_ns = self._clock_ns()
        span = self._tracer.start_span(
            "submit",
            spans.context,
            start_time=now_ns - round(event.took_s * 1e9),
            attributes=_submit_attributes(event),
        )
        if event.result != "accepted":
            span.set_status(Status(StatusCode.ERROR, event.result))
        span.end(now_ns)

    def _on_retry_scheduled(self, event: RetryScheduled) -> None:
        if spans := self._open_jobs.get(event.job_id):
            attributes = {"krea_batch.stage": event.stage, "krea_batch.reason": event.reason}
            (spans.stage or spans.job).add_event("retry", attributes, self._clock_ns())

    def _on_job_ended(self, event: JobEnded) -> None:
        if spans := self._open_jobs.pop(event.outcome.id, None):
            spans.job.set_attributes(_outcome_attributes(event.outcome))
            if error := event.outcome.error:
                spans.job.set_attribute("error.type", error.kind)
                spans.job.set_status(Status(StatusCode.ERROR, error.message))
            self._end_job(spans)

    def _on_run_closed(self, _: RunClosed) -> None:
        open_jobs, self._open_jobs = self._open_jobs, {}
        for spans in open_jobs.values():
            spans.job.set_attribute("krea_batch.unfinished", True)  # the next run starts a new span for it
            self._end_job(spans)

    # ---- helpers -----------------------------------------------------------------------------------------

    def _start_job(self, job_id: str) -> _JobSpans:
        job = self._tracer.start_span(
            JOB_SPAN, Context(), start_time=self._clock_ns(), attributes={"krea_batch.job_id": job_id}
        )
        spans = self._open_jobs[job_id] = _JobSpans(job)
        return spans

    def _enter_stage(self, spans: _JobSpans, state: State) -> None:
        """End the span of the previous stage, and start that of the new state if it has one."""
        now_ns = self._clock_ns()
        if spans.stage:
            spans.stage.end(now_ns)
        name = STAGE_SPANS.get(state)
        spans.stage = self._tracer.start_span(name, spans.context, start_time=now_ns) if name else None

    def _end_job(self, spans: _JobSpans) -> None:
        now_ns = self._clock_ns()
        if spans.stage:
            spans.stage.end(now_ns)
        spans.job.end(now_ns)


def _submit_attributes(event: SubmitCompleted) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"krea_batch.result": event.result}
    return attributes | {"http.response.status_code": event.status} if event.status else attributes


def _outcome_attributes(outcome: Outcome) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "krea_batch.status": outcome.status.value,
        "krea_batch.polls": outcome.polls,
        "krea_batch.attempts": outcome.attempts,
        "krea_batch.bytes": sum(file.bytes for file in outcome.files),
    }
    if outcome.request_id:
        attributes["krea_batch.request_id"] = outcome.request_id
    return attributes | {
        f"krea_batch.{name}": outcome.request[name] for name in REQUEST_ATTRIBUTES if name in outcome.request
    }
