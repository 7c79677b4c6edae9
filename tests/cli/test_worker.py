"""`krea-batch worker`, and the other commands while several processes work on a run."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from krea_batch.ledger import LedgerReader, LiveRun, read_ledger
from tests.engine_fixtures import ledger_states
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


def start_run_and_worker(
    simulator: RunningSimulator, folder: Path, *worker_options: str
) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Start both on one run directory. The gateway refuses all submits at first, so that neither is late."""
    simulator.admin_request("/settings", {"faults": {"submit-503": 1.0}})
    gateway = ("--gateway", simulator.gateway_url)
    run = start_command(*RUN, *OPTIONS, *gateway, cwd=folder)
    wait_until(lambda: simulator.admin_request("/totals")["posts"], run)
    worker = start_command("worker", "out", *worker_options, *OPTIONS, *gateway, cwd=folder)
    wait_until(lambda: len(live_runs(folder / "out")) == 2, worker)
    return run, worker


def live_runs(out: Path) -> list[LiveRun]:
    """Return the processes that work on a run, the first one first."""
    with read_ledger(out) as store:
        runs: list[LiveRun] = store.read(LedgerReader.workers)[0]
    return runs


def test_a_worker_helps_a_run(simulate: StartSimulator, tmp_path: Path) -> None:
    """Both end when all jobs have ended. Each job is charged once, and `status` shows both processes meanwhile."""
    simulator = simulate("--tiny", "--latency", "uniform:0.2,0.8")
    write_jobs(tmp_path / "jobs.jsonl", 60)
    run, worker = start_run_and_worker(simulator, tmp_path)
    shown = run_command("status", "out", cwd=tmp_path).stdout
    assert shown.count("  worker ") == 2
    simulator.admin_request("/settings", {"faults": {}})
    assert exit_code(worker) == 0
    assert exit_code(run) == 0
    assert simulator.accepted() == 60
    assert len((tmp_path / "out" / "results.jsonl").read_bytes().splitlines()) == 60
    assert live_runs(tmp_path / "out") == []


def test_a_worker_that_is_asked_to_stop_leaves_its_jobs(simulate: StartSimulator, tmp_path: Path) -> None:
    """After SIGTERM and --drain, the other process completes the jobs in flight."""
    simulator = simulate("--tiny", "--latency", "fixed:5")
    write_jobs(tmp_path / "jobs.jsonl", 60)
    run, worker = start_run_and_worker(simulator, tmp_path, "--drain", "0.5")
    simulator.admin_request("/settings", {"faults": {}})
    wait_until(lambda: any(each.in_flight for each in live_runs(tmp_path / "out")[1:]), worker)
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

    wait_until(simulator.accepted, run)
    wait_until(lambda: list(ledger_states(tmp_path / "out").values()).count("failed") >= 3, run)
    done = run_command("retry", "out", "--yes", *gateway, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "to be submitted by the processes that work on out" in done.stdout
    assert exit_code(run) in (0, 1)
    assert simulator.accepted() > 200
