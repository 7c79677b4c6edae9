"""Tests of traces: the spans of a run, as an exporter gets them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from krea_batch import Job
from krea_batch.events import Event, PollCompleted, RateChanged, RunStopping, SubmitsPaused
from krea_batch.observability import TracingListener
from krea_batch.observability.traces import JOB_SPAN
from krea_batch.rules.verdicts import Waiting
from krea_batch.testing.scripted_gateway import ScriptedGateway
from tests.engine_fixtures import make_jobs, rows_by_id
from tests.observability.outcomes import OUTCOMES, engine_with_listeners, gateway_with_every_outcome
from tests.virtual_time_runs import run_virtual


def loop_ns() -> int:
    """The loop's own clock, on which hours pass in milliseconds."""
    return round(asyncio.get_running_loop().time() * 1e9)


class SpanCollector:
    """A `Traces` and the spans that it has ended."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.traces = TracingListener(provider, clock_ns=loop_ns)

    @property
    def jobs(self) -> dict[str, ReadableSpan]:
        """The spans of jobs, by job id."""
        spans = [span for span in self._spans.get_finished_spans() if span.name == JOB_SPAN]
        return {str(span_attributes(span)["krea_batch.job_id"]): span for span in spans}

    def child_spans(self, job: ReadableSpan) -> list[ReadableSpan]:
        """The spans under that of a job, in the order of their begins."""
        children: dict[int, list[ReadableSpan]] = defaultdict(list)
        for span in self._spans.get_finished_spans():
            if span.parent:
                children[span.parent.span_id].append(span)
        assert job.context
        return sorted(children[job.context.span_id], key=start_time)

    def child_names(self, job_id: str) -> list[str]:
        """What the spans under that of a job are called."""
        return [span.name for span in self.child_spans(self.jobs[job_id])]


def span_attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def start_time(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


def end_time(span: ReadableSpan) -> int:
    assert span.end_time is not None
    return span.end_time


@pytest.fixture
def every_outcome_spans(tmp_path: Path) -> SpanCollector:
    """The spans of a run in which everything happens."""
    collector = SpanCollector()
    gateway, jobs = gateway_with_every_outcome()

    async def main() -> None:
        async with engine_with_listeners(
            tmp_path, gateway, collector.traces, rate="2/s", job_timeout_s=200.0
        ) as engine:
            await engine.run(jobs)
            assert collector.traces.open_jobs == 0

    run_virtual(main())
    return collector


class TestSpans:
    def test_a_job_that_succeeds(self, every_outcome_spans: SpanCollector) -> None:
        """A job is a root span with a submit, a wait and a download under it, one after the other and inside it."""
        job = every_outcome_spans.jobs["one plain"]
        assert job.parent is None
        submit, wait, download = every_outcome_spans.child_spans(job)
        assert [submit.name, wait.name, download.name] == ["submit", "wait", "download"]
        assert start_time(job) <= start_time(submit) < end_time(submit) <= start_time(wait) < end_time(wait)
        assert end_time(wait) <= start_time(download) < end_time(download) <= end_time(job)
        assert job.status.status_code is StatusCode.UNSET

    def test_every_row_has_its_span(self, every_outcome_spans: SpanCollector, tmp_path: Path) -> None:
        """Each row of the results is one span that says the same of the job, and nothing of its prompt."""
        found = rows_by_id(tmp_path)
        assert set(every_outcome_spans.jobs) == set(found) == {f"one {prompt}" for prompt in OUTCOMES}
        for job_id, row in found.items():
            attributes = span_attributes(every_outcome_spans.jobs[job_id])
            assert attributes["krea_batch.status"] == row["status"]
            assert attributes["krea_batch.polls"] == row["polls"]
            assert attributes["krea_batch.attempts"] == row["attempts"]
            assert attributes["krea_batch.aspect_ratio"] == "16:9"
            assert attributes.get("krea_batch.request_id") == row["request_id"]
            assert "krea_batch.prompt" not in attributes
            assert attributes.get("error.type") == (row["error"] or {}).get("kind")

    def test_what_did_not_succeed_is_an_error(self, every_outcome_spans: SpanCollector, tmp_path: Path) -> None:
        """A span's status is an error exactly where the job has none of its images, and says why."""
        for job_id, row in rows_by_id(tmp_path).items():
            status = every_outcome_spans.jobs[job_id].status
            failed = row["status"] != "succeeded"
            assert (status.status_code is StatusCode.ERROR) == failed
            assert status.description == (row["error"]["message"] if failed else None)

    def test_each_try_is_a_span(self, every_outcome_spans: SpanCollector) -> None:
        """A job that was refused or came to ERROR has a submit for each POST, and a wait for each acceptance."""
        assert every_outcome_spans.child_names("one refused, then taken") == ["submit"] * 3 + ["wait", "download"]
        assert every_outcome_spans.child_names("one errored, then made") == ["submit", "wait"] * 2 + ["download"]
        assert every_outcome_spans.child_names("one rejected") == ["submit"]
        refused, _, taken, *_ = every_outcome_spans.child_spans(every_outcome_spans.jobs["one refused, then taken"])
        assert span_attributes(refused) == {"krea_batch.result": "refused", "http.response.status_code": 429}
        assert span_attributes(taken) == {"krea_batch.result": "accepted"}
        assert (refused.status.status_code, taken.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)

    def test_an_error_is_in_the_span_where_it_happened(self, every_outcome_spans: SpanCollector) -> None:
        """What failed and was tried again is an event of the span in which it did."""
        *_, download = every_outcome_spans.child_spans(every_outcome_spans.jobs["one download trouble"])
        (error_event,) = download.events
        assert dict(error_event.attributes or {}) == {"krea_batch.stage": "download", "krea_batch.reason": "cut"}


class TestEnds:
    def test_a_stop_ends_every_span(self, tmp_path: Path) -> None:
        """What a stop leaves to the next run is an ended span that says so, and is not held in memory; the next run
        goes on in a span of its own, without a submit."""
        first, second, gateway = SpanCollector(), SpanCollector(), ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]

        async def stop() -> None:
            async with engine_with_listeners(tmp_path, gateway, first.traces) as engine:
                await engine.submit(make_jobs(1)[0])
                assert first.traces.open_jobs == 1
                engine.abort()

        async def resume() -> None:
            async with engine_with_listeners(tmp_path, gateway, second.traces):
                pass

        run_virtual(stop())
        assert first.traces.open_jobs == 0
        assert span_attributes(first.jobs["j0"])["krea_batch.unfinished"] is True
        assert first.child_names("j0") == ["submit", "wait"]
        gateway.poll_script.clear()
        run_virtual(resume())
        assert second.child_names("j0") == ["wait", "download"]
        assert span_attributes(second.jobs["j0"])["krea_batch.resumed"] is True
        assert span_attributes(second.jobs["j0"])["krea_batch.status"] == "succeeded"

    def test_an_engine_that_breaks_ends_every_span(self, tmp_path: Path) -> None:
        """An exception in the engine's context leaves no span open."""
        exported, gateway = SpanCollector(), ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]

        async def main() -> None:
            async with engine_with_listeners(tmp_path, gateway, exported.traces) as engine:
                await engine.submit(make_jobs(1)[0])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_virtual(main())
        assert exported.traces.open_jobs == 0
        assert set(exported.jobs) == {"j0"}

    def test_the_span_of_the_opener_is_not_a_parent(self, tmp_path: Path) -> None:
        """A job's trace is its own, also where the engine was opened inside a span."""
        exported = SpanCollector()
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("embedder")

        async def main() -> None:
            with tracer.start_as_current_span("opening"):
                async with engine_with_listeners(tmp_path, ScriptedGateway(), exported.traces) as engine:
                    await engine.generate(Job(prompt="a cat", id="cat"))

        run_virtual(main())
        assert exported.jobs["cat"].parent is None

    @pytest.mark.parametrize(
        "event", [SubmitsPaused(1, 1, "429"), RateChanged(1), RunStopping("no money"), PollCompleted("a", "waiting")]
    )
    def test_other_events_make_no_span(self, event: Event) -> None:
        """What concerns no single step of a job begins no span."""
        exported = SpanCollector()
        exported.traces(event)
        assert exported.traces.open_jobs == 0
