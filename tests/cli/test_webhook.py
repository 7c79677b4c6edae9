"""`krea-batch run --webhook-listen`: real processes, real callbacks over HTTP."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.processes import (
    COMMAND,
    PROCESS_TIMEOUT_S,
    RunningSimulator,
    StartSimulator,
    clean_environment,
    result_rows,
    run_command,
    wait_until,
    write_jobs,
)

pytestmark = pytest.mark.slow

JOBS = 120
LISTEN = ("--webhook-listen", "127.0.0.1:0")
JOB_LATENCY_OPTIONS = ("--tiny", "--latency", "uniform:1,2")


def run_with_webhook(simulator: RunningSimulator, tmp_path: Path, *options: str) -> dict[str, Any]:
    """Run a batch to its end, and return its rows by id."""
    jobs = write_jobs(tmp_path / "jobs.jsonl", JOBS)
    run_options = ("--rate", "40/s", "--poll-interval", "1", "--gateway", simulator.gateway_url)
    process = run_command("run", jobs, "--out", "out", *run_options, *options, cwd=tmp_path)
    assert process.returncode in (0, 1), process.stderr
    by_id = {row["id"]: row for row in result_rows(tmp_path / "out")}
    assert len(by_id) == JOBS
    return by_id


def test_valid_callbacks_save_polls(simulate: StartSimulator, tmp_path: Path) -> None:
    """Once callbacks have arrived, jobs need one poll; each job is charged once, though callbacks are sent twice.

    Without callbacks, a third of these jobs needs two polls or more.
    """
    simulated = simulate("--tiny", "--latency", "uniform:2,4", "--fault", "webhook-twice=0.3")
    found = run_with_webhook(simulated, tmp_path, *LISTEN)
    assert {row["status"] for row in found.values()} == {"succeeded"}
    later_polls = [row["polls"] for job_id, row in found.items() if int(job_id) > JOBS // 2]
    assert later_polls.count(1) >= 0.9 * len(later_polls)
    counts = simulated.admin_request("/ledger")
    assert sum(post["charged"] for post in counts["posts"]) == JOBS


def test_lost_callbacks_lose_nothing(simulate: StartSimulator, tmp_path: Path) -> None:
    """If half of the callbacks are lost, polls complete all jobs."""
    found = run_with_webhook(simulate(*JOB_LATENCY_OPTIONS, "--fault", "webhook-lost=0.5"), tmp_path, *LISTEN)
    assert {row["status"] for row in found.values()} == {"succeeded"}


def test_callbacks_resolve_submits_without_an_answer(simulate: StartSimulator, tmp_path: Path) -> None:
    """If answers to accepted POSTs are lost, callbacks identify their jobs, and none is charged twice."""
    simulated = simulate(*JOB_LATENCY_OPTIONS, "--fault", "submit-lost=0.1")
    found = run_with_webhook(simulated, tmp_path, *LISTEN)
    totals = simulated.admin_request("/ledger")["totals"]
    assert totals["undelivered"] >= 3
    assert totals["charged"] == JOBS
    assert {row["status"] for row in found.values()} == {"succeeded"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--webhook-url", "https://my.host/krea"), "webhook-listen"),
        (("--webhook-listen", "0.0.0.0:0"), "webhook-url"),
        (("--webhook-listen", "127.0.0.1:0", "--webhook-url", "http://my.host/"), "unencrypted"),
    ],
)
def test_an_invalid_callback_address(
    simulate: StartSimulator, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    """An invalid callback address gives exit code 2, and nothing is submitted."""
    simulated = simulate("--tiny")
    jobs = write_jobs(tmp_path / "jobs.jsonl", 1)
    done = run_command("run", jobs, "--out", "out", "--gateway", simulated.gateway_url, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert simulated.admin_request("/ledger")["posts"] == []


def test_a_webhook_port_in_use(simulate: StartSimulator, tmp_path: Path) -> None:
    """A port that is in use gives exit code 2, and nothing is submitted."""
    simulated = simulate("--tiny")
    jobs = write_jobs(tmp_path / "jobs.jsonl", 1)
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        address = f"127.0.0.1:{occupied.getsockname()[1]}"
        options = ("--gateway", simulated.gateway_url, "--webhook-listen", address)
        done = run_command("run", jobs, "--out", "out", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert address in done.stderr
    assert json.dumps(simulated.admin_request("/ledger")["posts"]) == "[]"


@pytest.mark.parametrize(
    "data",
    [b"", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{", b"\0\r\n\r\n"],
    ids=["idle", "half sent", "not HTTP"],
)
def test_connections_of_strangers(data: bytes, simulate: StartSimulator, tmp_path: Path) -> None:
    """Hundreds of open connections, with few file descriptors, neither stop the run nor delay its end."""
    simulated = simulate("--tiny", "--latency", "fixed:5")
    write_jobs(tmp_path / "jobs.jsonl", 40)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("--gateway", simulated.gateway_url, "--rate", "20/s", "--poll-interval", "0.5")
    listen = ("--webhook-listen", f"127.0.0.1:{port}", "--json")
    command = shlex.join([*COMMAND, "run", "jobs.jsonl", "--out", "out", *options, *listen])
    process = subprocess.Popen(
        ["sh", "-c", f"ulimit -n 200; exec {command}"],
        cwd=tmp_path,
        env=clean_environment(PIXAZO_API_KEY="k"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: simulated.accepted() >= 2, process)
    with ExitStack() as stack:
        for _ in range(300):
            with suppress(ConnectionError):  # the connections are closed, also while they are opened
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), PROCESS_TIMEOUT_S))
                connection.sendall(data)
        stdout, stderr = process.communicate(timeout=PROCESS_TIMEOUT_S)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert json.loads(stdout)["jobs"] == {"succeeded": 40}
    assert json.loads(stdout)["seconds"] < 60  # one connection held the end for 60 s more
