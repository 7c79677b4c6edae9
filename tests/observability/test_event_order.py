"""Tests of the events that the engine emits: each once, in order, and never before what it reports is durable."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from krea_batch import State
from krea_batch.events import (
    Event,
    ImageStored,
    JobEnded,
    JobResumed,
    RateChanged,
    RunClosed,
    StateChanged,
    SubmitCompleted,
    SubmitsPaused,
)
from krea_batch.jobs import FINAL
from krea_batch.rules.verdicts import Waiting
from krea_batch.testing import ScriptedGateway, run_virtual
from tests.engine_fixtures import ledger_states, make_jobs, query_ledger
from tests.observability.outcomes import OUTCOMES, engine_with_listeners, gateway_with_every_outcome

LEDGER_RESULTS = {
    "accepted": "accepted",
    "refused": "refused",
    "rejected": "refused",
    "ambiguous": "ambiguous",
    "not_sent": "not_sent",
}


def disk_latency_s() -> float:
    return 0.05


def events_of_every_outcome(out: Path) -> list[Event]:
    """Return all events of a run with every outcome."""
    events: list[Event] = []
    gateway, jobs = gateway_with_every_outcome()

    def on_event(event: Event) -> None:
        check_on_disk(out, event)
        events.append(event)

    async def main() -> None:
        options = {"rate": "2/s", "job_timeout_s": 200.0, "ambiguous": "resubmit"}
        async with engine_with_listeners(out, gateway, on_event, **options) as engine:
            await engine.run(jobs)

    run_virtual(main(), thread_duration_s=disk_latency_s)
    return events


def check_on_disk(out: Path, event: Event) -> None:
    """Check that a separate connection sees what the event reports.

    The state `finished` is recorded without waiting: after a crash, another free poll finds it again.
    """
    match event:
        case StateChanged(job_id, _, State.ERRORED | State.AMBIGUOUS as new):
            # The job may pass through this state to pending, in one transaction.
            assert ledger_states(out)[job_id] in (new, State.PENDING)
        case StateChanged(job_id, _, new) if new is not State.FINISHED:
            assert ledger_states(out)[job_id] == new
        case SubmitCompleted(job_id, result):
            sql = (
                "SELECT result FROM submissions JOIN jobs USING (job_no)"
                " WHERE job_id = ? ORDER BY submission_no DESC LIMIT 1"
            )
            assert query_ledger(out, sql, job_id) == [(LEDGER_RESULTS[result],)]
        case ImageStored(job_id, size_bytes):
            assert (out / "images" / f"{job_id}.png").stat().st_size == size_bytes
        case JobEnded(outcome):
            assert ledger_states(out)[outcome.id] == outcome.status
        case _:
            pass


def test_nothing_is_emitted_before_it_is_on_disk(tmp_path: Path) -> None:
    """When a state, the result of a POST, an image or an outcome is reported, it is already in the run directory."""
    events = events_of_every_outcome(tmp_path)
    assert {type(event) for event in events} >= {
        StateChanged,
        SubmitCompleted,
        ImageStored,
        JobEnded,
        RateChanged,
        RunClosed,
    }


def test_state_changes_of_a_job_are_consecutive(tmp_path: Path) -> None:
    """Each job starts as pending, each change starts where the previous one ended, and each job ends once."""
    changes_by_job: dict[str, list[StateChanged]] = defaultdict(list)
    events = events_of_every_outcome(tmp_path)
    for event in events:
        if isinstance(event, StateChanged):
            changes_by_job[event.job_id].append(event)
    assert len(changes_by_job) == len(OUTCOMES)
    for changes in changes_by_job.values():
        assert changes[0].old is State.PENDING
        assert all(one.new is next_.old for one, next_ in pairwise(changes))
        assert changes[-1].new in FINAL
    ended = [event.outcome.id for event in events if isinstance(event, JobEnded)]
    assert sorted(ended) == sorted(changes_by_job)


def test_a_submit_is_emitted_before_its_job_changes_state(tmp_path: Path) -> None:
    """Each POST is reported once, before its job leaves `submitting`.

    Only a job that returns to `pending` before it was sent has none.
    """
    posted: set[str] = set()
    for event in events_of_every_outcome(tmp_path):
        match event:
            case SubmitCompleted(job_id):
                assert job_id not in posted
                posted.add(job_id)
            case StateChanged(job_id, State.SUBMITTING, new):
                assert job_id in posted or new is State.PENDING
                posted.discard(job_id)
            case _:
                pass
    assert not posted


def test_the_rate_is_lowered_at_the_end_of_a_pause(tmp_path: Path) -> None:
    """After a 429, a pause reports the current rate; the next change of the rate is to a lower one."""
    events = [event for event in events_of_every_outcome(tmp_path) if isinstance(event, RateChanged | SubmitsPaused)]
    changes = list(
        pairwise(event for event in events if isinstance(event, RateChanged) or event.reason == "too many")
    )
    pauses = [(pause, after) for pause, after in changes if isinstance(pause, SubmitsPaused)]
    assert pauses
    for pause, after in pauses:
        assert isinstance(after, RateChanged)
        assert after.per_s < pause.per_s


def test_a_resumed_run_reports_the_jobs_it_resumes(tmp_path: Path) -> None:
    """The first run reports its unfinished jobs; the next one reports its rate, and then each job it resumes."""
    gateway, first, second = ScriptedGateway(), list[Event](), list[Event]()
    gateway.poll_script["j0"] = [Waiting("QUEUED")]

    async def stop() -> None:
        async with engine_with_listeners(tmp_path, gateway, first.append) as engine:
            await engine.submit(make_jobs(1)[0])
            engine.abort()

    async def resume() -> None:
        async with engine_with_listeners(tmp_path, gateway, second.append):
            pass

    run_virtual(stop())
    gateway.poll_script.clear()
    run_virtual(resume())
    assert first[-1] == RunClosed({State.SUBMITTING: 0, State.ACCEPTED: 1, State.FINISHED: 0})
    (request_id,) = gateway.charged
    assert second[:2] == [RateChanged(10.0), JobResumed("j0", State.ACCEPTED, request_id)]
    assert second[-1] == RunClosed({State.SUBMITTING: 0, State.ACCEPTED: 0, State.FINISHED: 0})
