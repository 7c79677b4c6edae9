"""`krea-batch plan` estimates a run and sends nothing; `run` shows the estimate, and asks above a threshold."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.processes import COMMAND, PROCESS_TIMEOUT_S, StartSimulator, clean_environment, run_command, write_jobs

pytestmark = pytest.mark.slow


def run_plan(folder: Path, *options: str) -> dict[str, Any]:
    done = run_command("plan", "jobs.jsonl", "--json", *options, cwd=folder, key="")
    assert done.returncode == 0, done.stderr
    forecast: dict[str, Any] = json.loads(done.stdout)
    return forecast


def test_text_output(tmp_path: Path) -> None:
    """The estimate has one line per figure, with the cost; no file is written."""
    write_jobs(tmp_path / "jobs.jsonl", 40)
    rate_options = ("--rate", "10/s", "--latency", "3s")
    done = run_command("plan", "jobs.jsonl", *rate_options, "--price", "0.05", cwd=tmp_path, key="")
    assert done.returncode == 0, done.stderr
    assert [line[:11].strip() for line in done.stdout.splitlines()] == [
        "images",
        "time",
        "limited by",
        "in flight",
        "polls",
        "download",
        "cost",
    ]
    assert "2.00 at 0.05 per image" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.jsonl"]


def test_sweeps_are_counted(tmp_path: Path) -> None:
    """The estimate counts the jobs that `run` would make from a sweep."""
    write_jobs(tmp_path / "jobs.jsonl", 3)
    assert run_plan(tmp_path, "--seeds", "1..4", "--price", "1")["cost"] == 12


def test_remaining_jobs_of_a_run(tmp_path: Path) -> None:
    """With --out, jobs that have ended are not counted; --latency-from uses latencies and image sizes of a run."""
    write_jobs(tmp_path / "jobs.jsonl", 6)
    options = ("--simulate", "--time-scale=10", "--poll-interval=0.1", "-q")
    assert run_command("run", "jobs.jsonl", "--out", "out", *options, cwd=tmp_path).returncode == 0
    assert run_plan(tmp_path, "--out", "out")["jobs"] == 0
    assert (
        "limited by nothing: no jobs are left"
        in run_command("plan", "jobs.jsonl", "--out", "out", cwd=tmp_path).stdout
    )
    write_jobs(tmp_path / "jobs.jsonl", 10)
    forecast = run_plan(tmp_path, "--out", "out", "--latency-from", "out", "--rate", "100/s")
    assert forecast["jobs"] == 4
    assert forecast["seconds"] < 10  # a tenth of the usual latency
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "images").iterdir()]
    assert forecast["bytes"] == round(4 * sum(sizes) / len(sizes))
    assert run_plan(tmp_path, "--out", "out", "--seeds", "1..2")["jobs"] == 20  # none of which is one of the six


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--latency", "soon"], "--latency: invalid latency 'soon'; write 12s"),
        (["--latency", "5s", "--latency-from", "out"], "--latency-from: cannot be combined with --latency"),
        (["--latency-from", "out"], "not a run directory"),
        (["--price", "nan"], "'nan' is not a price. Write a number without a currency: 0.05"),
        (["--price", "-1"], "'-1' is not a price"),
        (["--price", "$0.05"], "'$0.05' is not a price"),
        (["--gateway-limit", "fast"], "--gateway-limit: invalid rate 'fast'"),
    ],
)
def test_invalid_forecast_options(tmp_path: Path, options: list[str], expected: str) -> None:
    """An invalid option is named, and the exit code is 2."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    done = run_command("plan", "jobs.jsonl", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr


class InteractiveCommand:
    """The command in a terminal, with its output in `text`."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._terminal_fd, child_fd = pty.openpty()
        env = clean_environment(PIXAZO_API_KEY="k", TERM="xterm")
        self._process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=cwd, env=env, stdin=child_fd, stdout=child_fd, stderr=child_fd
        )
        os.close(child_fd)
        self.text = ""

    def read_until(self, expected: str) -> None:
        while expected not in self.text and self._read():
            pass
        assert expected in self.text

    def type(self, text: str) -> None:
        os.write(self._terminal_fd, text.encode())

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._terminal_fd)
        return self._process.wait(PROCESS_TIMEOUT_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._terminal_fd], [], [], PROCESS_TIMEOUT_S)
        assert ready, self.text
        try:
            data = os.read(self._terminal_fd, 65536)
        except OSError:  # Linux raises this after the other end is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)


class TestRun:
    def start(self, simulate: StartSimulator, folder: Path, *options: str) -> tuple[Any, InteractiveCommand]:
        gateway = simulate("--latency=fixed:0.1", "--tiny")
        write_jobs(folder / "jobs.jsonl", 5)
        arguments = (
            "run",
            "jobs.jsonl",
            "--out",
            "out",
            "--gateway",
            gateway.gateway_url,
            "--poll-interval=0.1",
            *options,
        )
        return gateway, InteractiveCommand(*arguments, cwd=folder)

    @pytest.mark.parametrize(("answer", "code", "posts"), [("n\n", 2, 0), ("y\n", 0, 5)])
    def test_confirmation(self, simulate: StartSimulator, tmp_path: Path, answer: str, code: int, posts: int) -> None:
        """Above the threshold the run asks for confirmation; after "no" nothing is submitted."""
        gateway, terminal = self.start(simulate, tmp_path, "--confirm-above", "4")
        terminal.read_until("Up to 5 images will be charged. Continue?")
        assert "5 images, about 0:" in terminal.text
        assert not gateway.admin_request("/ledger")["posts"]
        terminal.type(answer)
        assert terminal.end() == code
        assert len(gateway.admin_request("/ledger")["posts"]) == posts
        assert ("Nothing was submitted." in terminal.text) == (code == 2)

    @pytest.mark.parametrize("options", [["--confirm-above", "5"], ["--confirm-above", "4", "--yes"], []], ids=str)
    def test_no_confirmation(self, simulate: StartSimulator, tmp_path: Path, options: list[str]) -> None:
        """Up to the threshold, with --yes or without a threshold, the run shows the estimate and does not ask."""
        gateway, terminal = self.start(simulate, tmp_path, *options)
        assert terminal.end() == 0
        assert "5 images, about 0:" in terminal.text
        assert "will be charged" not in terminal.text
        assert len(gateway.admin_request("/ledger")["posts"]) == 5

    def test_without_a_terminal(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Without a terminal the run does not ask, so a script never waits for an answer."""
        gateway = simulate("--latency=fixed:0.1", "--tiny")
        write_jobs(tmp_path / "jobs.jsonl", 2)
        done = run_command(
            "run",
            "jobs.jsonl",
            "--out=out",
            "--gateway",
            gateway.gateway_url,
            "--confirm-above=1",
            "-q",
            cwd=tmp_path,
        )
        assert (done.returncode, done.stderr) == (0, "")
