"""Tests of traces: the spans of a run, as an exporter receives them."""

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
from krea_batch.testing import ScriptedGateway, run_virtual
from tests.engine_fixtures import make_jobs, rows_by_id
from tests.observability.outcomes import OUTCOMES, engine_with_listeners, gateway_with_every_outcome


def loop_ns() -> int:
    """Return the time of the event loop, which is virtual."""
    return round(asyncio.get_running_loop().time() * 1e9)


class SpanCollector:
    """A tracing listener, and the spans that it has ended."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.listener = TracingListener(provider, clock_ns=loop_ns)

    @property
    def jobs(self) -> dict[str, ReadableSpan]:
        """The spans of jobs, by job id."""
        spans = [span for span in self._spans.get_finished_spans() if span.name == JOB_SPAN]
        return {str(span_attributes(span)["krea_batch.job_id"]): span for span in spans}

    def child_spans(self, job: ReadableSpan) -> list[ReadableSpan]:
        """Return the child spans of a job, in the order of their start."""
        children: dict[int, list[ReadableSpan]] = defaultdict(list)
        for span in self._spans.get_finished_spans():
            if span.parent:
                children[span.parent.span_id].append(span)
        assert job.context
        return sorted(children[job.context.span_id], key=start_time)

    def child_names(self, job_id: str) -> list[str]:
        """Return the names of the child spans of a job."""
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
    """The spans of a run with every outcome."""
    collector = SpanCollector()
    gateway, jobs = gateway_with_every_outcome()

    async def main() -> None:
        async with engine_with_listeners(
            tmp_path, gateway, collector.listener, rate="2/s", job_timeout_s=200.0
        ) as engine:
            await engine.run(jobs)
            assert collector.listener.open_jobs == 0

    run_virtual(main())
    return collector


class TestSpans:
    def test_a_job_that_succeeds(self, every_outcome_spans: SpanCollector) -> None:
        """A job is a root span. Its children are submit, wait and download, one after the other and within it."""
        job = every_outcome_spans.jobs["one plain"]
        assert job.parent is None
        submit, wait, download = every_outcome_spans.child_spans(job)
        assert [submit.name, wait.name, download.name] == ["submit", "wait", "download"]
        assert start_time(job) <= start_time(submit) < end_time(submit) <= start_time(wait) < end_time(wait)
        assert end_time(wait) <= start_time(download) < end_time(download) <= end_time(job)
        assert job.status.status_code is StatusCode.UNSET

    def test_every_row_has_its_span(self, every_outcome_spans: SpanCollector, tmp_path: Path) -> None:
        """Each row of the results has one span with the same values, and no span has a prompt."""
        rows = rows_by_id(tmp_path)
        assert set(every_outcome_spans.jobs) == set(rows) == {f"one {prompt}" for prompt in OUTCOMES}
        for job_id, row in rows.items():
            attributes = span_attributes(every_outcome_spans.jobs[job_id])
            assert attributes["krea_batch.status"] == row["status"]
            assert attributes["krea_batch.polls"] == row["polls"]
            assert attributes["krea_batch.attempts"] == row["attempts"]
            assert attributes["krea_batch.aspect_ratio"] == "16:9"
            assert attributes.get("krea_batch.request_id") == row["request_id"]
            assert "krea_batch.prompt" not in attributes
            assert attributes.get("error.type") == (row["error"] or {}).get("kind")

    def test_jobs_that_did_not_succeed_are_errors(self, every_outcome_spans: SpanCollector, tmp_path: Path) -> None:
        """The status of a job's span is an error, with the job's message, exactly if the job did not succeed."""
        for job_id, row in rows_by_id(tmp_path).items():
            status = every_outcome_spans.jobs[job_id].status
            failed = row["status"] != "succeeded"
            assert (status.status_code is StatusCode.ERROR) == failed
            assert status.description == (row["error"]["message"] if failed else None)

    def test_each_attempt_is_a_span(self, every_outcome_spans: SpanCollector) -> None:
        """A job that was refused or ended in ERROR has a submit for each POST, and a wait for each accepted one."""
        spans = every_outcome_spans
        assert spans.child_names("one refused, then accepted") == ["submit"] * 3 + ["wait", "download"]
        assert spans.child_names("one errored, then finished") == ["submit", "wait"] * 2 + ["download"]
        assert spans.child_names("one rejected") == ["submit"]
        refused, _, accepted, *_ = spans.child_spans(spans.jobs["one refused, then accepted"])
        assert span_attributes(refused) == {"krea_batch.result": "refused", "http.response.status_code": 429}
        assert span_attributes(accepted) == {"krea_batch.result": "accepted"}
        assert (refused.status.status_code, accepted.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)

    def test_an_error_is_in_the_span_where_it_happened(self, every_outcome_spans: SpanCollector) -> None:
        """A failed request that is retried is an event `retry` of the span in which it failed."""
        *_, download = every_outcome_spans.child_spans(every_outcome_spans.jobs["one download error"])
        (retry,) = download.events
        assert retry.name == "retry"
        assert dict(retry.attributes or {}) == {"krea_batch.stage": "download", "krea_batch.reason": "cut"}


class TestEnds:
    def test_a_stop_ends_every_span(self, tmp_path: Path) -> None:
        """A stop ends the span of an unfinished job and marks it; the next run has a span of its own for it.

        The listener keeps nothing of the job in memory. The new span has no submit.
        """
        first, second, gateway = SpanCollector(), SpanCollector(), ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]

        async def stop() -> None:
            async with engine_with_listeners(tmp_path, gateway, first.listener) as engine:
                await engine.submit(make_jobs(1)[0])
                assert first.listener.open_jobs == 1
                engine.abort()

        async def resume() -> None:
            async with engine_with_listeners(tmp_path, gateway, second.listener):
                pass

        run_virtual(stop())
        assert first.listener.open_jobs == 0
        assert span_attributes(first.jobs["j0"])["krea_batch.unfinished"] is True
        assert first.child_names("j0") == ["submit", "wait"]
        gateway.poll_script.clear()
        run_virtual(resume())
        assert second.child_names("j0") == ["wait", "download"]
        assert span_attributes(second.jobs["j0"])["krea_batch.resumed"] is True
        assert span_attributes(second.jobs["j0"])["krea_batch.status"] == "succeeded"

    def test_an_engine_that_breaks_ends_every_span(self, tmp_path: Path) -> None:
        """An exception in the engine's context leaves no span open."""
        collector, gateway = SpanCollector(), ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]

        async def main() -> None:
            async with engine_with_listeners(tmp_path, gateway, collector.listener) as engine:
                await engine.submit(make_jobs(1)[0])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_virtual(main())
        assert collector.listener.open_jobs == 0
        assert set(collector.jobs) == {"j0"}

    def test_the_span_of_the_opener_is_not_a_parent(self, tmp_path: Path) -> None:
        """The span of a job has no parent, even if the engine was started within a span."""
        collector = SpanCollector()
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("embedder")

        async def main() -> None:
            with tracer.start_as_current_span("opening"):
                async with engine_with_listeners(tmp_path, ScriptedGateway(), collector.listener) as engine:
                    await engine.generate(Job(prompt="a cat", id="cat"))

        run_virtual(main())
        assert collector.jobs["cat"].parent is None

    @pytest.mark.parametrize(
        "event", [SubmitsPaused(1, 1, "429"), RateChanged(1), RunStopping("no money"), PollCompleted("a", "waiting")]
    )
    def test_other_events_make_no_span(self, event: Event) -> None:
        """Events that do not concern a step of one job start no span."""
        collector = SpanCollector()
        collector.listener(event)
        assert collector.listener.open_jobs == 0
