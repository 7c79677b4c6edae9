"""`krea-batch worker`, and the other commands while several processes work on a run."""

from __future__ import annotations

import signal
from pathlib import Path

import orjson
import pytest

from tests.processes import (
    RunningSimulator,
    StartSimulator,
    exit_code,
    run_command,
    start_command,
    wait_until,
    write_jobs,
)

pytestmark = pytest.mark.slow

RUN = ("run", "jobs.jsonl", "--out", "out", "--shared", "--quiet")
OPTIONS = ("--rate", "20/s", "--poll-interval", "0.3")


@pytest.fixture
def simulator(simulate: StartSimulator) -> RunningSimulator:
    return simulate("--tiny", "--latency", "uniform:0.2,0.8")


def test_a_worker_helps_a_run(simulator: RunningSimulator, tmp_path: Path) -> None:
    """Both end when all jobs have ended. Each job is charged once, and `status` shows both processes meanwhile."""
    write_jobs(tmp_path / "jobs.jsonl", 120)
    gateway = ("--gateway", simulator.gateway_url)
    run = start_command(*RUN, *OPTIONS, *gateway, cwd=tmp_path)
    wait_until(lambda: simulator.accepted() >= 5, run)
    worker = start_command("worker", "out", *OPTIONS, *gateway, cwd=tmp_path)
    wait_until(lambda: len(workers_of(tmp_path)) == 2, worker)
    shown = run_command("status", "out", cwd=tmp_path).stdout
    assert shown.count("  worker ") == 2
    assert exit_code(worker) == 0
    assert exit_code(run) == 0
    assert simulator.accepted() == 120
    assert len((tmp_path / "out" / "results.jsonl").read_bytes().splitlines()) == 120
    assert workers_of(tmp_path) == []


def workers_of(folder: Path) -> list[object]:
    workers: list[object] = orjson.loads(run_command("status", "out", "--json", cwd=folder).stdout)["workers"]
    return workers


def test_a_worker_that_is_asked_to_stop_leaves_its_jobs(simulate: StartSimulator, tmp_path: Path) -> None:
    """After SIGTERM and --drain, the other process completes the jobs in flight."""
    simulator = simulate("--tiny", "--latency", "fixed:5")
    write_jobs(tmp_path / "jobs.jsonl", 60)
    gateway = ("--gateway", simulator.gateway_url)
    run = start_command(*RUN, *OPTIONS, *gateway, cwd=tmp_path)
    wait_until(lambda: simulator.accepted() >= 5, run)
    worker = start_command("worker", "out", "--drain", "0.5", *OPTIONS, *gateway, cwd=tmp_path)
    wait_until(lambda: any(each["in_flight"] for each in workers_of(tmp_path)[1:]), worker)  # type: ignore[index]
    worker.send_signal(signal.SIGTERM)
    assert exit_code(worker) == 130
    assert exit_code(run) == 0
    assert simulator.accepted() == 60


def test_a_worker_of_no_run(tmp_path: Path) -> None:
    """Without a run directory, the command says what is missing."""
    done = run_command("worker", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "not a run directory" in done.stderr


def test_a_retry_beside_running_processes(simulate: StartSimulator, tmp_path: Path) -> None:
    """The jobs become pending, and the processes that share the run submit them."""
    simulator = simulate("--tiny", "--latency", "uniform:0.2,0.8", "--fault", "job-failed=0.3")
    write_jobs(tmp_path / "jobs.jsonl", 200)
    gateway = ("--gateway", simulator.gateway_url)
    run = start_command(*RUN, *OPTIONS, *gateway, cwd=tmp_path)

    def failed() -> int:
        if not (tmp_path / "out" / "ledger.db").exists():
            return 0
        counts: dict[str, int] = orjson.loads(run_command("status", "out", "--json", cwd=tmp_path).stdout)["jobs"]
        return counts.get("failed", 0)

    wait_until(lambda: failed() >= 3, run)
    done = run_command("retry", "out", "--yes", *gateway, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "to be submitted by the processes that work on out" in done.stdout
    assert exit_code(run) in (0, 1)
    assert simulator.accepted() > 200
