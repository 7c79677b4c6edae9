"""Processes that are started with SIGINT ignored, as a shell starts its background jobs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from textwrap import dedent

import pytest

from tests.processes import (
    COMMAND,
    PROCESS_TIMEOUT_S,
    StartSimulator,
    clean_environment,
    result_rows,
    run_command,
    wait_until,
    write_jobs,
)

IGNORE_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""

CHILD_HANDLER = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"

INNER_TEST = f"""
import os
import signal
import subprocess
import sys

def test_a_child_can_be_interrupted():
    assert subprocess.run([sys.executable, "-c", {CHILD_HANDLER!r}]).returncode == 0

def test_this_process_ignores_sigint():
    os.kill(os.getpid(), signal.SIGINT)
"""


def with_sigint_ignored(*command: str) -> list[str]:
    """Return a command line that runs a command with SIGINT ignored."""
    return [sys.executable, "-c", IGNORE_SIGINT, *command]


def test_children_of_tests_can_be_interrupted(tmp_path: Path) -> None:
    """Where pytest is started with SIGINT ignored, it still ignores SIGINT, and its children do not."""
    (tmp_path / "conftest.py").write_text(
        "from tests.processes import let_children_be_interrupted\n\nlet_children_be_interrupted()\n"
    )
    (tmp_path / "test_inner.py").write_text(dedent(INNER_TEST))
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        with_sigint_ignored(*pytest_command, str(tmp_path / "test_inner.py")),
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_children_ignore_sigint_without_the_helper() -> None:
    """Without `let_children_be_interrupted` a child of such a process ignores SIGINT, which is what it is for."""
    child = [sys.executable, "-c", CHILD_HANDLER]
    assert subprocess.run(with_sigint_ignored(*child)).returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_stops_in_order(simulate: StartSimulator, tmp_path: Path, number: signal.Signals) -> None:
    """`krea-batch run` with SIGINT ignored stops in order on a signal that is sent to it, and can be resumed."""
    write_jobs(tmp_path / "jobs.jsonl", 60)
    gateway = simulate("--tiny", "--latency", "fixed:0.1")
    command = [*COMMAND, "run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url]
    command += ["--rate", "20/s", "--poll-interval", "0.2", "--quiet"]
    environment = clean_environment(PIXAZO_API_KEY="test-key")
    process = subprocess.Popen(with_sigint_ignored(*command), cwd=tmp_path, env=environment)
    wait_until(lambda: gateway.accepted() >= 5, process)
    process.send_signal(number)
    assert process.wait(PROCESS_TIMEOUT_S) == 130
    stored = [row for row in result_rows(tmp_path / "out") if row["status"] == "succeeded"]
    charged = gateway.admin_request("/totals")["charged"]
    assert 5 <= len(stored) == charged < 60
    assert subprocess.run(command, cwd=tmp_path, env=environment, timeout=PROCESS_TIMEOUT_S).returncode == 0
    assert gateway.admin_request("/totals")["charged"] == 60


@pytest.mark.slow
def test_a_stopped_run_counts_submitted_jobs_only(simulate: StartSimulator, tmp_path: Path) -> None:
    """A run that stops says how many jobs are in flight, without those that wait for the rate limit."""
    write_jobs(tmp_path / "jobs.jsonl", 60)
    gateway = simulate("--tiny", "--latency", "fixed:10")
    command = [*COMMAND, "run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url, "--rate", "1/h"]
    environment = clean_environment(PIXAZO_API_KEY="test-key")
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    def is_in_flight() -> bool:
        done = run_command("status", "out", "--json", cwd=tmp_path)
        states = json.loads(done.stdout)["jobs"] if done.returncode == 0 else {}
        return states.get("accepted") == 1 and "submitting" not in states

    wait_until(is_in_flight, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PROCESS_TIMEOUT_S)
    assert "Stopping: waiting for 1 job in flight." in stderr


@pytest.mark.slow
def test_a_run_goes_on_after_its_terminal(simulate: StartSimulator, tmp_path: Path) -> None:
    """Started with nohup, a run goes on after SIGHUP, and after the reader of its messages has gone."""
    write_jobs(tmp_path / "jobs.jsonl", 60)
    gateway = simulate("--tiny", "--latency", "fixed:0.1", "--fault", "submit-500=0.2")
    command = ["nohup", *COMMAND, "run", "jobs.jsonl", "--out", "out", "--gateway", gateway.gateway_url]
    command += ["--rate", "20/s", "--poll-interval", "0.2", "-v"]
    environment = clean_environment(PIXAZO_API_KEY="test-key")
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline()
        process.stderr.close()
        wait_until(lambda: gateway.accepted() >= 5, process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PROCESS_TIMEOUT_S) == 0
    assert {row["status"] for row in result_rows(tmp_path / "out")} == {"succeeded"}
    assert gateway.admin_request("/totals")["charged"] == 60


@pytest.mark.slow
def test_a_simulator_ends(tmp_path: Path) -> None:
    """`krea-batch simulate` with SIGINT ignored ends on either signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        command = with_sigint_ignored(*COMMAND, "simulate", "--port", "0", "--json")
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())
        process.send_signal(number)
        process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 0


@pytest.mark.slow
def test_a_bench_completes_charged_jobs(simulate: StartSimulator, tmp_path: Path) -> None:
    """`krea-batch bench` with SIGINT ignored passes a signal on to its worker, which downloads what was charged."""
    gateway = simulate("--tiny", "--latency", "uniform:0.1,0.4")
    command = [*COMMAND, "bench", "--rates", "2/s", "--jobs", "20", "--poll-interval", "0.2", "--yes"]
    command += ["--out", "report", "--gateway", gateway.gateway_url]
    process = subprocess.Popen(
        with_sigint_ignored(*command),
        cwd=tmp_path,
        env=clean_environment(PIXAZO_API_KEY="test-key"),
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: gateway.admin_request("/totals")["charged"] >= 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PROCESS_TIMEOUT_S) == 130
    charged = gateway.admin_request("/totals")["charged"]
    assert 2 <= charged < 20
    assert len(list((tmp_path / "report" / "runs").rglob("*.png"))) == charged


@pytest.mark.slow
def test_a_page_ignores_sigint_and_ends_on_sigterm(tmp_path: Path) -> None:
    """`krea-batch view` with SIGINT ignored goes on after SIGINT, as background jobs do, and ends on SIGTERM."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    run = [*COMMAND, "run", "jobs.jsonl", "--out", "out", "--simulate", "--time-scale", "100", "--quiet"]
    assert subprocess.run(run, cwd=tmp_path, env=clean_environment(), timeout=PROCESS_TIMEOUT_S).returncode == 0
    command = with_sigint_ignored(*COMMAND, "view", "out", "--no-open", "--port", "0")
    process = subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = next(word for word in process.stdout.readline().split() if word.startswith("http://"))
    process.send_signal(signal.SIGINT)
    with urllib.request.urlopen(url, timeout=PROCESS_TIMEOUT_S) as response:  # noqa: S310 - loopback
        assert response.status == 200
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=PROCESS_TIMEOUT_S)
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in stderr
