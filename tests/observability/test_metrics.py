"""Tests of metrics: what each event counts for, and that totals equal what the run came to."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry

from krea_batch import Engine, Job, State
from krea_batch.events import (
    CallbackResult,
    Event,
    EventsDropped,
    GenerationCompleted,
    ImageStored,
    JobEnded,
    JobResumed,
    PollResult,
    RateChanged,
    RunClosed,
    RunStopping,
    StateChanged,
    SubmitCompleted,
    SubmitResult,
    SubmitsPaused,
)
from krea_batch.jobs import FINAL, Outcome
from krea_batch.ledger import Charges
from krea_batch.observability import MetricsListener
from krea_batch.observability.metrics import CHARGE_KINDS, RETRY_STAGES
from krea_batch.rules.verdicts import Finished, Waiting
from krea_batch.testing.scripted_gateway import ScriptedGateway
from tests.engine_fixtures import make_jobs, rows_by_id
from tests.observability.outcomes import (
    engine_with_listeners,
    gateway_with_every_outcome,
    metric_value,
    metric_values,
)
from tests.virtual_time_runs import run_virtual


def make_outcome(status: State = State.SUCCEEDED, **fields: Any) -> Outcome:
    defaults: dict[str, Any] = dict.fromkeys(["request_id", "error", "accepted_at", "finished_at"])
    defaults |= {"files": (), "request": {}, "metadata": {}, "polls": 1, "attempts": 1}
    defaults |= {"submitted_at": "2026-01-01T00:00:00.000Z", "stored_at": "2026-01-01T00:00:07.500Z"}
    return Outcome(id="a", status=status, **(defaults | fields))


def registry_after(*events: Event, at: float = 0.0) -> CollectorRegistry:
    """What the metrics say after these events."""
    listener = MetricsListener(clock=lambda: at)
    for event in events:
        listener(event)
    return listener.registry


class TestEachEvent:
    @pytest.mark.parametrize("end", sorted(FINAL))
    def test_every_end_is_counted(self, end: State) -> None:
        """A job that ended is counted under its own end, and all other ends stand at 0 beside it."""
        assert metric_values(registry_after(JobEnded(make_outcome(end))), "jobs_total") == {
            each: float(each is end) for each in FINAL
        }

    def test_a_job_in_flight_counts_in_one_state(self) -> None:
        """A job's moves take it from one state to the next; before the submit and after the end it is in none."""
        states = [State.PENDING, State.SUBMITTING, State.ACCEPTED, State.FINISHED, State.SUCCEEDED]
        moves = [StateChanged("a", old, new) for old, new in pairwise(states)]
        seen = [metric_values(registry_after(*moves[:count]), "jobs_in_flight") for count in range(len(moves) + 1)]
        assert [[state for state, count in each.items() if count] for each in seen] == [
            [], ["submitting"], ["accepted"], ["finished"], [],
        ]  # fmt: skip
        assert all(count in (0, 1) for each in seen for count in each.values())

    def test_deferred_jobs_are_no_longer_in_flight(self) -> None:
        """What an engine leaves to the next run is taken off, and what another engine does stays."""
        registry = registry_after(
            JobResumed("a", State.ACCEPTED), JobResumed("b", State.ACCEPTED), RunClosed({State.ACCEPTED: 1})
        )
        assert metric_values(registry, "jobs_in_flight") == {"submitting": 0, "accepted": 1, "finished": 0}

    @pytest.mark.parametrize("after", [State.PENDING, State.ERRORED])
    def test_error_is_a_refund(self, after: State) -> None:
        """An accepted POST that came to ERROR is charged and refunded, whether or not the job goes again."""
        registry = registry_after(SubmitCompleted("a", "accepted", 0, 0.1), StateChanged("a", State.ACCEPTED, after))
        assert metric_values(registry, "charges_total") == {"charged": 1, "refunded": 1, "unknown": 0, "resolved": 0}

    def test_an_ambiguous_post_is_an_unknown_charge(self) -> None:
        """A POST of which nobody knows is counted as unknown, and not as charged."""
        registry = registry_after(SubmitCompleted("a", "ambiguous", 0, 0.1))
        assert metric_values(registry, "charges_total") == {"charged": 0, "refunded": 0, "unknown": 1, "resolved": 0}

    def test_refusals_by_status(self) -> None:
        """A clear refusal is counted under its HTTP status; 429 is there from the start."""
        assert metric_values(registry_after(), "submit_errors_total") == {"429": 0}
        registry = registry_after(
            SubmitCompleted("a", "refused", 503, 0.1), SubmitCompleted("a", "rejected", 400, 0.1)
        )
        assert metric_values(registry, "submit_errors_total") == {"429": 0, "503": 1, "400": 1}

    def test_a_pause_lasts_until_the_latest_reported_end(self) -> None:
        """Of two holds that overlap, the one that ends later counts."""
        registry = registry_after(SubmitsPaused(30, 5, "429"), SubmitsPaused(10, 5, "429"), at=1000.0)
        assert metric_value(registry, "submits_paused_until_timestamp_seconds") == 1030
        assert metric_value(registry, "submit_pauses_total") == 2

    def test_the_rate_is_the_last_one_reported(self) -> None:
        """The gauge of the allowed rate follows what is told."""
        assert metric_value(registry_after(RateChanged(10.0), RateChanged(7.5)), "rate_per_second") == 7.5

    def test_lag_is_observed_only_where_it_is_known(self) -> None:
        """A job whose end the gateway does not date counts for generation and not for lag."""
        registry = registry_after(GenerationCompleted("a", 12.0, None), GenerationCompleted("b", 11.0, 0.4))
        assert metric_value(registry, "generation_seconds_sum") == 23
        assert metric_value(registry, "lag_seconds_count") == 1
        assert metric_value(registry, "lag_seconds_sum") == 0.4

    def test_a_job_lasts_from_submit_to_stored(self) -> None:
        """The length of a job is that of its row, and jobs without an image have none."""
        registry = registry_after(JobEnded(make_outcome()), JobEnded(make_outcome(State.FAILED, stored_at=None)))
        assert metric_value(registry, "job_seconds_count") == 1
        assert metric_value(registry, "job_seconds_sum") == 7.5

    def test_images_and_early_stops(self) -> None:
        """Images count by number and bytes, and an early stop once."""
        registry = registry_after(ImageStored("a", 1000, 0.2), ImageStored("a", 500, 0.3), RunStopping("no money"))
        assert metric_value(registry, "downloads_total") == 2
        assert metric_value(registry, "downloaded_bytes_total") == 1500
        assert metric_value(registry, "download_seconds_sum") == 0.5
        assert metric_value(registry, "early_stops_total") == 1

    def test_every_event_changes_something(self) -> None:
        """No kind of event is forgotten: the listener has a method for each."""
        assert set(MetricsListener()._handlers) == set(get_args(Event)) - {
            EventsDropped
        }  # which is told to slow readers alone


class TestRegistry:
    def test_each_has_its_own(self) -> None:
        """Two listeners stand side by side, and neither touches the library's global registry."""
        from prometheus_client import REGISTRY

        first, second = MetricsListener(), MetricsListener()
        first(RunStopping("enough"))
        assert metric_value(first.registry, "early_stops_total") == 1
        assert metric_value(second.registry, "early_stops_total") == 0
        assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("krea")]

    def test_an_embedders_registry_is_used(self, tmp_path: Path) -> None:
        """What an engine does is in the registry that its embedder gave, beside the embedder's own metrics."""
        registry = CollectorRegistry()

        async def main() -> None:
            async with engine_with_listeners(tmp_path, ScriptedGateway(), MetricsListener(registry)) as engine:
                assert (await engine.generate(Job(prompt="a cat"))).succeeded

        run_virtual(main())
        assert metric_value(registry, "jobs_total", status="succeeded") == 1

    def test_no_label_names_a_job(self, tmp_path: Path) -> None:
        """Ids, prompts and request_ids of a run are in no label."""
        registry = run_every_outcome(tmp_path)[0]
        samples = [sample for metric in registry.collect() for sample in metric.samples]
        label_values = {text for sample in samples for name, text in sample.labels.items() if name != "le"}
        known = {
            *State,
            *get_args(SubmitResult),
            *get_args(PollResult),
            *get_args(CallbackResult),
            *CHARGE_KINDS,
            *RETRY_STAGES,
        }
        assert {value for value in label_values - known if not value.isdigit()} == set()


def run_every_outcome(out: Path) -> tuple[CollectorRegistry, Engine, Charges]:
    """What the metrics, the counters and the books say of a run in which everything happens."""
    metrics = MetricsListener()
    gateway, jobs = gateway_with_every_outcome()

    async def main() -> tuple[Engine, Charges]:
        async with engine_with_listeners(out, gateway, metrics, rate="2/s", job_timeout_s=200.0) as engine:
            await engine.run(jobs)
            return engine, await engine.charges()

    return metrics.registry, *run_virtual(main())


class TestTotals:
    def test_ends_equal_the_results(self, tmp_path: Path) -> None:
        """Each end is counted as often as it is in results.jsonl, and images and bytes are those on disk."""
        registry, _, _ = run_every_outcome(tmp_path)
        ends = Counter(row["status"] for row in rows_by_id(tmp_path).values())
        assert {status for status, count in ends.items() if count} >= {"succeeded", "failed", "errored", "timed_out"}
        assert metric_values(registry, "jobs_total") == {end.value: ends[end.value] for end in FINAL}
        images = [file for row in rows_by_id(tmp_path).values() for file in row["files"]]
        assert metric_value(registry, "downloads_total") == len(images)
        assert metric_value(registry, "downloaded_bytes_total") == sum(file["bytes"] for file in images)
        assert metric_value(registry, "job_seconds_count") == ends["succeeded"]

    def test_submits_equal_the_posts(self, tmp_path: Path) -> None:
        """Every POST is counted once, by what it came to; so is each poll."""
        registry, engine, _ = run_every_outcome(tmp_path)
        stats = engine.stats()
        submits = metric_values(registry, "submits_total")
        assert sum(submits.values()) == stats.submits
        assert metric_value(registry, "submit_seconds_count") == stats.submits - submits["not_sent"]
        assert submits["accepted"] == stats.accepted
        assert all(submits.values())
        assert metric_value(registry, "submit_errors_total", status="429") == stats.rate_limited == 2
        polls = metric_values(registry, "polls_total")
        assert sum(polls.values()) == stats.polls == sum(row["polls"] for row in rows_by_id(tmp_path).values())
        assert all(polls.values())
        retries = metric_values(registry, "retries_total")
        assert all(count for where, count in retries.items() if where != "sink")  # there is none

    def test_charges_equal_the_ledger(self, tmp_path: Path) -> None:
        """What the metrics say was charged, came free and is unknown is what the ledger says."""
        registry, _, ledger_charges = run_every_outcome(tmp_path)
        charges = metric_values(registry, "charges_total")
        assert charges["charged"] - charges["refunded"] == ledger_charges.charged > 0
        assert charges["refunded"] == ledger_charges.refunded > 0
        assert charges["unknown"] == ledger_charges.unknown > 0

    def test_nothing_is_in_flight_at_the_end(self, tmp_path: Path) -> None:
        """After the run no job is in flight, the rate is the engine's, and generation was timed for each image."""
        registry, engine, _ = run_every_outcome(tmp_path)
        assert set(metric_values(registry, "jobs_in_flight").values()) == {0}
        assert metric_value(registry, "rate_per_second") == engine.stats().rate_per_s
        made = metric_values(registry, "polls_total")["finished"]
        assert metric_value(registry, "generation_seconds_count") == made


class TestInFlightAndLag:
    def test_in_flight_is_what_the_gateway_has(self, tmp_path: Path) -> None:
        """While jobs wait at the gateway, as many are counted as accepted; an immediate stop removes them."""
        metrics, gateway = MetricsListener(), ScriptedGateway()
        for job in make_jobs(5):
            gateway.poll_script[job.prompt] = [Waiting("QUEUED")]

        async def main() -> dict[str, float]:
            async with engine_with_listeners(tmp_path, gateway, metrics) as engine:
                for job in make_jobs(5):
                    await engine.submit(job)
                seen = metric_values(metrics.registry, "jobs_in_flight")
                engine.abort()
            return seen

        assert run_virtual(main()) == {"submitting": 0, "accepted": 5, "finished": 0}
        assert set(metric_values(metrics.registry, "jobs_in_flight").values()) == {0}

        gateway.poll_script.clear()
        metrics = MetricsListener()

        async def resume() -> dict[str, float]:
            async with engine_with_listeners(tmp_path, gateway, metrics):
                return metric_values(metrics.registry, "jobs_in_flight")

        assert run_virtual(resume()) == {"submitting": 0, "accepted": 5, "finished": 0}
        assert set(metric_values(metrics.registry, "jobs_in_flight").values()) == {0}
        assert metric_value(metrics.registry, "jobs_total", status="succeeded") == 5
        assert metric_value(metrics.registry, "submits_total", result="accepted") == 0
        assert metric_value(metrics.registry, "generation_seconds_count") == 0  # nobody knows when they were accepted

    def test_lag_is_what_the_gateway_did_not_take(self, tmp_path: Path) -> None:
        """Generation by the gateway's word and lag together are the age at which a job was seen finished."""
        metrics, gateway = MetricsListener(), ScriptedGateway()
        events: list[Event] = []

        url = "https://cdn.example/krea-2-large-text-to-image_00000000/1.png"
        gateway.poll_script["j0"] = [Finished((url,), "image/png", 0.25)]

        async def main() -> None:
            async with engine_with_listeners(tmp_path, gateway, metrics, events.append) as engine:
                await engine.generate(make_jobs(1)[0])

        run_virtual(main())
        (made,) = [event for event in events if isinstance(event, GenerationCompleted)]
        assert made.took_s == 0.25
        assert made.lag_s is not None
        assert made.lag_s > 0
        assert metric_value(metrics.registry, "lag_seconds_sum") == made.lag_s
