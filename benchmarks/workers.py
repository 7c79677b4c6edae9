"""How much of a rate limit do several processes use that share one run directory?

    python -m benchmarks.workers                           every row three times; medians
    python -m benchmarks.workers --share 0.1 --repeat 1    the short form: a tenth of the jobs

As in benchmarks.throughput, with the same command in 1, 2 and 4 processes on one file of jobs. The first row of each
limit is a process that has the directory alone.
"""

from __future__ import annotations

import tempfile

from benchmarks.report import report_goal
from benchmarks.throughput import LimitCase, measure_share, medians, parse_options

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


def main() -> None:
    options = parse_options(default_repeat=3)
    print("| processes | limit | --rate | used | max in a second | 429s per job | CPU ms per job |")
    print("|---|---|---|---|---|---|---|")
    used = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if options.only not in f"{case.name} {case.limit} {case.workers}":
                continue
            median = medians([measure_share(case, options.share, folder) for _ in range(options.repeat)])
            if case.name == "configured" and case.workers > 1:
                used.append(median)
            processes = f"{case.workers}, shared" if case.workers else "1, alone"
            figures = f"{median.utilisation:.3f} | {median.peak_utilisation:.3f} | {median.rate_limited_per_job:.4f}"
            print(f"| {processes} | {case.limit} | {case.rate} | {figures} | {median.cpu_ms:.2f} |", flush=True)
    if used:
        low, refused = min(each.utilisation for each in used), max(each.rate_limited_per_job for each in used)
        reached = f"{low:.3f}, 429s per job {refused:.4f}"
        goal = f"≥ {MIN_USED}, no 429"
        report_goal("2 and 4 processes share 200/s", goal, reached, met=low >= MIN_USED and refused == 0)


if __name__ == "__main__":
    main()
