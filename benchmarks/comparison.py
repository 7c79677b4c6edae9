"""What does the engine do better than a script, and what does it not?

    python -m benchmarks.comparison              1,000 jobs at 50/s for each program; ten minutes on two cores
    python -m benchmarks.comparison --jobs 200   the short form

`krea-batch bench --compare` runs the engine and the scripts that people write (`krea_batch.benchmark.scripts`) with
the same jobs, limit and faults: once without kills, and once with three kills of all their processes. Its plot is
kept beside this file. Programs whose packages are missing have a row that says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from benchmarks.report import report_goal
from krea_batch.benchmark.comparison import ENGINES, KILLS, ComparisonRow
from krea_batch.benchmark.output import COMPARISON_TITLES, comparison_cells
from krea_batch.benchmark.plots import COMPARISON_PLOT
from tests.processes import COMMAND

PLOT = Path(__file__).with_name(COMPARISON_PLOT)


def measure(jobs: int | None, plot: Path) -> list[ComparisonRow]:
    """Run the command, keep its plot, and return its rows."""
    options = ["--jobs", str(jobs)] if jobs else []
    with tempfile.TemporaryDirectory() as out:
        command = [*COMMAND, "bench", "--compare", "--json", "--out", out, *options]
        printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        shutil.copyfile(Path(out) / COMPARISON_PLOT, plot)
    return msgspec.convert(json.loads(printed)["results"], list[ComparisonRow])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    rows = measure(options.jobs, options.plot)
    print(f"| {' | '.join(COMPARISON_TITLES)} |")
    print(f"|---|{'---:|' * (len(COMPARISON_TITLES) - 1)}")
    for row in rows:
        print(f"| {' | '.join(comparison_cells(row))} |")
    for row in rows:
        if row.program in ENGINES and row.killed:
            label = f"{row.program}, {row.killed.jobs:,} jobs, {KILLS} × kill -9: charged twice"
            report_goal(label, "0", f"{row.killed.charged_twice}", met=row.killed.charged_twice == 0)


if __name__ == "__main__":
    main()
