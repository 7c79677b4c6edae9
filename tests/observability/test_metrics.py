"""Tests of metrics: what each event changes, and that totals equal the results of the run."""

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
from krea_batch.testing import ScriptedGateway, run_virtual
from tests.engine_fixtures import make_jobs, rows_by_id
from tests.observability.outcomes import (
    engine_with_listeners,
    gateway_with_every_outcome,
    metric_value,
    metric_values,
)


def make_outcome(status: State = State.SUCCEEDED, **fields: Any) -> Outcome:
    defaults: dict[str, Any] = dict.fromkeys(["request_id", "error", "accepted_at", "finished_at"])
    defaults |= {"files": (), "request": {}, "metadata": {}, "polls": 1, "attempts": 1}
    defaults |= {"submitted_at": "2026-01-01T00:00:00.000Z", "stored_at": "2026-01-01T00:00:07.500Z"}
    return Outcome(id="a", status=status, **(defaults | fields))


def registry_after(*events: Event, at: float = 0.0) -> CollectorRegistry:
    """Return the registry of a listener after these events."""
    listener = MetricsListener(clock=lambda: at)
    for event in events:
        listener(event)
    return listener.registry


class TestEachEvent:
    @pytest.mark.parametrize("end", sorted(FINAL))
    def test_every_end_is_counted(self, end: State) -> None:
        """An ended job is counted under its state, and all other final states are exported as 0."""
        assert metric_values(registry_after(JobEnded(make_outcome(end))), "jobs_total") == {
            each: float(each is end) for each in FINAL
        }

    def test_a_job_in_flight_counts_in_one_state(self) -> None:
        """A job is counted in its current state only; before its submit and after its end it is counted in none."""
        states = [State.PENDING, State.SUBMITTING, State.ACCEPTED, State.FINISHED, State.SUCCEEDED]
        events = [StateChanged("a", old, new) for old, new in pairwise(states)]
        counts = [
            metric_values(registry_after(*events[:number]), "jobs_in_flight") for number in range(len(events) + 1)
        ]
        assert [[state for state, count in each.items() if count] for each in counts] == [
            [], ["submitting"], ["accepted"], ["finished"], [],
        ]  # fmt: skip
        assert all(count in (0, 1) for each in counts for count in each.values())

    def test_unfinished_jobs_are_no_longer_in_flight(self) -> None:
        """When an engine closes, only its own unfinished jobs are subtracted; those of another engine stay."""
        registry = registry_after(
            JobResumed("a", State.ACCEPTED), JobResumed("b", State.ACCEPTED), RunClosed({State.ACCEPTED: 1})
        )
        assert metric_values(registry, "jobs_in_flight") == {"submitting": 0, "accepted": 1, "finished": 0}

    @pytest.mark.parametrize("after", [State.PENDING, State.ERRORED])
    def test_error_is_a_refund(self, after: State) -> None:
        """An accepted POST that ended in ERROR is charged and refunded, whether or not the job is requeued."""
        registry = registry_after(SubmitCompleted("a", "accepted", 0, 0.1), StateChanged("a", State.ACCEPTED, after))
        assert metric_values(registry, "charges_total") == {"charged": 1, "refunded": 1, "unknown": 0, "resolved": 0}

    def test_an_ambiguous_post_is_an_unknown_charge(self) -> None:
        """An ambiguous POST counts as unknown, and not as charged."""
        registry = registry_after(SubmitCompleted("a", "ambiguous", 0, 0.1))
        assert metric_values(registry, "charges_total") == {"charged": 0, "refunded": 0, "unknown": 1, "resolved": 0}

    def test_submit_errors_by_status(self) -> None:
        """A refused or rejected POST is counted under its HTTP status; 429 is exported from the start."""
        assert metric_values(registry_after(), "submit_errors_total") == {"429": 0}
        registry = registry_after(
            SubmitCompleted("a", "refused", 503, 0.1), SubmitCompleted("a", "rejected", 400, 0.1)
        )
        assert metric_values(registry, "submit_errors_total") == {"429": 0, "503": 1, "400": 1}

    def test_a_pause_lasts_until_the_latest_reported_end(self) -> None:
        """Of two overlapping pauses, the one that ends later counts."""
        registry = registry_after(SubmitsPaused(30, 5, "429"), SubmitsPaused(10, 5, "429"), at=1000.0)
        assert metric_value(registry, "submits_paused_until_timestamp_seconds") == 1030
        assert metric_value(registry, "submit_pauses_total") == 2

    def test_the_rate_is_the_last_one_reported(self) -> None:
        """The gauge of the rate has the last reported value."""
        assert metric_value(registry_after(RateChanged(10.0), RateChanged(7.5)), "rate_per_second") == 7.5

    def test_lag_is_observed_only_where_it_is_known(self) -> None:
        """A job without timestamps of the gateway counts for generation, and not for lag."""
        registry = registry_after(GenerationCompleted("a", 12.0, None), GenerationCompleted("b", 11.0, 0.4))
        assert metric_value(registry, "generation_seconds_sum") == 23
        assert metric_value(registry, "lag_seconds_count") == 1
        assert metric_value(registry, "lag_seconds_sum") == 0.4

    def test_a_job_lasts_from_submit_to_stored(self) -> None:
        """The duration of a job is taken from its outcome; jobs without an image have none."""
        registry = registry_after(JobEnded(make_outcome()), JobEnded(make_outcome(State.FAILED, stored_at=None)))
        assert metric_value(registry, "job_seconds_count") == 1
        assert metric_value(registry, "job_seconds_sum") == 7.5

    def test_images_and_early_stops(self) -> None:
        """Stored images are counted with their bytes and durations, and an early stop once."""
        registry = registry_after(ImageStored("a", 1000, 0.2), ImageStored("a", 500, 0.3), RunStopping("no money"))
        assert metric_value(registry, "downloads_total") == 2
        assert metric_value(registry, "downloaded_bytes_total") == 1500
        assert metric_value(registry, "download_seconds_sum") == 0.5
        assert metric_value(registry, "early_stops_total") == 1

    def test_every_event_changes_something(self) -> None:
        """The listener has a handler for each kind of event, except the one that only a slow stream receives."""
        assert set(MetricsListener()._handlers) == set(get_args(Event)) - {EventsDropped}


class TestRegistry:
    def test_each_listener_has_its_own(self) -> None:
        """Two listeners do not share metrics, and neither uses the library's global registry."""
        from prometheus_client import REGISTRY

        first, second = MetricsListener(), MetricsListener()
        first(RunStopping("enough"))
        assert metric_value(first.registry, "early_stops_total") == 1
        assert metric_value(second.registry, "early_stops_total") == 0
        assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("krea")]

    def test_a_given_registry_is_used(self, tmp_path: Path) -> None:
        """A listener with a registry of the caller keeps its metrics there."""
        registry = CollectorRegistry()

        async def main() -> None:
            async with engine_with_listeners(tmp_path, ScriptedGateway(), MetricsListener(registry)) as engine:
                assert (await engine.generate(Job(prompt="a cat"))).succeeded

        run_virtual(main())
        assert metric_value(registry, "jobs_total", status="succeeded") == 1

    def test_no_label_names_a_job(self, tmp_path: Path) -> None:
        """No label of a run has an id, a prompt or a request_id."""
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
    """Return the metrics, the engine and the ledger's charges of a run with every outcome."""
    metrics = MetricsListener()
    gateway, jobs = gateway_with_every_outcome()

    async def main() -> tuple[Engine, Charges]:
        async with engine_with_listeners(out, gateway, metrics, rate="2/s", job_timeout_s=200.0) as engine:
            await engine.run(jobs)
            return engine, await engine.charges()

    return metrics.registry, *run_virtual(main())


class TestTotals:
    def test_outcomes_equal_the_results(self, tmp_path: Path) -> None:
        """Each final state is counted as often as in results.jsonl; images and their bytes equal its files."""
        registry, _, _ = run_every_outcome(tmp_path)
        statuses = Counter(row["status"] for row in rows_by_id(tmp_path).values())
        assert {*statuses} >= {"succeeded", "failed", "errored", "timed_out"}
        assert metric_values(registry, "jobs_total") == {state.value: statuses[state.value] for state in FINAL}
        images = [file for row in rows_by_id(tmp_path).values() for file in row["files"]]
        assert metric_value(registry, "downloads_total") == len(images)
        assert metric_value(registry, "downloaded_bytes_total") == sum(file["bytes"] for file in images)
        assert metric_value(registry, "job_seconds_count") == statuses["succeeded"]

    def test_submits_equal_the_posts(self, tmp_path: Path) -> None:
        """Every POST and every poll is counted once, by its result."""
        registry, engine, _ = run_every_outcome(tmp_path)
        stats = engine.stats()
        submits = metric_values(registry, "submits_total")
        assert sum(submits.values()) - submits["not_sent"] == stats.submits
        assert metric_value(registry, "submit_seconds_count") == stats.submits
        assert submits["accepted"] == stats.accepted
        assert all(submits.values())
        assert metric_value(registry, "submit_errors_total", status="429") == stats.rate_limited == 2
        polls = metric_values(registry, "polls_total")
        assert sum(polls.values()) == stats.polls == sum(row["polls"] for row in rows_by_id(tmp_path).values())
        assert all(polls.values())
        retries = metric_values(registry, "retries_total")
        assert all(count for stage, count in retries.items() if stage != "sink")  # the run has no sink

    def test_charges_equal_the_ledger(self, tmp_path: Path) -> None:
        """The metrics have the ledger's numbers of charged, refunded and unknown POSTs."""
        registry, _, ledger_charges = run_every_outcome(tmp_path)
        charges = metric_values(registry, "charges_total")
        assert charges["charged"] - charges["refunded"] == ledger_charges.charged > 0
        assert charges["refunded"] == ledger_charges.refunded > 0
        assert charges["unknown"] == ledger_charges.unknown > 0

    def test_nothing_is_in_flight_at_the_end(self, tmp_path: Path) -> None:
        """After a run, no job is in flight, the rate is the engine's, and each finished job has a generation time."""
        registry, engine, _ = run_every_outcome(tmp_path)
        assert set(metric_values(registry, "jobs_in_flight").values()) == {0}
        assert metric_value(registry, "rate_per_second") == engine.stats().rate_per_s
        finished = metric_values(registry, "polls_total")["finished"]
        assert metric_value(registry, "generation_seconds_count") == finished


class TestInFlightAndLag:
    def test_in_flight_equals_the_jobs_at_the_gateway(self, tmp_path: Path) -> None:
        """Jobs that wait at the gateway count as accepted, in this run and after a resume; a stop removes them."""
        metrics, gateway = MetricsListener(), ScriptedGateway()
        for job in make_jobs(5):
            gateway.poll_script[job.prompt] = [Waiting("QUEUED")]

        async def main() -> dict[str, float]:
            async with engine_with_listeners(tmp_path, gateway, metrics) as engine:
                for job in make_jobs(5):
                    await engine.submit(job)
                in_flight = metric_values(metrics.registry, "jobs_in_flight")
                engine.abort()
            return in_flight

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
        assert metric_value(metrics.registry, "generation_seconds_count") == 0  # they were accepted in another run

    def test_lag_is_separate_from_generation(self, tmp_path: Path) -> None:
        """The generation time is the duration that the gateway reports, and the lag is a positive time besides it."""
        metrics, gateway = MetricsListener(), ScriptedGateway()
        events: list[Event] = []

        url = "https://cdn.example/krea-2-large-text-to-image_00000000/1.png"
        gateway.poll_script["j0"] = [Finished((url,), "image/png", 0.25)]

        async def main() -> None:
            async with engine_with_listeners(tmp_path, gateway, metrics, events.append) as engine:
                await engine.generate(make_jobs(1)[0])

        run_virtual(main())
        (completed,) = [event for event in events if isinstance(event, GenerationCompleted)]
        assert completed.took_s == 0.25
        assert completed.lag_s is not None
        assert completed.lag_s > 0
        assert metric_value(metrics.registry, "lag_seconds_sum") == completed.lag_s
