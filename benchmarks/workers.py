"""How much of a rate limit do several processes use that share one run directory?

    python -m benchmarks.workers                           every row three times; medians
    python -m benchmarks.workers --share 0.1 --repeat 1    the short form: a tenth of the jobs
    python -m benchmarks.workers --ledger postgres         with the ledger in PostgreSQL, and what that costs

As in benchmarks.throughput, with the same command in 1, 2 and 4 processes on one file of jobs. The first row of each
limit is a process that has the directory alone. In PostgreSQL, each process has a directory of its own, and the
first row of each limit is left out, since no process has a ledger there alone.

What PostgreSQL costs is the processor time of one process of the command, divided by that of one with the ledger in
SQLite, alone, in turn. The server's own time is not in it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

from benchmarks.report import report_goal
from benchmarks.throughput import LimitCase, measure_alone, measure_share, parse_options
from tests.postgres_server import remove_shared_server, shared_server

WORKERS = (0, 1, 2, 4)
CASES = [
    *(
        LimitCase("configured", f"{kind}:200/s", 200, "200/s", 3000, workers=workers)
        for kind in ("fixed-window", "token-bucket", "sliding-window")
        for workers in WORKERS
    ),
    *(
        LimitCase("found", f"{kind}:60/s", 60, rate, 2400, workers=workers)
        for kind, rate in (("fixed-window", "500/s"), ("token-bucket", "auto"))
        for workers in WORKERS
    ),
]
MIN_USED = 0.97
MAX_CPU_RATIO = 1.1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", choices=["sqlite", "postgres"], default="sqlite")
    options = parse_options(default_repeat=3, parser=parser)
    try:
        measure_all(options, shared_server().url if options.ledger == "postgres" else "")
    finally:
        remove_shared_server()


def measure_all(options: argparse.Namespace, url: str) -> None:
    """Measure all cases with the ledger in this database, or in SQLite."""
    print("| processes | limit | --rate | used | max in a second | 429s per job | CPU ms per job |")
    print("|---|---|---|---|---|---|---|")
    used = []
    cases = [case._replace(ledger=url) for case in CASES if case.workers or not url]
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            if options.only not in f"{case.name} {case.limit} {case.workers}":
                continue
            median = measure_alone(case, options, folder)
            if case.name == "configured" and case.workers > 1:
                used.append(median)
            processes = f"{case.workers}, shared" if case.workers else "1, alone"
            figures = f"{median.utilisation:.3f} | {median.peak_utilisation:.3f} | {median.rate_limited_per_job:.4f}"
            print(f"| {processes} | {case.limit} | {case.rate} | {figures} | {median.cpu_ms:.2f} |", flush=True)
        if url:
            report_cost(options, url, folder)
    if used:
        low, refused = min(each.utilisation for each in used), max(each.rate_limited_per_job for each in used)
        reached = f"{low:.3f}, 429s per job {refused:.4f}"
        goal = f"≥ {MIN_USED}, no 429"
        report_goal("2 and 4 processes share 200/s", goal, reached, met=low >= MIN_USED and refused == 0)


def report_cost(options: argparse.Namespace, url: str, folder: str) -> None:
    """Compare one process with its ledger in PostgreSQL with one that has it in SQLite."""
    sqlite = CASES[0]
    postgres = sqlite._replace(ledger=url)
    pairs = [
        tuple(measure_share(case, options.share, folder).cpu_ms for case in (sqlite, postgres))
        for _ in range(options.repeat)
    ]
    ratio = statistics.median(in_postgres / in_sqlite for in_sqlite, in_postgres in pairs)
    in_sqlite, in_postgres = (statistics.median(figures) for figures in zip(*pairs, strict=True))
    reached = f"{ratio:.2f} ({in_postgres:.2f} and {in_sqlite:.2f} ms)"
    report_goal("CPU per job, PostgreSQL ÷ SQLite", f"≤ {MAX_CPU_RATIO}", reached, met=ratio <= MAX_CPU_RATIO)


if __name__ == "__main__":
    main()
