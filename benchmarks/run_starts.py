"""How much of a limit is used from the start of a run, if neither its value nor its kind is configured?

    python -m benchmarks.run_starts                        every limit; twelve minutes
    python -m benchmarks.run_starts --share 0.05           the short form: a twentieth of the jobs

The real command runs against the simulator, each in a process of its own, several at a time: the limits are low. The
limiter without any burst is measured alone and three times, since delays of a millisecond matter to it. `used` leaves
out the burst that a limiter lets through first: (jobs - burst) / limit / time between the first and the last
acceptance.
"""

from __future__ import annotations

import tempfile
from itertools import chain

from benchmarks.report import report_goal
from benchmarks.throughput import LimitCase, measure_alone, measure_in_parallel, parse_options

JOB_S = 5  # of the limit on jobs in process
CASES = [
    LimitCase(name, limit, per_s, rate, jobs, latency=latency, burst=burst, poll_interval="1")
    for name, limit, per_s, burst, rate, jobs, latency in (
        ("bucket", "token-bucket:60/s", 60, 60, "500/s", 4000, "lognormal:2,0.3"),
        ("window of a second", "fixed-window:60/s", 60, 60, "500/s", 4000, "lognormal:2,0.3"),
        ("bucket with a small burst", "token-bucket:60/s,10", 60, 10, "500/s", 4000, "lognormal:2,0.3"),
        ("evenly spread requests", "gcra:60/s", 60, 1, "500/s", 4000, "lognormal:2,0.3"),
        ("sliding window", "sliding-window:60/10s", 6, 60, "500/s", 600, "lognormal:2,0.3"),
        ("window of a minute", "fixed-window:300/m", 5, 300, "500/s", 900, "lognormal:2,0.3"),
        ("sliding window of a minute", "sliding-window:300/m", 5, 300, "500/s", 900, "lognormal:2,0.3"),
        ("slow bucket", "token-bucket:2/s,5", 2, 5, "20/s", 240, "lognormal:2,0.3"),
        ("bucket with a small burst", "token-bucket:60/s,10", 60, 10, "auto", 4000, "lognormal:2,0.3"),
        ("jobs in process", "jobs-in-process:20", 20 / JOB_S, 20, "50/s", 400, f"fixed:{JOB_S}"),
    )
]
MIN_USED = 0.92
ALONE_REPEAT_FACTOR = 3  # chosen: single runs differ by a twentieth


def main() -> None:
    options = parse_options(default_repeat=1)
    print("| limiter | limit | configured | jobs | used | 429s per job |")
    print("|---|---|---|---|---|---|")
    used = []
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for case in CASES if options.only in case.limit]
        alone = (
            (case, measure_alone(case, options, folder, ALONE_REPEAT_FACTOR)) for case in cases if case.burst == 1
        )
        others = measure_in_parallel([case for case in cases if case.burst != 1], options, folder)
        for case, median in chain(alone, others):
            used.append(median.utilisation)
            cells = f"{case.jobs:,} | {median.utilisation:.3f} | {median.rate_limited_per_job:.3f}"
            print(f"| {case.name} | {case.limit} | {case.rate} | {cells} |", flush=True)
    low, high = min(used), max(used)
    reached = f"{low:.3f} to {high:.3f}"
    report_goal("used of a limit from the start of a run", f"≥ {MIN_USED}", reached, met=low >= MIN_USED)


if __name__ == "__main__":
    main()
