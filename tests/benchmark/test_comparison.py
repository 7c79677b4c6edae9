"""Tests of `krea-batch bench --compare`: what is counted, the table, the plot, and each script as a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from krea_batch.benchmark.comparison import (
    ComparedProgram,
    ComparisonRow,
    ProgramRun,
    count_images,
    count_run,
    jobs_before_kill,
)
from krea_batch.benchmark.comparison_runner import ComparisonSettings, ProgramStart
from krea_batch.benchmark.output import COMPARISON_TITLES, comparison_cells
from krea_batch.benchmark.plots import write_comparison_plot
from krea_batch.benchmark.process_tree import ProcessTree
from krea_batch.benchmark.simulator_ledger import SimulatedLedger, SimulatedPost, SimulatedTotals
from krea_batch.storage.run_dir import PNG_END
from tests.benchmark.test_plots import plot_text
from tests.processes import PROCESS_TIMEOUT_S, RunningSimulator, StartSimulator, clean_environment, wait_until

RUN = ProgramRun(
    jobs=4,
    kills=3,
    limit_utilisation=0.5,
    polls_per_job=2.5,
    rate_limited=1,
    cpu_ms_per_job=7.5,
    paid_without_image=2,
    charged_twice=1,
    jobs_left=2,
    jobs_not_charged=1,
)


class TestCounts:
    def test_charges_images_and_jobs_are_compared(self) -> None:
        """Of four jobs, one is charged twice, one has no image, and one was never accepted."""
        posts = [
            SimulatedPost(0.0, 202, charged=True, body={"prompt": "image 0"}),
            SimulatedPost(0.5, 429, charged=False, body={"prompt": "image 1"}),
            SimulatedPost(1.0, 504, charged=True, body={"prompt": "image 1"}),
            SimulatedPost(1.5, 202, charged=True, body={"prompt": "image 1"}),
            SimulatedPost(2.0, 202, charged=True, body={"prompt": "image 2"}),
        ]
        ledger = SimulatedLedger(SimulatedTotals(accepted=4, polls=10), posts)
        assert count_run(ledger, 2, jobs=4, kills=3, per_s=2.0, cpu_s=0.03, problem=None) == RUN

    def test_nothing_was_accepted(self) -> None:
        """Without an accepted job, the share of the limit is None, and all jobs are left."""
        ledger = SimulatedLedger(SimulatedTotals(accepted=0, polls=0), [])
        run = count_run(ledger, 0, jobs=4, kills=0, per_s=2.0, cpu_s=0.0, problem="no network")
        assert (run.limit_utilisation, run.paid_without_image, run.jobs_left, run.jobs_not_charged) == (None, 0, 4, 4)

    def test_only_complete_images_count(self, tmp_path: Path) -> None:
        """A PNG that was cut off is no image."""
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "1.png").write_bytes(b"the chunks of an image" + PNG_END)
        (tmp_path / "images" / "2.png").write_bytes(b"cut off")
        (tmp_path / "3.part").write_bytes(PNG_END)
        assert count_images(tmp_path) == 1

    def test_kills_are_spread_over_the_jobs(self) -> None:
        """A kill comes each time that another quarter of the jobs has been accepted, at least one."""
        assert jobs_before_kill(200) == 50
        assert jobs_before_kill(2) == 1


class TestResults:
    def test_a_row_has_a_cell_for_each_title(self) -> None:
        """The cells are the values of both runs; a missing package and a failure are named instead."""
        row = ComparisonRow(program=ComparedProgram.THREADS, steady=RUN, killed=RUN)
        assert comparison_cells(row) == ["requests, threads", "0.500", "2.50", "1", "7.5", "2", "1", "2"]
        missing = ComparisonRow(program=ComparedProgram.RAY, missing_package="ray")
        assert comparison_cells(missing)[0] == "Ray stage (not installed: pip install 'krea-batch[ray]')"
        assert len(comparison_cells(missing)) == len(COMPARISON_TITLES)

    def test_the_plot_has_measured_programs_only(self, tmp_path: Path) -> None:
        """The plot names the measured programs and the panels, and leaves out a program that is not installed."""
        rows = [
            ComparisonRow(program=ComparedProgram.ENGINE, steady=RUN, killed=RUN),
            ComparisonRow(program=ComparedProgram.CELERY, missing_package="celery"),
        ]
        text = plot_text(write_comparison_plot(tmp_path, rows))
        for expected in ("krea-batch", "used of the limit", "charged twice", "jobs left", "7.5"):
            assert expected in text
        assert "Celery" not in text


class TestProgramStart:
    def test_a_crash_is_no_end(self, tmp_path: Path) -> None:
        """A program that ends with a traceback has crashed, although its exit code is that of failed jobs."""
        settings = ComparisonSettings(
            rate="20/s", per_s=0.0, jobs=4, poll_interval_s=0.1, latency="fixed:1", max_in_flight=4, folder=tmp_path
        )
        start = ProgramStart(ComparedProgram.THREADS, settings, "http://127.0.0.1:9", tmp_path)
        with start.running() as tree:
            assert tree.process.wait(PROCESS_TIMEOUT_S) == 1  # It divides by the rate.
        assert start.has_crashed()
        assert start.last_line().startswith("ZeroDivisionError")


class TestProcessTree:
    def test_descendants_are_counted_and_killed(self, tmp_path: Path) -> None:
        """The processor time includes that of a child of the child, and both are killed."""
        ready = tmp_path / "ready"
        child = (
            f"import os; [hash(n) for n in range(10**6)]; open({str(ready)!r}, 'w').write(str(os.getpid())); input()"
        )
        parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE) as process:
            tree = ProcessTree(process)
            wait_until(lambda: ready.exists() and ready.read_text(), process)
            child_process = psutil.Process(int(ready.read_text()))
            child_cpu_s = child_process.cpu_times().user
            assert tree.sample() is False
            assert tree.cpu_s >= child_cpu_s > 0
            tree.kill()
            assert tree.sample() is True
        assert process.returncode == -9
        with suppress(psutil.NoSuchProcess):
            assert child_process.status() == psutil.STATUS_ZOMBIE


def run_script(program: ComparedProgram, simulator: RunningSimulator, out: Path, **fields: Any) -> int:
    """Run a script to its end, and return its exit code."""
    run = {"gateway": simulator.gateway_url, "out": str(out), "jobs": 8, "per_s": 40.0, "poll_interval_s": 0.1}
    out.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", program.module],
        cwd=out,
        env=clean_environment(BENCH_RUN=json.dumps(run | fields)),
        timeout=PROCESS_TIMEOUT_S,
    ).returncode


SCRIPTS = (ComparedProgram.THREADS, ComparedProgram.TASKS, ComparedProgram.DEMO, ComparedProgram.CELERY)
needs_celery = pytest.mark.skipif(find_spec("celery") is None, reason="Celery is not installed (pip install celery)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, marks=needs_celery if program is ComparedProgram.CELERY else (), id=program.name)
        for program in SCRIPTS
    ],
)
class TestScripts:
    def test_faults_are_retried(self, program: ComparedProgram, simulate: StartSimulator, tmp_path: Path) -> None:
        """With 429s, 5xx and lost connections, each job has its image, and nothing is charged twice without a 504."""
        faults = ("submit-503=0.3", "poll-500=0.3", "cdn-503=0.3", "poll-cut=0.1", "submit-cut=0.1")
        options = [f"--fault={fault}" for fault in faults]
        simulator = simulate("--tiny", "--latency", "fixed:0.2", "--limit", "token-bucket:20/s,2", *options)
        assert run_script(program, simulator, tmp_path) == 0
        assert count_images(tmp_path) == 8
        assert simulator.admin_request("/totals")["charged"] == 8

    def test_a_second_start(self, program: ComparedProgram, simulate: StartSimulator, tmp_path: Path) -> None:
        """A script continues with the request_ids of an earlier start; the demo of the API document pays again."""
        simulator = simulate("--tiny", "--latency", "fixed:0.2")
        assert run_script(program, simulator, tmp_path) == 0
        for image in sorted(tmp_path.glob("*.png"))[:3]:
            image.unlink()
        assert run_script(program, simulator, tmp_path) == 0
        assert count_images(tmp_path) == 8
        charged = simulator.admin_request("/totals")["charged"]
        assert charged == (11 if program is ComparedProgram.DEMO else 8)

    def test_failed_jobs(self, program: ComparedProgram, simulate: StartSimulator, tmp_path: Path) -> None:
        """If jobs fail, the exit code is 1."""
        simulator = simulate("--tiny", "--latency", "fixed:0.1", "--fault=job-failed=1")
        assert run_script(program, simulator, tmp_path, jobs=2) == 1
