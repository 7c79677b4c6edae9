"""`krea-batch simulate` as a process: output, responses, exit, errors."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from krea_batch.cli.app import app
from krea_batch.testing.simulator.faults import FAULTS
from tests.simulator.simulator_fixture import CAT_BODY, CLIENT_TIMEOUT_S, SIMULATOR_KEY, SUBMIT_PATH

SIMULATE_COMMAND = [sys.executable, "-m", "krea_batch", "simulate"]
pytestmark = pytest.mark.slow

StartSimulator = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[StartSimulator]:
    """Start the command; processes that still run are killed at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def start_process(*options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*SIMULATE_COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start_process
    for process in running:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=CLIENT_TIMEOUT_S)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def stop_process(process: subprocess.Popen[str], signal_number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal. Returns the exit code, the unread output and the errors."""
    process.send_signal(signal_number)
    output, stderr = process.communicate(timeout=CLIENT_TIMEOUT_S)
    return process.returncode, output, stderr


def refusal_text(*options: str) -> str:
    """Run a command that ends with exit code 2 and serves nothing. Returns its error output."""
    run = subprocess.run([*SIMULATE_COMMAND, *options], capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S)
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


async def generate_image(gateway: str) -> tuple[dict[str, Any], bytes]:
    """Submit, poll until the job has ended, and download. Returns the last status and the image."""
    headers = {"Ocp-Apim-Subscription-Key": SIMULATOR_KEY}
    async with asyncio.timeout(CLIENT_TIMEOUT_S), aiohttp.ClientSession() as session:
        async with session.post(gateway + SUBMIT_PATH, json=CAT_BODY, headers=headers) as response:
            assert response.status == 202
            status = await response.json()
            url = status["polling_url"]
        while status["status"] in ("QUEUED", "PROCESSING"):
            async with session.get(url, headers=headers) as response:
                status = await response.json()
        async with session.get(status["output"]["media_url"][0]) as response:
            return status, await response.read()


def test_it_serves(start: StartSimulator) -> None:
    """With --json the first line has three URLs, which generate and serve an image and return the totals."""
    process = start("--json", "--time-scale", "100", "--image-bytes", "5000", "--balance", "3")
    urls = json.loads(first_line(process))
    assert set(urls) == {"gateway_url", "cdn_url", "admin_url"}
    status, image = asyncio.run(generate_image(urls["gateway_url"]))
    assert status["status"] == "COMPLETED"
    assert (image[:4], len(image)) == (b"\x89PNG", 5000)
    assert status["output"]["media_url"][0].startswith(urls["cdn_url"])

    async def totals() -> Any:
        async with aiohttp.ClientSession() as session, session.get(urls["admin_url"] + "/totals") as response:
            return await response.json()

    reported = asyncio.run(totals())
    assert (reported["accepted"], reported["charged"], reported["downloads"], reported["balance"]) == (1, 1, 1, 2)
    assert stop_process(process, signal.SIGINT) == (0, "", "")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_counts(start: StartSimulator, by: signal.Signals) -> None:
    """On a signal it ends with exit code 0 and prints how much was accepted, charged, polled and downloaded."""
    process = start("--tiny", "--time-scale", "1000")
    banner = "".join(first_line(process) for _ in range(5))
    gateway = re.search(r"http://\S+", banner)
    assert gateway
    asyncio.run(generate_image(gateway[0]))
    code, output, errors = stop_process(process, by)
    assert (code, errors) == (0, "")
    assert re.search(r"\n1 accepted, 1 charged, [\d,]+ polls, 1 downloads\n$", output)
    assert gateway[0] + "/_admin/totals" in banner
    assert f"--gateway {gateway[0]}" in banner


def test_jobs_survive_a_kill(start: StartSimulator, tmp_path: Path) -> None:
    """A job that was accepted before a kill -9 is known to the next process with the same state file."""
    options = ("--json", "--tiny", "--time-scale", "1000", "--state-file", str(tmp_path / "jobs"))
    process = start(*options)
    status, image = asyncio.run(generate_image(json.loads(first_line(process))["gateway_url"]))
    assert stop_process(process, signal.SIGKILL)[0] == -signal.SIGKILL
    cdn = json.loads(first_line(start(*options)))["cdn_url"]

    async def again() -> bytes:
        url = f"{cdn}/v1/{status['request_id']}/output.png"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await response.read()

    assert asyncio.run(again()) == image


def test_the_list_of_faults() -> None:
    """`--fault list` prints every fault with its meaning and exits."""
    run = subprocess.run(
        [*SIMULATE_COMMAND, "--fault", "list"], capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert dict(line.split(maxsplit=1) for line in run.stdout.splitlines()) == FAULTS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--port", "70000"], "--port"),
        (["--port", "x"], "--port"),
        (["--cdn-port", "-1"], "--cdn-port"),
        (["--latency", "slow"], "--latency"),
        (["--time-scale", "0"], "--time-scale"),
        (["--rate-limit", "10/s"], "--limit"),
        (["--poll-limit", "fast"], "--poll-limit"),
        (["--retry-after", "soon"], "--retry-after"),
        (["--fault", "poll-501=1"], "--fault"),
        (["--fault", "poll-500=often"], "--fault"),
        (["--fault", "poll-500=2"], "--fault"),
        (["--balance", "-1"], "--balance"),
        (["--outputs", "9"], "--outputs"),
        (["--image-bytes", "7"], "--image-bytes"),
        (["--state-file", "/missing/jobs"], "--state-file"),
        (["--nothing"], "--nothing"),
    ],
)
def test_invalid_options(options: list[str], expected: str) -> None:
    """An invalid option ends with exit code 2 and a message that names it."""
    done = CliRunner().invoke(app, ["simulate", "--port", "0", *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert expected in done.stderr


def test_a_port_in_use() -> None:
    """A port that is in use ends with exit code 2 and a message that names --port."""
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        errors = refusal_text("--port", str(used.getsockname()[1]))
    assert "--port" in errors
    assert "cannot listen on" in errors
