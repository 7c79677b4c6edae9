"""`krea_batch.run`: jobs from scripts and notebooks, without asyncio."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, assert_type

import pytest

import krea_batch
from krea_batch import Engine, InputError, Job, JobEnded, JobError, Outcome, RunStopped, SettingsError, State
from krea_batch.engine.synchronous import list_jobs
from tests.engine_fixtures import ledger_states
from tests.processes import PROCESS_TIMEOUT_S, RunningSimulator, StartSimulator, clean_environment

INTERRUPTED_SCRIPT = """
import os, signal, sys
import krea_batch

gateway, interrupts = sys.argv[1], int(sys.argv[2])
sent = 0

def interrupt(event):
    global sent
    if isinstance(event, (krea_batch.SubmitCompleted, krea_batch.RunStopping)) and sent < interrupts:
        sent += 1
        os.kill(os.getpid(), signal.SIGINT)

krea_batch.run(
    [f"kite {n}" for n in range(40)], out="out", api_key="none", gateway=gateway, rate="10/s", poll_interval_s=0.2,
    listeners=[interrupt],
)
"""


@pytest.fixture
def simulator(simulate: StartSimulator) -> RunningSimulator:
    return simulate("--tiny", "--latency", "fixed:0.3")


@pytest.fixture
def options(simulator: RunningSimulator, tmp_path: Path) -> dict[str, Any]:
    """Return the parameters of a run on the simulator."""
    gateway = simulator.gateway_url
    return {"out": tmp_path / "out", "api_key": "none", "gateway": gateway, "rate": "50/s", "poll_interval_s": 0.2}


def test_outcomes_in_the_order_of_the_jobs(simulator: RunningSimulator, options: dict[str, Any]) -> None:
    """Prompts and jobs are mixed, equal prompts get an image each, and the same call again pays for nothing."""
    jobs: list[Job | str] = ["a cat", Job(prompt="an owl", id="owl"), "a dog", "a cat"]
    first = krea_batch.run(jobs, **options)
    assert [outcome.request["prompt"] for outcome in first] == ["a cat", "an owl", "a dog", "a cat"]
    assert all(outcome.succeeded for outcome in first)
    assert len({outcome.request_id for outcome in first}) == 4
    assert krea_batch.run(jobs, **options) == first
    assert simulator.admin_request("/totals")["charged"] == 4
    added = krea_batch.run(["a fox", *jobs], **options)
    assert added[1:] == first
    assert simulator.admin_request("/totals")["charged"] == 5


def test_in_a_running_event_loop(options: dict[str, Any]) -> None:
    """It works where a loop is running in this thread, as in a notebook."""

    async def cell() -> list[Outcome]:
        return krea_batch.run(["a cat"], **options)

    (outcome,) = asyncio.run(cell())
    assert outcome.succeeded


def test_listeners_follow_the_run(options: dict[str, Any]) -> None:
    """Listeners of the engine are called, as for a progress bar."""
    events: list[krea_batch.Event] = []
    krea_batch.run(["a cat", "a dog"], listeners=[events.append], **options)
    assert sum(isinstance(event, JobEnded) for event in events) == 2


def test_a_stop_is_raised(simulator: RunningSimulator, options: dict[str, Any]) -> None:
    """A run that stops by itself raises the reason; the same call with a higher limit goes on."""
    prompts = [f"kite {n}" for n in range(5)]
    with pytest.raises(RunStopped, match="max_charges"):
        krea_batch.run(prompts, max_charges=2, **options)
    assert len(krea_batch.run(prompts, max_charges=5, **options)) == 5
    assert simulator.admin_request("/totals")["charged"] == 5


@pytest.mark.parametrize("interrupts", [1, 2])
def test_ctrl_c(simulator: RunningSimulator, options: dict[str, Any], tmp_path: Path, interrupts: int) -> None:
    """Ctrl-C completes what is in flight, a second one does not; then KeyboardInterrupt is raised. A run resumes."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_SCRIPT, simulator.gateway_url, str(interrupts)],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert "RunStopped: interrupted; run again to resume" in done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    states = list(ledger_states(tmp_path / "out").values())
    assert 0 < simulator.admin_request("/totals")["charged"] < 40
    if interrupts == 1:
        assert {State(state) for state in states if State(state).info.charged} == {State.SUCCEEDED}
    else:
        assert "accepted" in states
    outcomes = krea_batch.run([f"kite {n}" for n in range(40)], **options)
    assert all(outcome.succeeded for outcome in outcomes)
    assert simulator.admin_request("/totals")["charged"] == 40


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ("a cat", r'jobs is a str.*; pass a list: run\(\["a red kite"\]'),
        ({"prompt": "a cat"}, "jobs is a dict"),
        (["a cat", " "], r"jobs\[1\]: the prompt is empty"),
        (["a cat", 3], r"jobs\[1\]: the prompt is int"),
        ([Job(prompt="a cat", creativity="wild")], r"jobs\[0\]: .*creativity"),  # type: ignore[arg-type]
        ([Job(prompt="a cat", id="x"), Job(prompt="a dog", id="x")], r"job 'x': jobs\[1\]: .* id of its own"),
    ],
)
def test_jobs_that_are_not_valid(tmp_path: Path, jobs: Any, message: str) -> None:
    """They are refused before the run directory is created, with what to do."""
    with pytest.raises(InputError, match=message):
        krea_batch.run(jobs, out=tmp_path / "out", api_key="none", gateway="http://127.0.0.1:9")
    assert not (tmp_path / "out").exists()


def test_the_errors_of_settings_are_those_of_the_engine(tmp_path: Path) -> None:
    """A setting that is not valid, and one that does not exist, raise what Engine raises."""
    with pytest.raises(SettingsError, match="max_in_flight"):
        krea_batch.run(["a cat"], tmp_path, api_key="none", max_in_flight=0)
    with pytest.raises(TypeError, match="no_such_setting"):
        krea_batch.run(["a cat"], tmp_path, no_such_setting=1)  # type: ignore[call-arg]


def test_the_signature_is_that_of_the_engine() -> None:
    """Type checkers, `help` and completion see the parameters of Engine after `jobs`."""
    parameters = list(inspect.signature(krea_batch.run).parameters)
    assert parameters == ["jobs", *inspect.signature(Engine).parameters]


def typed_calls(out: Path) -> None:
    """Let mypy check the types that callers see; not called."""
    assert_type(krea_batch.run(["a cat", Job(prompt="a dog")], out, rate="10/s"), list[Outcome])
    krea_batch.run(["a cat"], out, max_in_flight="many")  # type: ignore[arg-type]


def test_ids_depend_on_the_request_only() -> None:
    """Order, other jobs and metadata do not change an id; a field of the request does."""
    cat, dog = list_jobs(["a cat", "a dog"])
    assert [job.id for job in list_jobs(["a dog", Job(prompt="a cat", metadata={"n": 1})])] == [dog.id, cat.id]
    assert [job.id for job in list_jobs(["a cat"] * 3)] == [cat.id, f"{cat.id}-2", f"{cat.id}-3"]
    assert list_jobs([Job(prompt="a cat", seed=1)])[0].id not in (cat.id, dog.id)
    assert list_jobs([Job(prompt="a cat", id="mine")])[0].id == "mine"
    with pytest.raises(JobError, match="id of its own"):
        list_jobs(["a cat", Job(prompt="a dog", id=cat.id)])
