"""`krea-batch bench` as a real command: small sweeps, their output, and their charges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from krea_batch.benchmark.comparison import ENGINES, INSTALL_COMMANDS, KILLS, ComparedProgram
from tests.processes import (
    COMMAND,
    PROCESS_TIMEOUT_S,
    StartSimulator,
    clean_environment,
    run_command,
    run_in_terminal,
    start_command,
    wait_until,
    without_package,
)

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

BENCH_SIMULATOR_OPTIONS = (
    "--rates",
    "20/s,40/s",
    "--jobs",
    "8",
    "--latency",
    "uniform:0.1,0.4",
    "--poll-interval",
    "0.2",
)
PLOTS = {"throughput.svg", "timeline.svg", "rate_limited.svg", "polls.svg", "cost.svg", "loop.svg"}


def bench_results(folder: Path) -> list[dict[str, Any]]:
    """Return the results in bench.json."""
    results: list[dict[str, Any]] = json.loads((folder / "bench.json").read_text())["results"]
    return results


def descendant_pids(root: int) -> set[int]:
    """Return the processes that descend from `root`."""
    parent_of = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent_of[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
    pids = {root}
    while more := {pid for pid, parent in parent_of.items() if parent in pids} - pids:
        pids |= more
    return pids - {root}


class TestSimulated:
    def test_a_sweep_writes_table_json_and_plots(self, tmp_path: Path) -> None:
        """Offline and without a key: one row per rate, bench.json and six plots; run directories are removed."""
        done = run_command("bench", *BENCH_SIMULATOR_OPTIONS, "--out", "report", cwd=tmp_path, key="")
        assert done.returncode == 0, done.stderr
        assert "krea-batch at 20/s: 8 accepted" in done.stderr
        assert "40/s" in done.stdout
        assert {path.name for path in (tmp_path / "report").iterdir()} == PLOTS | {"bench.json"}
        for plot in PLOTS:
            ET.parse(tmp_path / "report" / plot)  # noqa: S314 - our own file
        rows = bench_results(tmp_path / "report")
        assert [row["rate"] for row in rows] == ["20/s", "40/s"]
        for row in rows:
            assert row["accepted"] == row["stored"] == sum(row["accepted_each_second"]) == 8
            assert row["polls_per_job"] >= 1
            assert row["limit_utilisation"] > 0
            assert row["cpu_ms_per_job"] > 0
            assert row["lag_s"]["max"] >= row["lag_s"]["p50"] >= 0
            assert row["loop_lag_ms"]["max"] >= row["loop_lag_ms"]["p50"]

    def test_a_limit_to_find_has_a_row_of_its_own(self, tmp_path: Path) -> None:
        """With --limit there is one more row, of a run whose rate is `auto`."""
        options = (*BENCH_SIMULATOR_OPTIONS[2:], "--rates", "40/s", "--limit", "gcra:20/s")
        done = run_command("bench", *options, "--json", "-q", cwd=tmp_path, key="")
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["results"]
        assert [(row["rate"], row["limit"]) for row in rows] == [("40/s", ""), ("auto", "gcra:20/s")]
        assert all(row["accepted"] == row["stored"] == 8 for row in rows)

    def test_in_a_terminal_the_progress_is_removed(self, tmp_path: Path) -> None:
        """In a terminal the counts of the running case are shown in place, and removed at the end."""
        arguments = ("bench", *BENCH_SIMULATOR_OPTIONS[2:], "--rates", "5/s", "--out", "report")
        exit_code, shown = run_in_terminal([*COMMAND, *arguments], tmp_path)
        assert exit_code == 0, shown
        last_counts = shown.rindex("rate-limited, ")
        assert "krea-batch at 5/s: 8 accepted" in shown
        assert shown.find("\x1b[1A\x1b[2K", last_counts) > last_counts, "the line of the counts is cleared"

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (("--rates", "20/s,quick"), "--rates: invalid rate 'quick'"),
            (("--rates", "20/s,20/s"), "is given twice"),
            (("--poll-interval", "0"), "--poll-interval"),
            (("--latency", "forever"), "--latency"),
            (("--limit", "fast:60/s"), "--limit: 'fast:60/s' is not a rate limit"),
            (("--limit", "jobs-in-process:3"), "--limit: 'jobs-in-process:3' is not a rate limit"),
            (("--compare", "--gateway", "http://127.0.0.1:9"), "each script would be charged"),
            (("--compare", "--limit", "gcra:60/s"), "the scripts cannot find a limit"),
            (("--compare", "--rates", "20/s,40/s"), "--compare takes one rate"),
            (("--compare", "--poll-interval", "0"), "--poll-interval"),
        ],
    )
    def test_an_invalid_option_is_named(self, tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
        """An invalid option gives exit 2, an error that names it, and no report."""
        done = run_command("bench", *options, "--out", "report", cwd=tmp_path)
        assert done.returncode == 2
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "report" / "bench.json").exists()

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
    def test_ctrl_c_ends_all_child_processes(self, tmp_path: Path) -> None:
        """After Ctrl-C the exit code is 130, and the simulator and the worker have ended."""
        command = start_command("bench", "--rates", "5/s", "--jobs", "500", "--out", "report", cwd=tmp_path)
        assert command.stderr is not None
        # The worker reports its counts, so both children are running.
        while "accepted" not in command.stderr.readline():
            assert command.poll() is None
        children = descendant_pids(command.pid)
        assert len(children) == 2
        command.send_signal(signal.SIGINT)
        _, stderr = command.communicate(timeout=PROCESS_TIMEOUT_S)
        assert command.returncode == 130
        assert "Traceback" not in stderr
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]

    def test_a_hostile_working_directory(self, tmp_path: Path) -> None:
        """A module that lies in the working directory is not run, neither by the workers nor by the simulator."""
        for name in ("click", "msgspec", "krea_batch"):
            (tmp_path / f"{name}.py").write_text("open('owned', 'w')\n")
        done = subprocess.run(
            [
                Path(sys.executable).with_name("krea-batch"),
                "bench",
                *BENCH_SIMULATOR_OPTIONS[2:],
                "--rates",
                "40/s",
                "-q",
            ],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PROCESS_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "owned").exists()

    @pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
    def test_children_have_no_key(self, tmp_path: Path) -> None:
        """The worker and the simulator of a simulated benchmark have the API key neither in argv nor in environ."""
        command = start_command(
            "bench", "--rates", "5/s", "--jobs", "500", "--out", "report", cwd=tmp_path, key="very-secret"
        )
        assert command.stderr is not None
        while "accepted" not in command.stderr.readline():
            assert command.poll() is None
        children = descendant_pids(command.pid)
        seen = [Path(f"/proc/{pid}/{name}").read_bytes() for pid in children for name in ("environ", "cmdline")]
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=PROCESS_TIMEOUT_S)
        assert len(children) == 2
        assert not [text for text in seen if b"very-secret" in text]


class TestCompared:
    OPTIONS = ("bench", "--compare", "--latency", "uniform:0.3,0.6", "--poll-interval", "0.2", "--out", "report")

    def test_the_engine_is_never_charged_twice_and_the_example_is(self, tmp_path: Path) -> None:
        """There is a row for each program. The engine is never charged twice, and the API's example is."""
        done = run_command(*self.OPTIONS, "--rates", "20/s", "--jobs", "40", cwd=tmp_path, key="")
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (tmp_path / "report").iterdir()} == {"bench.json", "comparison.svg"}
        rows = {row["program"]: row for row in bench_results(tmp_path / "report")}
        assert [*rows] == [program.value for program in ComparedProgram]
        for program in ComparedProgram:
            assert program.value in done.stdout
            if program.missing_package:
                assert rows[program.value]["steady"] is None
                assert f"{program} is not compared: {program.missing_package} is not installed" in done.stderr
                assert INSTALL_COMMANDS[program.missing_package] in done.stdout
                continue
            steady, killed = rows[program.value]["steady"], rows[program.value]["killed"]
            assert (steady["problem"], killed["problem"]) == (None, None)
            assert steady["limit_utilisation"] > 0
            assert steady["polls_per_job"] > 0
            assert steady["cpu_ms_per_job"] > 0
            assert killed["kills"] == KILLS
            assert (
                killed["paid_without_image"]
                == killed["charged_twice"] + killed["jobs_left"] - killed["jobs_not_charged"]
            )
            if program in ENGINES:
                assert (steady["charged_twice"], killed["charged_twice"]) == (0, 0)
        assert rows[ComparedProgram.DEMO]["killed"]["charged_twice"] > 0

    def test_a_missing_package_is_named(self, tmp_path: Path) -> None:
        """Without a package of the extra, the error has the command that installs it, and nothing is run."""
        path = f"{without_package(tmp_path, 'psutil')}{os.pathsep}{ROOT}"
        done = run_command(*self.OPTIONS, cwd=tmp_path, key="", PYTHONPATH=path)
        assert done.returncode == 2
        assert "--compare needs the package psutil" in done.stderr
        assert "pip install 'krea-batch[bench]'" in done.stderr
        assert not (tmp_path / "report").exists()

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
    def test_ctrl_c_ends_all_child_processes(self, tmp_path: Path) -> None:
        """After Ctrl-C the exit code is 130, and no program and no simulator is left."""
        command = start_command(*self.OPTIONS, "--jobs", "500", cwd=tmp_path)
        assert command.stderr is not None
        while "accepted" not in command.stderr.readline():
            assert command.poll() is None
        children = descendant_pids(command.pid)
        assert len(children) >= 2
        command.send_signal(signal.SIGINT)
        _, stderr = command.communicate(timeout=PROCESS_TIMEOUT_S)
        assert command.returncode == 130
        assert "Traceback" not in stderr
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


class TestCharged:
    def run_bench(
        self, gateway: str, *extra_options: str, cwd: Path, key: str = "test-key"
    ) -> subprocess.CompletedProcess[str]:
        options = ("--rates", "20/s,40/s", "--jobs", "5", "--poll-interval", "0.2", "--gateway", gateway)
        return run_command("bench", *options, "--out", "report", "--price", "0.5", *extra_options, cwd=cwd, key=key)

    def test_charges_match_the_announcement_and_a_second_run_charges_nothing(
        self, simulate: StartSimulator, tmp_path: Path
    ) -> None:
        """Ten images are announced, charged and kept; the same command again charges none."""
        gateway = simulate("--tiny", "--latency", "uniform:0.1,0.4")
        first = self.run_bench(gateway.gateway_url, "--yes", cwd=tmp_path)
        assert first.returncode == 0, first.stderr
        assert "10 images will be charged" in first.stderr
        assert "5.00 in total" in first.stderr
        assert gateway.admin_request("/totals")["charged"] == 10
        assert len(list((tmp_path / "report" / "runs").rglob("*.png"))) == 10
        before = bench_results(tmp_path / "report")

        second = self.run_bench(gateway.gateway_url, cwd=tmp_path)  # no charges, so no question
        assert second.returncode == 0, second.stderr
        assert "0 images will be charged" in second.stderr
        assert gateway.admin_request("/totals")["charged"] == 10
        assert bench_results(tmp_path / "report") == before

    def test_nothing_is_sent_without_a_terminal(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Without a terminal and without --yes the exit code is 2, and no POST is sent."""
        gateway = simulate("--tiny")
        refused = self.run_bench(gateway.gateway_url, cwd=tmp_path)
        assert refused.returncode == 2
        assert "--yes" in refused.stderr
        assert gateway.admin_request("/totals")["posts"] == 0

    def test_a_missing_key_starts_nothing(self, simulate: StartSimulator, tmp_path: Path) -> None:
        """Without a key the exit code is 2, the error names the variable, and no POST is sent."""
        gateway = simulate("--tiny")
        refused = self.run_bench(gateway.gateway_url, "--yes", cwd=tmp_path, key="")
        assert refused.returncode == 2
        assert "PIXAZO_API_KEY" in refused.stderr
        assert gateway.admin_request("/totals")["posts"] == 0

    def test_ctrl_c_completes_charged_jobs_and_the_same_command_charges_only_the_rest(
        self, simulate: StartSimulator, tmp_path: Path
    ) -> None:
        """After Ctrl-C the exit code is 130, and each charge has its image; the same command charges the rest."""
        gateway = simulate("--tiny", "--latency", "uniform:0.1,0.4")
        options = ("bench", "--rates", "2/s", "--jobs", "20", "--poll-interval", "0.2", "--yes", "--out", "report")
        command = start_command(*options, "--gateway", gateway.gateway_url, cwd=tmp_path)
        wait_until(lambda: gateway.admin_request("/totals")["charged"] >= 2, command)
        os.kill(command.pid, signal.SIGINT)
        _, stderr = command.communicate(timeout=PROCESS_TIMEOUT_S)
        assert command.returncode == 130, stderr
        charged = gateway.admin_request("/totals")["charged"]
        assert 2 <= charged < 20
        assert len(list((tmp_path / "report" / "runs").rglob("*.png"))) == charged

        again = run_command(*options, "--gateway", gateway.gateway_url, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert f"{20 - charged} images will be charged" in again.stderr
        assert gateway.admin_request("/totals")["charged"] == 20
