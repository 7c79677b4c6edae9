"""How fast is a job file checked, and in how much memory?

    python -m benchmarks.validate                a million lines, and a thousand to compare the memory with
    python -m benchmarks.validate --lines 2000   the short form

Each check runs in a process of its own, so that its peak memory can be measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from time import perf_counter

PHRASE = (
    "a quiet harbour at dawn with wooden boats and red lanterns over wet stones under an old bridge while snow "
    "falls on the pine forest in soft light beside the market where two children watch paper kites"
)
COMPARISON_LINES = 1000
BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3, help="take the best of so many checks")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(check(arguments.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for lines in sorted({min(COMPARISON_LINES, arguments.lines), arguments.lines}):
            path = Path(folder) / f"{lines}.jsonl"
            write_jobs(path, lines)
            print_result(lines, path.stat().st_size, [in_fresh_process(path) for _ in range(arguments.repeat)])


def write_jobs(path: Path, lines: int) -> None:
    """Write a realistic file: prompts of about 90 characters, ids in half of the lines, some other fields."""
    random = Random(1)
    words = PHRASE.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            job: dict[str, object] = {"prompt": " ".join(random.choices(words, k=17))}
            if number % 2:
                job = {"id": f"image-{number:07d}"} | job | {"aspect_ratio": random.choice(["3:2", "16:9", "1:1"])}
            if number % 4 == 0:
                job |= {"seed": random.randrange(2**31), "creativity": random.choice(["low", "high"])}
            file.write(json.dumps(job) + "\n")


def in_fresh_process(path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(path)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def check(path: Path) -> dict[str, float]:
    """Check one file, then read its jobs as `run` does."""
    from krea_batch.sources import JobFiles

    with JobFiles([str(path)]) as files:
        started_s = perf_counter()
        checked = files.check()
        checked_s = perf_counter()
        jobs = sum(1 for _ in files)
        ended_s = perf_counter()
    assert checked.bad_lines == 0
    assert jobs == checked.jobs
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_MAXRSS
    return {"check_s": checked_s - started_s, "read_s": ended_s - checked_s, "jobs": jobs, "peak_bytes": peak_bytes}


def print_result(lines: int, size_bytes: int, results: list[dict[str, float]]) -> None:
    assert all(result["jobs"] == lines for result in results)
    check_per_s = lines / min(result["check_s"] for result in results)
    read_per_s = lines / min(result["read_s"] for result in results)
    peak_mb = max(result["peak_bytes"] for result in results) / 1e6
    print(
        f"{lines:>9,} lines of {size_bytes / lines:.0f} bytes: check {check_per_s:>9,.0f} lines/s, "
        f"then read {read_per_s:>9,.0f} lines/s, peak {peak_mb:.0f} MB"
    )


if __name__ == "__main__":
    main()
