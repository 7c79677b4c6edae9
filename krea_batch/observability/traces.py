"""Events come in; a span for each job, with its submits, its wait and its download, goes out to OpenTelemetry.

    krea-2-large              from the intent to submit until the job has ended
    ├── submit                a POST, from when it left until its answer was on record; one for each try
    ├── wait                  from accepted until seen finished
    └── download              until every picture is on disk

Newcomers: the spans of a job are roots of a trace of their own, since a job outlives the request that asked for it,
and often the process. Job ids are those of one folder: give each engine a `Traces` of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider

from krea_batch.events import Closed, Ended, Event, Moved, Posted, TakenOver, Troubled
from krea_batch.jobs import Outcome, State

JOB = "krea-2-large"
STAGES = {State.ACCEPTED: "wait", State.FINISHED: "download"}
TOLD = ("aspect_ratio", "creativity", "seed")  # of the request; never its prompt


class _Trip:
    """The open spans of one job."""

    __slots__ = ("context", "job", "stage")

    def __init__(self, job: Span) -> None:
        self.job = job
        self.context = trace.set_span_in_context(job, Context())
        self.stage: Span | None = None


class Traces:
    """A listener of events that makes spans, by the global provider where none is given."""

    def __init__(
        self, tracer_provider: TracerProvider | None = None, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._tracer = trace.get_tracer("krea_batch", version("krea-batch"), tracer_provider)
        self._clock_ns = clock_ns
        self._trips: dict[str, _Trip] = {}
        self._hear: dict[type[Event], Callable[[Any], None]] = {
            Moved: self._moved,
            TakenOver: self._taken_over,
            Posted: self._posted,
            Troubled: self._troubled,
            Ended: self._ended,
            Closed: self._closed,
        }

    def __call__(self, event: Event) -> None:
        """Begin and end the spans that an event speaks of."""
        if hear := self._hear.get(type(event)):
            hear(event)

    @property
    def open_jobs(self) -> int:
        """Jobs whose span has not ended."""
        return len(self._trips)

    # ---- what each event begins and ends -----------------------------------------------------------------

    def _moved(self, event: Moved) -> None:
        trip = self._trips.get(event.job_id) or self._begin(event.job_id)
        if event.request_id:
            trip.job.set_attribute("krea_batch.request_id", event.request_id)
        self._enter(trip, event.new)

    def _taken_over(self, event: TakenOver) -> None:
        trip = self._begin(event.job_id)
        trip.job.set_attribute("krea_batch.taken_over", True)
        if event.request_id:
            trip.job.set_attribute("krea_batch.request_id", event.request_id)
        self._enter(trip, event.state)

    def _posted(self, event: Posted) -> None:
        trip = self._trips.get(event.job_id) or self._begin(event.job_id)
        now_ns = self._clock_ns()
        span = self._tracer.start_span(
            "submit", trip.context, start_time=now_ns - round(event.took_s * 1e9), attributes=_of_post(event)
        )
        if event.result != "accepted":
            span.set_status(Status(StatusCode.ERROR, event.result))
        span.end(now_ns)

    def _troubled(self, event: Troubled) -> None:
        if trip := self._trips.get(event.job_id):
            told = {"krea_batch.where": event.where, "krea_batch.reason": event.reason}
            (trip.stage or trip.job).add_event("trouble", told, self._clock_ns())

    def _ended(self, event: Ended) -> None:
        if trip := self._trips.pop(event.outcome.id, None):
            trip.job.set_attributes(_of_outcome(event.outcome))
            if error := event.outcome.error:
                trip.job.set_attribute("error.type", error.kind)
                trip.job.set_status(Status(StatusCode.ERROR, error.message))
            self._end(trip)

    def _closed(self, _: Closed) -> None:
        trips, self._trips = self._trips, {}
        for trip in trips.values():
            trip.job.set_attribute("krea_batch.left", True)  # the next run goes on with it, in a span of its own
            self._end(trip)

    # ---- parts -------------------------------------------------------------------------------------------

    def _begin(self, job_id: str) -> _Trip:
        job = self._tracer.start_span(
            JOB, Context(), start_time=self._clock_ns(), attributes={"krea_batch.job_id": job_id}
        )
        trip = self._trips[job_id] = _Trip(job)
        return trip

    def _enter(self, trip: _Trip, state: State) -> None:
        """End the stage that the job was in, and begin the one that it is in now, if that is one."""
        now_ns = self._clock_ns()
        if trip.stage:
            trip.stage.end(now_ns)
        name = STAGES.get(state)
        trip.stage = self._tracer.start_span(name, trip.context, start_time=now_ns) if name else None

    def _end(self, trip: _Trip) -> None:
        now_ns = self._clock_ns()
        if trip.stage:
            trip.stage.end(now_ns)
        trip.job.end(now_ns)


def _of_post(event: Posted) -> dict[str, str | int]:
    told: dict[str, str | int] = {"krea_batch.result": event.result}
    return told | {"http.response.status_code": event.status} if event.status else told


def _of_outcome(outcome: Outcome) -> dict[str, str | int]:
    told: dict[str, str | int] = {
        "krea_batch.status": outcome.status.value,
        "krea_batch.polls": outcome.polls,
        "krea_batch.attempts": outcome.attempts,
        "krea_batch.bytes": sum(file.bytes for file in outcome.files),
    }
    if outcome.request_id:
        told["krea_batch.request_id"] = outcome.request_id
    return told | {f"krea_batch.{name}": outcome.request[name] for name in TOLD if name in outcome.request}
