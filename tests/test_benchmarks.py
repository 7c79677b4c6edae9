"""Each benchmark runs, in its short form; what it measures is not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def benchmark(name: str, *options: str) -> list[str]:
    """The lines that a benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_validate() -> None:
    """A line for each size it has measured."""
    few, many = benchmark("validate", "--lines", "1500", "--repeat", "1")
    assert few.startswith("    1,000 lines of ")
    assert many.startswith("    1,500 lines of ")
    assert all("lines/s" in line and line.endswith(" MB") for line in (few, many))


@pytest.mark.slow
def test_polls() -> None:
    """A row for each kind of latency, no engine better than possible by more than one that may change its mind."""
    head, rule, *rows = benchmark("polls", "--jobs", "80")
    assert head.count("|") == rule.count("|") == 9
    assert len(rows) == 6
    for row in rows:
        best, engine = (float(cell) for cell in row.split("|")[2:4])
        assert best >= 1.0
        assert engine >= 0.8 * best


@pytest.mark.slow
def test_throughput() -> None:
    """A row for each kind of limit, with shares of it, refusals and processor time."""
    head, _, *rows = benchmark("throughput", "--repeat", "1", "--share", "0.05", "--only", "told 200/s")
    assert [row.split("|")[2].strip() for row in rows] == [
        f"{kind}:200/s" for kind in ("fixed-window", "token-bucket", "sliding-window")
    ]
    for row in rows:
        assert all(float(cell) >= 0 for cell in row.split("|")[3:-1])
        assert row.count("|") == head.count("|")
