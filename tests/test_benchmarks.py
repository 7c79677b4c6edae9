"""Run each benchmark in its short form, without judging its figures."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, README, first_table, goal_table, main, replace_section
from benchmarks.polls import optimal_cost
from krea_batch.benchmark.comparison import ENGINES, ComparedProgram
from tests.processes import PROCESS_TIMEOUT_S, without_package

ROOT = Path(__file__).parents[1]


def run_benchmark(name: str, *options: str) -> list[str]:
    """Return the lines that a benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_validate() -> None:
    """It prints a line for each size."""
    few, many = run_benchmark("validate", "--lines", "1500", "--repeat", "1")
    assert few.startswith("    1,000 lines of ")
    assert many.startswith("    1,500 lines of ")
    assert all("lines/s" in line and line.endswith(" MB") for line in (few, many))


def test_the_optimum_of_the_polls_keeps_the_interval() -> None:
    """If jobs take 20 to 30 s, each sequence of polls five seconds apart costs two polls at least."""
    latencies_s = [20 + n / 200 for n in range(2001)]
    assert optimal_cost(latencies_s) == pytest.approx(2.0, abs=0.01)
    assert optimal_cost([15.0] * 10) == pytest.approx(1.0)


@pytest.mark.slow
def test_polls() -> None:
    """It prints a row for each kind of latency, and the engine is hardly better than the optimum."""
    head, rule, *lines = run_benchmark("polls", "--jobs", "80", "--seeds", "7")
    rows, goals = lines[:-4], lines[-4:]
    assert all(goal.startswith("goal\tpolls + lag") for goal in goals)
    assert head.count("|") == rule.count("|") == 9
    assert len(rows) == 12
    for row in rows:
        best, engine = (float(cell) for cell in row.split("|")[2:4])
        assert best >= 1.0
        assert engine >= 0.8 * best


@pytest.mark.slow
def test_run_starts() -> None:
    """It prints a row for each limit, with the share that was used and the 429s."""
    head, _, row, goal = run_benchmark("run_starts", "--share", "0.05", "--only", "sliding-window:60/10s")
    assert row.startswith("| sliding window | sliding-window:60/10s | 500/s | 600 | ")
    assert row.count("|") == head.count("|")
    assert goal.startswith("goal\tused of a limit from the start of a run\t≥ 0.92\t")


@pytest.mark.slow
def test_throughput() -> None:
    """It prints a row for each kind of limit, with utilisation, refusals and processor time."""
    head, _, *rows, goal = run_benchmark("throughput", "--repeat", "1", "--share", "0.05", "--only", "rate 200/s")
    assert goal.startswith("goal\tused of the limit, rate 200/s\t≥ 0.985, ≤ 1.01\t")
    assert [row.split("|")[2].strip() for row in rows] == [
        f"{kind}:200/s" for kind in ("fixed-window", "token-bucket", "sliding-window")
    ]
    for row in rows:
        assert all(float(cell) >= 0 for cell in row.split("|")[3:-1])
        assert row.count("|") == head.count("|")


@pytest.mark.slow
def test_workers() -> None:
    """It prints a row for each number of processes on a run directory, and a goal for those that share it."""
    head, _, row, goal = run_benchmark(
        "workers", "--share", "0.01", "--repeat", "1", "--only", "fixed-window:200/s 2"
    )
    assert row.startswith("| 2, shared | fixed-window:200/s | 200/s | ")
    assert row.count("|") == head.count("|")
    assert goal.startswith("goal\t2 and 4 processes share 200/s\t≥ 0.97, no 429\t")


@pytest.mark.slow
def test_limiters(tmp_path: Path) -> None:
    """It prints a row for all limiters and one for each kind, draws a plot, and has two goals for each row."""
    plot = tmp_path / "limiters.svg"
    head, _, *lines = run_benchmark("limiters", "--limiters", "3", "--plot", str(plot))
    rows = [line for line in lines if line.startswith("|")]
    assert rows[0].startswith("| configured 3 to 30 times too high | 3 |")
    assert all(row.count("|") == head.count("|") for row in rows)
    assert len(lines) - len(rows) == 6
    assert "<svg" in plot.read_text()
    [result] = run_benchmark("limiters", "--seed", "7", "--rate", "50")
    assert result.startswith("JudgeResult(case=LimiterCase(seed=7, ")


@pytest.mark.slow
def test_overhead() -> None:
    """It prints a row for each size of image and for TLS, with the price of fresh connections."""
    _, _, *rows, goal = run_benchmark("overhead", "--jobs", "60", "--repeat", "1")
    assert len(rows) == 3
    for row in rows:
        assert min(float(cell) for cell in row.split("|")[2:7]) > 0
    assert goal.startswith("goal\tprocessor time per job ÷ bare loop\t≤ 2.0\t")


@pytest.mark.slow
def test_in_flight() -> None:
    """It prints a row for each kind of latency, and three goals."""
    _, _, *rows = run_benchmark("in_flight", "--jobs", "100", "--latency", "0.5")
    rows, goals = rows[:2], rows[2:]
    assert all(row.startswith("| 0.5 s, ") for row in rows)
    assert [goal.split("\t")[1] for goal in goals] == [
        f"100 jobs in flight: {what}" for what in ("memory per job", "loop lag, p99", "wall ÷ ideal")
    ]


@pytest.mark.slow
def test_resume() -> None:
    """It prints a row for a run that ended normally and one for a killed run, and counts charges itself."""
    _, _, *rows, goal = run_benchmark("resume", "--jobs", "3000", "--repeat", "1")
    assert [row.split("|")[2].strip() for row in rows] == ["ended normally", "was killed"]
    assert goal.startswith("goal\tresume of 3,000 jobs")


@pytest.mark.slow
def test_scale(tmp_path: Path) -> None:
    """It prints a row for each number of jobs, draws a plot, and counts charges and images itself."""
    plot = tmp_path / "scale.svg"
    _, _, *rows, _ = run_benchmark("scale", "--max-jobs", "1100", "--repeat", "1", "--plot", str(plot))
    assert [row.split("|")[1].strip() for row in rows] == ["1,000", "1,100"]
    assert "<svg" in plot.read_text()


@pytest.mark.slow
def test_callbacks() -> None:
    """It prints a row for each kind of callbacks, and two goals."""
    head, _, *rows, reliable, none = run_benchmark("callbacks", "--jobs", "60")
    assert len(rows) == 6
    assert all(row.count("|") == head.count("|") for row in rows)
    assert reliable.startswith("goal\treliable callbacks")
    assert none.startswith("goal\tno callback arrives")


@pytest.mark.slow
def test_tenants() -> None:
    """It prints a row for each thing that may limit an engine, and a goal."""
    _, _, *rows, goal = run_benchmark("tenants", "--jobs", "300")
    assert [row.split("|")[1].strip() for row in rows] == ["the rate, 10/s", "the rate, 200/s", "50 jobs in flight"]
    assert goal.startswith("goal\tnine tenants next to one with 300 jobs")


@pytest.mark.slow
def test_service() -> None:
    """It prints a row for the service alone and one for it during the generates, and a goal."""
    head, _, alone, beside, goal = run_benchmark(
        "service", "--jobs", "20", "--repeat", "1", "--seconds", "1", "--latency", "fixed:1"
    )
    assert alone.count("|") == beside.count("|") == head.count("|")
    assert goal.startswith("goal\tp99 of a service during 20 generates")


@pytest.mark.slow
def test_forecast() -> None:
    """It prints a row for each thing that may limit a run, with both times, and a goal."""
    head, _, *rows, goal = run_benchmark("forecast", "--scale", "0.05")
    assert [row.split("|")[1].strip() for row in rows] == [
        "the rate", "jobs in flight", "latency", "the gateway's limit (429)",
    ]  # fmt: skip
    assert all(row.count("|") == head.count("|") for row in rows)
    assert goal.startswith("goal\terror of the time that plan estimates")


@pytest.mark.slow
def test_gallery() -> None:
    """It prints a row and a goal for the first and the second report, and goals for the pages."""
    head, _, first, second, *goals = run_benchmark("gallery", "--images", "8")
    assert [row.split("|")[1:3] for row in (first, second)] == [[" 8 ", " first "], [" 8 ", " second "]]
    assert {row.count("|") for row in (first, second)} == {head.count("|")}
    assert [goal.split("\t")[1] for goal in goals] == [
        "first report of 8 images",
        "second report of 8 images",
        "report of 8 images: usable after",
        "second view of 8 images: usable after its start",
    ]


@pytest.mark.slow
def test_ray_rows() -> None:
    """It prints a row for the engine and one for the control, and a goal; or that Ray is not installed."""
    lines = run_benchmark("ray_rows", "--rows", "60", "--kills", "1")
    if find_spec("ray") is None:
        assert lines == ["not measured: Ray is not installed (pip install 'krea-batch[ray]')"]
        return
    head, _, engine, control, goal = lines
    assert engine.startswith("| engine | 60 | 60 | ")
    assert engine.count("|") == control.count("|") == head.count("|")
    assert goal.startswith("goal\tRay: 60 rows, ")


@pytest.mark.slow
def test_comparison(tmp_path: Path) -> None:
    """It prints a row for each program, measured or not, draws a plot, and has a goal for each form of the engine."""
    plot = tmp_path / "comparison.svg"
    head, _, *lines = run_benchmark("comparison", "--jobs", "20", "--plot", str(plot))
    rows, goals = lines[: len(ComparedProgram)], lines[len(ComparedProgram) :]
    assert all(row.startswith(f"| {program}") for row, program in zip(rows, ComparedProgram, strict=True))
    assert all(row.count("|") == head.count("|") for row in rows)
    assert [goal.split("\t")[1].partition(",")[0] for goal in goals] == ["krea-batch"] * len(ENGINES)
    assert "<svg" in plot.read_text()


def test_a_benchmark_that_measures_nothing_leaves_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a package is missing, the reason is printed, and the README stays as it is."""
    readme = tmp_path / "README.md"
    readme.write_text("<!-- ray_rows -->\nold\n<!-- /ray_rows -->\n")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "ray_rows", "--readme", str(readme)])
    monkeypatch.setenv("PYTHONPATH", f"{without_package(tmp_path, 'ray')}{os.pathsep}{ROOT}")
    main()
    assert "not measured: Ray is not installed" in capsys.readouterr().out
    assert readme.read_text() == "<!-- ray_rows -->\nold\n<!-- /ray_rows -->\n"


def test_the_first_table_of_a_section() -> None:
    """The table of the project's README has neither the command nor the goals."""
    assert first_table("`command`:\n\n| a |\n|---|\n| 1 |\n\n| goal |\n|---|") == "| a |\n|---|\n| 1 |"


def test_output_is_written_between_the_markers() -> None:
    """Text around the markers stays, and the goals of all sections are collected."""
    text = "by hand\n<!-- goals -->\nold\n<!-- /goals -->\n<!-- polls -->\nold\n<!-- /polls -->\nby hand, too\n"
    new = replace_section(text, "polls", "| polls | ≤ 1.15 | 1.05 | yes |")
    new = replace_section(new, "goals", goal_table(new.partition("<!-- /goals -->")[2]))
    assert "old" not in new
    assert new.startswith("by hand\n<!-- goals -->\n| what | goal | reached | met |\n")
    assert new.count("| polls | ≤ 1.15 | 1.05 | yes |") == 2
    assert new.endswith("by hand, too\n")


def test_every_benchmark_has_a_section_and_a_test() -> None:
    """The README has markers for each benchmark, and this file a test of its short form."""
    text = README.read_text("utf-8")
    for name in BENCHMARKS:
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
        assert f"def test_{name}(" in Path(__file__).read_text("utf-8")
