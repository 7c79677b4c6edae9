"""Metrics and logs of `krea-batch run`, as a real process, against a simulator in another process."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from krea_batch import SettingsError
from krea_batch.cli.options.logging_options import serve_metrics
from krea_batch.observability import dashboard
from tests.processes import PROCESS_TIMEOUT_S, StartSimulator, result_rows, run_command, start_command, write_jobs

METRICS_SIMULATOR_OPTIONS = ("--tiny", "--latency", "uniform:0.2,0.5")
METRICS_RUN_OPTIONS = ("--rate", "20/s", "--poll-interval", "0.2")
SECRET = "s3cret-k3y-0123456789"


def metrics_url(run: Popen[str]) -> str:
    """Return the URL of the metrics, which the run prints first."""
    assert run.stderr is not None
    line = run.stderr.readline()
    assert line.startswith("Metrics: http://127.0.0.1:"), line
    return line.removeprefix("Metrics: ").strip()


def scrape(url: str) -> dict[tuple[str, ...], float]:
    """Return the metrics: values by the name of the series and the values of its labels."""
    with urllib.request.urlopen(url, timeout=PROCESS_TIMEOUT_S) as response:  # noqa: S310 - loopback
        families = text_string_to_metric_families(response.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {(sample.name.removeprefix("krea_batch_"), *sample.labels.values()): sample.value for sample in samples}


def log_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
class TestMetrics:
    def test_metrics_during_a_run(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """With --metrics-port 0 the run prints the URL of its metrics, which are consistent during the run."""
        write_jobs(tmp_path / "jobs.jsonl", 60)
        gateway = simulate(*METRICS_SIMULATOR_OPTIONS).gateway_url
        run = start_command(
            "run",
            "jobs.jsonl",
            "--out",
            "out",
            "--gateway",
            gateway,
            *METRICS_RUN_OPTIONS,
            "--metrics-port",
            "0",
            cwd=tmp_path,
        )
        url = metrics_url(run)
        while (metrics := scrape(url))["jobs_total", "succeeded"] < 5:
            assert run.poll() is None
        _, errors = run.communicate(timeout=PROCESS_TIMEOUT_S)
        assert run.returncode == 0, errors
        assert metrics["rate_per_second",] == 20
        assert (
            metrics["submits_total", "accepted"]
            == metrics["charges_total", "charged"]
            <= len(result_rows(tmp_path / "out"))
        )
        assert metrics["downloads_total",] >= metrics["jobs_total", "succeeded"]
        assert not [name for name, *_ in metrics if name.endswith("_created")]

    def test_port_from_environment(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """The port can be set in the environment; a free port is printed also with --quiet."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        arguments = (
            "run",
            "jobs.jsonl",
            "--out",
            "out",
            "--gateway",
            simulate(*METRICS_SIMULATOR_OPTIONS).gateway_url,
            *METRICS_RUN_OPTIONS,
            "--quiet",
        )
        done = run_command(*arguments, cwd=tmp_path, KREA_BATCH_METRICS_PORT="0")
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("Metrics: http://127.0.0.1:")

    def test_a_metrics_port_in_use_charges_nothing(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """If the port is in use, the exit code is 2, and nothing is submitted."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        simulator = simulate(*METRICS_SIMULATOR_OPTIONS)
        with socket.create_server(("127.0.0.1", 0)) as occupied:
            port = str(occupied.getsockname()[1])
            done = run_command(
                "run", "jobs.jsonl", "--out", "out", "--gateway", simulator.gateway_url, "--metrics-port", port,
                cwd=tmp_path,
            )  # fmt: skip
        assert done.returncode == 2
        assert f"--metrics-port: cannot listen on 127.0.0.1:{port}" in done.stderr
        assert simulator.admin_request("/totals")["charged"] == 0
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
class TestLogs:
    def test_a_log_of_json_lines(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """--log-file with --log-format json appends an object per line for each change of state, without the key."""
        write_jobs(tmp_path / "jobs.jsonl", 3)
        arguments = (
            "run", "jobs.jsonl", "--out", "out", *METRICS_RUN_OPTIONS,
            "--gateway", simulate(*METRICS_SIMULATOR_OPTIONS).gateway_url,
            "-vv", "--log-file", "out/run.log", "--log-format", "json",
        )  # fmt: skip
        done = run_command(*arguments, cwd=tmp_path, key=SECRET)
        assert done.returncode == 0, done.stderr
        assert "DEBUG" not in done.stderr
        first = log_lines(tmp_path / "out/run.log")
        assert {line["job"] for line in first if line.get("to") == "succeeded"} == {"00001", "00002", "00003"}
        assert {line["request_id"] for line in first if line.get("to") == "succeeded"} == {
            row["request_id"] for row in result_rows(tmp_path / "out")
        }
        assert run_command(*arguments, cwd=tmp_path, key=SECRET).returncode == 0
        assert log_lines(tmp_path / "out/run.log")[: len(first)] == first
        assert SECRET not in (tmp_path / "out/run.log").read_text()

    def test_text_on_standard_error(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """With -v a retry is logged as one line with its reason in quotes; with --log-format json as one object."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        gateway = simulate(
            *METRICS_SIMULATOR_OPTIONS, "--fault", "poll-garbled=1", "--fault-max-attempts", "1"
        ).gateway_url
        for out, format_options in (("text", ()), ("json", ("--log-format", "json"))):
            arguments = (
                "run",
                "jobs.jsonl",
                "--out",
                out,
                "--gateway",
                gateway,
                *METRICS_RUN_OPTIONS,
                "--quiet",
                "-v",
                *format_options,
            )
            done = run_command(*arguments, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            (line,) = [line for line in done.stderr.splitlines() if "stage" in line]
            if format_options:
                assert (json.loads(line)["job"], json.loads(line)["stage"]) == ("00001", "poll")
            else:
                assert ' I krea_batch ! job=00001 stage=poll reason="' in line

    def test_a_log_that_cannot_be_written(self, tmp_path: Path) -> None:
        """A --log-file that cannot be written is named, and the exit code is 2."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        arguments = ("run", "jobs.jsonl", "--out", "out", "--simulate", "--log-file", "jobs.jsonl/run.log")
        done = run_command(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "--log-file: cannot write jobs.jsonl/run.log (File exists); " in done.stderr
        assert not (tmp_path / "out").exists()


class TestExtras:
    def test_a_missing_library_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If prometheus_client is not installed, the error of --metrics-port names the extra to install."""
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        with ExitStack() as stack, pytest.raises(SettingsError, match=r"pip install (.* )?'krea-batch\[metrics\]'"):
            serve_metrics("0", stack, quiet=True)

    def test_unused_extras_are_not_imported(self, tmp_path: Path) -> None:
        """The package, the log formats and `run` import neither prometheus_client nor opentelemetry."""
        import subprocess

        script = (
            "import sys, krea_batch.cli.ui.run_session, krea_batch.cli.commands.run, krea_batch.observability\n"
            "krea_batch.Engine, krea_batch.observability.JsonFormatter, krea_batch.observability.dashboard()\n"
            "print([name for name in sys.modules if name.startswith(('prometheus', 'opentelemetry'))])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout == "[]\n", done.stderr

    def test_the_dashboard_is_printed(self, tmp_path: Path) -> None:
        """`krea-batch dashboard` prints the dashboard as JSON."""
        done = run_command("dashboard", cwd=tmp_path)
        assert done.returncode == 0
        assert done.stdout == dashboard()
        assert json.loads(done.stdout)["title"] == "krea-batch"
