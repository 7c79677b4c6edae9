"""Each benchmark runs, in its short form; what it measures is not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, README, goal_table, replace_section

ROOT = Path(__file__).parents[1]


def run_benchmark(name: str, *options: str) -> list[str]:
    """The lines that a benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_validate() -> None:
    """A line for each size it has measured."""
    few, many = run_benchmark("validate", "--lines", "1500", "--repeat", "1")
    assert few.startswith("    1,000 lines of ")
    assert many.startswith("    1,500 lines of ")
    assert all("lines/s" in line and line.endswith(" MB") for line in (few, many))


@pytest.mark.slow
def test_polls() -> None:
    """A row for each kind of latency, no engine better than possible by more than one that may change its mind."""
    head, rule, *rows, goal = run_benchmark("polls", "--jobs", "80")
    assert goal.startswith("goal\tpolls + lag")
    assert head.count("|") == rule.count("|") == 9
    assert len(rows) == 7
    for row in rows:
        best, engine = (float(cell) for cell in row.split("|")[2:4])
        assert best >= 1.0
        assert engine >= 0.8 * best


@pytest.mark.slow
def test_throughput() -> None:
    """A row for each kind of limit, with shares of it, refusals and processor time."""
    head, _, *rows, goal = run_benchmark("throughput", "--repeat", "1", "--share", "0.05", "--only", "told 200/s")
    assert goal.startswith("goal\tused of a limit, told 200/s\t≥ 0.985, ≤ 1.01\t")
    assert [row.split("|")[2].strip() for row in rows] == [
        f"{kind}:200/s" for kind in ("fixed-window", "token-bucket", "sliding-window")
    ]
    for row in rows:
        assert all(float(cell) >= 0 for cell in row.split("|")[3:-1])
        assert row.count("|") == head.count("|")


@pytest.mark.slow
def test_overhead() -> None:
    """A row for each size of image; what each costs is not judged here."""
    _, _, *rows, goal = run_benchmark("overhead", "--jobs", "60", "--repeat", "1")
    assert len(rows) == 2
    for row in rows:
        bare_ms, engine_ms, loop_ms, ratio = (float(cell) for cell in row.split("|")[2:6])
        assert min(bare_ms, engine_ms, loop_ms, ratio) > 0
    assert goal.startswith("goal\tprocessor time a job ÷ bare loop\t≤ 1.5\t")


@pytest.mark.slow
def test_in_flight() -> None:
    """A row for each kind of latency, and three goals."""
    _, _, *rows = run_benchmark("in_flight", "--jobs", "100", "--latency", "0.5")
    rows, goals = rows[:2], rows[2:]
    assert all(row.startswith("| 0.5 s, ") for row in rows)
    assert [goal.split("\t")[1] for goal in goals] == [
        f"100 jobs in flight: {what}" for what in ("memory a job", "loop lag, p99", "wall ÷ ideal")
    ]


@pytest.mark.slow
def test_resume() -> None:
    """A row for a run that ended in order and for one that did not; the benchmark itself counts what was charged."""
    _, _, *rows, goal = run_benchmark("resume", "--jobs", "3000", "--repeat", "1")
    assert [row.split("|")[2].strip() for row in rows] == ["ended in order", "was killed"]
    assert goal.startswith("goal\tresume of 3,000 jobs")


@pytest.mark.slow
def test_scale(tmp_path: Path) -> None:
    """A row for each number of jobs, and a plot; the benchmark itself looks at what was paid and stored."""
    plot = tmp_path / "scale.svg"
    _, _, *rows, _ = run_benchmark("scale", "--max-jobs", "1100", "--repeat", "1", "--plot", str(plot))
    assert [row.split("|")[1].strip() for row in rows] == ["1,000", "1,100"]
    assert "<svg" in plot.read_text()


@pytest.mark.slow
def test_callbacks() -> None:
    """A row for each way in which a gateway may call, and two goals."""
    head, _, *rows, reliable, none = run_benchmark("callbacks", "--jobs", "60")
    assert len(rows) == 6
    assert all(row.count("|") == head.count("|") for row in rows)
    assert reliable.startswith("goal\thonest callbacks")
    assert none.startswith("goal\tno callback arrives")


@pytest.mark.slow
def test_tenants() -> None:
    """A row for each thing that may bound an engine, and a goal."""
    _, _, *rows, goal = run_benchmark("tenants", "--jobs", "300")
    assert [row.split("|")[1].strip() for row in rows] == ["the rate, 10/s", "the rate, 200/s", "50 jobs in flight"]
    assert goal.startswith("goal\tnine tenants beside one with 300 jobs")


@pytest.mark.slow
def test_service() -> None:
    """A row for the service alone and one beside the images, which all succeed; and a goal."""
    head, _, alone, beside, goal = run_benchmark("service", "--jobs", "20", "--repeat", "1", "--seconds", "2")
    assert alone.count("|") == beside.count("|") == head.count("|")
    assert goal.startswith("goal\tp99 of a service beside 20 generates")


@pytest.mark.slow
def test_forecast() -> None:
    """A row for each thing that may bind a run, with the times of both, and a goal."""
    head, _, *rows, goal = run_benchmark("forecast", "--share", "0.02")
    assert [row.split("|")[1].strip() for row in rows] == [
        "the rate", "jobs in flight", "latency", "the gateway's limit (429)",
    ]  # fmt: skip
    assert all(row.count("|") == head.count("|") for row in rows)
    assert goal.startswith("goal\tthe time that plan forecasts")


@pytest.mark.slow
def test_gallery() -> None:
    """A row, and a goal for the making and one for the page."""
    head, _, row, made, used = run_benchmark("gallery", "--images", "30")
    assert row.startswith("| 30 | ")
    assert row.count("|") == head.count("|")
    assert made.startswith("goal\treport of 30 images")
    assert used.startswith("goal\tpage of 30 images")


def test_what_is_printed_goes_between_the_markers() -> None:
    """What stands around them stays; the goals of all sections come together."""
    text = "by hand\n<!-- goals -->\nold\n<!-- /goals -->\n<!-- polls -->\nold\n<!-- /polls -->\nby hand, too\n"
    new = replace_section(text, "polls", "| polls | ≤ 1.15 | 1.05 | yes |")
    new = replace_section(new, "goals", goal_table(new.partition("<!-- /goals -->")[2]))
    assert "old" not in new
    assert new.startswith("by hand\n<!-- goals -->\n| what | goal | reached | met |\n")
    assert new.count("| polls | ≤ 1.15 | 1.05 | yes |") == 2
    assert new.endswith("by hand, too\n")


def test_every_benchmark_has_its_place() -> None:
    """The notes have markers for each, and each has a short form among these tests."""
    text = README.read_text("utf-8")
    for name in BENCHMARKS:
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
        assert f"def test_{name}(" in Path(__file__).read_text("utf-8")
