"""The benchmark of a whole check runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "validate.py"


def test_short_form() -> None:
    """The benchmark's short form prints a line for each size it has measured."""
    command = [sys.executable, str(BENCHMARK), "--lines", "1500", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = done.stdout.splitlines()
    assert few.startswith("    1,000 lines of ")
    assert many.startswith("    1,500 lines of ")
    assert all("lines/s" in line and line.endswith(" MB") for line in (few, many))
