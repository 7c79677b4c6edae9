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
from tests.engine_fixtures import jobs, rows
from tests.observability.outcomes import FATES, engine_on, every_fate
from tests.virtual_time_runs import run_virtual


def loop_ns() -> int:
    """The loop's own clock, on which hours pass in milliseconds."""
    return round(asyncio.get_running_loop().time() * 1e9)


class Exported:
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
        return {str(told(span)["krea_batch.job_id"]): span for span in spans}

    def parts(self, job: ReadableSpan) -> list[ReadableSpan]:
        """The spans under that of a job, in the order of their begins."""
        parts: dict[int, list[ReadableSpan]] = defaultdict(list)
        for span in self._spans.get_finished_spans():
            if span.parent:
                parts[span.parent.span_id].append(span)
        assert job.context
        return sorted(parts[job.context.span_id], key=begin)

    def names(self, job_id: str) -> list[str]:
        """What the spans under that of a job are called."""
        return [span.name for span in self.parts(self.jobs[job_id])]


def told(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def begin(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


def end(span: ReadableSpan) -> int:
    assert span.end_time is not None
    return span.end_time


@pytest.fixture
def of_every_fate(tmp_path: Path) -> Exported:
    """The spans of a run in which everything happens."""
    exported = Exported()
    gateway, todo = every_fate()

    async def main() -> None:
        async with engine_on(tmp_path, gateway, exported.traces, rate="2/s", job_timeout_s=200.0) as engine:
            await engine.run(todo)
            assert exported.traces.open_jobs == 0

    run_virtual(main())
    return exported


class TestSpans:
    def test_a_job_that_succeeds(self, of_every_fate: Exported) -> None:
        """A job is a root span with a submit, a wait and a download under it, one after the other and inside it."""
        job = of_every_fate.jobs["one plain"]
        assert job.parent is None
        submit, wait, download = of_every_fate.parts(job)
        assert [submit.name, wait.name, download.name] == ["submit", "wait", "download"]
        assert begin(job) <= begin(submit) < end(submit) <= begin(wait) < end(wait)
        assert end(wait) <= begin(download) < end(download) <= end(job)
        assert job.status.status_code is StatusCode.UNSET

    def test_every_row_has_its_span(self, of_every_fate: Exported, tmp_path: Path) -> None:
        """Each row of the results is one span that says the same of the job, and nothing of its prompt."""
        found = rows(tmp_path)
        assert set(of_every_fate.jobs) == set(found) == {f"one {fate}" for fate in FATES}
        for job_id, row in found.items():
            attributes = told(of_every_fate.jobs[job_id])
            assert attributes["krea_batch.status"] == row["status"]
            assert attributes["krea_batch.polls"] == row["polls"]
            assert attributes["krea_batch.attempts"] == row["attempts"]
            assert attributes["krea_batch.aspect_ratio"] == "16:9"
            assert attributes.get("krea_batch.request_id") == row["request_id"]
            assert "krea_batch.prompt" not in attributes
            assert attributes.get("error.type") == (row["error"] or {}).get("kind")

    def test_what_did_not_succeed_is_an_error(self, of_every_fate: Exported, tmp_path: Path) -> None:
        """A span's status is an error exactly where the job has none of its pictures, and says why."""
        for job_id, row in rows(tmp_path).items():
            status = of_every_fate.jobs[job_id].status
            failed = row["status"] != "succeeded"
            assert (status.status_code is StatusCode.ERROR) == failed
            assert status.description == (row["error"]["message"] if failed else None)

    def test_each_try_is_a_span(self, of_every_fate: Exported) -> None:
        """A job that was refused or came to ERROR has a submit for each POST, and a wait for each acceptance."""
        assert of_every_fate.names("one refused, then taken") == ["submit"] * 3 + ["wait", "download"]
        assert of_every_fate.names("one errored, then made") == ["submit", "wait"] * 2 + ["download"]
        assert of_every_fate.names("one rejected") == ["submit"]
        refused, _, taken, *_ = of_every_fate.parts(of_every_fate.jobs["one refused, then taken"])
        assert told(refused) == {"krea_batch.result": "refused", "http.response.status_code": 429}
        assert told(taken) == {"krea_batch.result": "accepted"}
        assert (refused.status.status_code, taken.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)

    def test_trouble_stands_where_it_happened(self, of_every_fate: Exported) -> None:
        """What failed and was tried again is an event of the span in which it did."""
        *_, download = of_every_fate.parts(of_every_fate.jobs["one download trouble"])
        (trouble,) = download.events
        assert dict(trouble.attributes or {}) == {"krea_batch.stage": "download", "krea_batch.reason": "cut"}


class TestEnds:
    def test_a_stop_ends_every_span(self, tmp_path: Path) -> None:
        """What a stop leaves to the next run is an ended span that says so, and is not held in memory; the next run
        goes on in a span of its own, without a submit."""
        first, second, gateway = Exported(), Exported(), ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]

        async def stop() -> None:
            async with engine_on(tmp_path, gateway, first.traces) as engine:
                await engine.submit(jobs(1)[0])
                assert first.traces.open_jobs == 1
                engine.abort()

        async def go_on() -> None:
            async with engine_on(tmp_path, gateway, second.traces):
                pass

        run_virtual(stop())
        assert first.traces.open_jobs == 0
        assert told(first.jobs["j0"])["krea_batch.unfinished"] is True
        assert first.names("j0") == ["submit", "wait"]
        gateway.poll_script.clear()
        run_virtual(go_on())
        assert second.names("j0") == ["wait", "download"]
        assert told(second.jobs["j0"])["krea_batch.resumed"] is True
        assert told(second.jobs["j0"])["krea_batch.status"] == "succeeded"

    def test_an_engine_that_breaks_ends_every_span(self, tmp_path: Path) -> None:
        """An exception in the engine's context leaves no span open."""
        exported, gateway = Exported(), ScriptedGateway()
        gateway.poll_script["j0"] = [Waiting("QUEUED")]

        async def main() -> None:
            async with engine_on(tmp_path, gateway, exported.traces) as engine:
                await engine.submit(jobs(1)[0])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_virtual(main())
        assert exported.traces.open_jobs == 0
        assert set(exported.jobs) == {"j0"}

    def test_the_span_of_whoever_opened_the_engine_is_no_parent(self, tmp_path: Path) -> None:
        """A job's trace is its own, also where the engine was opened inside a span."""
        exported = Exported()
        tracer = TracerProvider(shutdown_on_exit=False).get_tracer("embedder")

        async def main() -> None:
            with tracer.start_as_current_span("opening"):
                async with engine_on(tmp_path, ScriptedGateway(), exported.traces) as engine:
                    await engine.generate(Job(prompt="a cat", id="cat"))

        run_virtual(main())
        assert exported.jobs["cat"].parent is None

    @pytest.mark.parametrize(
        "event", [SubmitsPaused(1, 1, "429"), RateChanged(1), RunStopping("no money"), PollCompleted("a", "waiting")]
    )
    def test_other_events_make_no_span(self, event: Event) -> None:
        """What concerns no single step of a job begins no span."""
        exported = Exported()
        exported.traces(event)
        assert exported.traces.open_jobs == 0
