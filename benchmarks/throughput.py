"""How much of a rate limit is used, and how many submits are refused?

    python -m benchmarks.throughput                        every kind of limit, three times each; medians
    python -m benchmarks.throughput --share 0.05 --repeat 1   the short form: a twentieth of the jobs

Cases whose rate is the limit itself are repeated more often, because their runs are short and one stall of the
machine distorts them. The other cases have a low limit, and several of them run in parallel.

The real command runs against the simulator, each in a process of its own. What was accepted, and when, is read from
the simulator's ledger. `used` is accepted submits per second, from the first to the last, over the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import report_goal
from tests.processes import COMMAND, SimulatorProcess
from tests.window_stats import max_in_window


class LimitCase(NamedTuple):
    """A limit of the gateway, the rate that the engine is given, and a number of jobs."""

    name: str
    limit: str
    per_s: float
    rate: str
    jobs: int
    retry_after: str = "seconds"
    latency: str = "uniform:0.5,1.5"
    burst: int = 0  # submits that the limiter lets through first, besides those of its rate
    poll_interval: str = "0.5"
    workers: int = 0  # processes that share the run directory; 0: one that has it alone
    ledger: str = ""  # URL of a database for it; each process then has a run directory of its own

    @property
    def is_configured(self) -> bool:
        """Whether the engine's rate is the limit itself."""
        return self.rate == f"{self.per_s:g}/s"


LIMIT_CASES = [
    *(
        LimitCase(f"rate {per_s}/s", f"{kind}:{per_s}/s", per_s, f"{per_s}/s", 15 * per_s)
        for per_s in (200, 800)
        for kind in ("fixed-window", "token-bucket", "sliding-window")
    ),
    *(
        LimitCase(f"rate {rate}, Retry-After: {retry_after}", f"{kind}:60/s", 60, rate, 2400, retry_after)
        for rate in ("500/s", "auto")
        for retry_after in ("seconds", "none")
        for kind in ("fixed-window", "token-bucket", "sliding-window")
    ),
]


GOALS = {"rate 200/s": 0.985, "rate 800/s": 0.97, "rate 500/s": 0.92, "rate auto": 0.90}
MAX_PARALLEL_RUNS = 3  # chosen: runs at 60/s, each with its simulator a third of a core
CONFIGURED_REPEAT_FACTOR = 2  # chosen: these runs are short, so one stall of the machine distorts a single run
MAX_UTILISATION, MAX_RATE_LIMITED_PER_JOB = 1.01, 0.08  # the first for configured limits, the second for the others


class ThroughputResult(NamedTuple):
    """The results of a case: shares of the limit, 429s per job, and milliseconds of processor time per job."""

    utilisation: float
    peak_utilisation: float
    rate_limited_per_job: float
    cpu_ms: float


def simulator_of(case: LimitCase, *extra_options: str) -> closing[SimulatorProcess]:
    """Start a simulator with the limit of the case, which stops at the end of the block."""
    limits = ("--limit", case.limit, "--retry-after", case.retry_after)
    return closing(SimulatorProcess(*limits, "--tiny", "--latency", case.latency, *extra_options))


def measure(case: LimitCase, jobs: int, parent_dir: str) -> ThroughputResult:
    """Run a case in a new directory, which is kept until the end (see benchmarks.overhead)."""
    folder = tempfile.mkdtemp(dir=parent_dir)
    with simulator_of(case) as simulator:
        lines = (json.dumps({"prompt": f"image {n}"}) + "\n" for n in range(jobs))
        (Path(folder) / "jobs.jsonl").write_text("".join(lines))
        limits = ["--rate", case.rate, "--poll-interval", case.poll_interval, "--max-in-flight", "5000"]
        limits += ["--shared"] if case.workers else []
        if case.ledger:
            limits += ["--ledger", case.ledger, "--batch", Path(folder).name.lower()]
        output = ["--no-thumbnails", "--quiet", "--out"]  # thumbnails would take the processor of the simulator
        command = [*COMMAND, "run", "jobs.jsonl", "--gateway", simulator.gateway_url, *limits, *output]
        environment = os.environ | {"PIXAZO_API_KEY": "benchmark"}
        outs = [f"out-{number}" if case.ledger else "out" for number in range(max(1, case.workers))]
        processes = [subprocess.Popen([*command, out], cwd=folder, env=environment) for out in outs]
        ends = [os.wait4(process.pid, 0)[1:] for process in processes]
        posts = simulator.admin_request("/ledger")["posts"]
    assert all(os.waitstatus_to_exitcode(status) == 0 for status, _ in ends)
    accepted_s = [post["at_s"] for post in posts if post["charged"]]
    per_s = (len(accepted_s) - max(1, case.burst)) / (accepted_s[-1] - accepted_s[0])
    cpu_s = sum(usage.ru_utime + usage.ru_stime for _, usage in ends)
    rate_limited = sum(post["status"] == 429 for post in posts)
    peak_per_s = max_in_window(accepted_s)
    return ThroughputResult(per_s / case.per_s, peak_per_s / case.per_s, rate_limited / jobs, 1000 * cpu_s / jobs)


def parse_options(default_repeat: int, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Return the options of a benchmark of limits: `share` of the jobs, `repeat`, and `only` some cases."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=default_repeat)
    parser.add_argument("--only", default="")
    return parser.parse_args()


def measure_share(case: LimitCase, share: float, parent_dir: str) -> ThroughputResult:
    """Run a case with a share of its jobs, at least twenty besides its burst."""
    return measure(case, max(case.burst + 20, int(case.jobs * share)), parent_dir)


def measure_alone(
    case: LimitCase, options: argparse.Namespace, parent_dir: str, repeat_factor: int = 1
) -> ThroughputResult:
    """Return the medians of several runs, one after the other. `repeat_factor` is for all forms but the short one."""
    repeat = options.repeat * (repeat_factor if options.share == 1 else 1)
    return medians([measure_share(case, options.share, parent_dir) for _ in range(repeat)])


def measure_in_parallel(
    cases: Sequence[LimitCase], options: argparse.Namespace, parent_dir: str
) -> Iterator[tuple[LimitCase, ThroughputResult]]:
    """Run cases with low limits, several at a time; yield the medians of each."""
    with ThreadPoolExecutor(MAX_PARALLEL_RUNS) as executor:
        runs = [
            (case, [executor.submit(measure_share, case, options.share, parent_dir) for _ in range(options.repeat)])
            for case in cases
        ]
        for case, results in runs:
            yield case, medians([each.result() for each in results])


def medians(runs: Sequence[ThroughputResult]) -> ThroughputResult:
    return ThroughputResult(*(statistics.median(figures) for figures in zip(*runs, strict=True)))


def main() -> None:
    options = parse_options(default_repeat=3)
    print("| configured | limit | used | max in a second | 429s per job | CPU ms per job |")
    print("|---|---|---|---|---|---|")
    cases = [case for case in LIMIT_CASES if options.only in case.name + case.limit]
    results: list[tuple[LimitCase, ThroughputResult]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            if case.is_configured:
                results.append((case, measure_alone(case, options, folder, CONFIGURED_REPEAT_FACTOR)))
                _print_row(*results[-1])
        unconfigured = [case for case in cases if not case.is_configured]
        for result in measure_in_parallel(unconfigured, options, folder):
            results.append(result)
            _print_row(*result)
    for prefix, min_utilisation in GOALS.items():
        if matching := [(case, median) for case, median in results if case.name.startswith(prefix)]:
            _report_goal(prefix, min_utilisation, matching)


def _print_row(case: LimitCase, median: ThroughputResult) -> None:
    """Print the medians of a case's runs as a row of the table."""
    print(
        f"| {case.name} | {case.limit} | {median.utilisation:.3f} | {median.peak_utilisation:.3f} "
        f"| {median.rate_limited_per_job:.4f} | {median.cpu_ms:.2f} |",
        flush=True,
    )


def _report_goal(prefix: str, min_utilisation: float, results: list[tuple[LimitCase, ThroughputResult]]) -> None:
    low, high = min(median.utilisation for _, median in results), max(median.utilisation for _, median in results)
    rate_limited = max(median.rate_limited_per_job for _, median in results)
    if all(case.is_configured for case, _ in results):
        bound, met = f"≥ {min_utilisation}, ≤ {MAX_UTILISATION}", min_utilisation <= low and high <= MAX_UTILISATION
    else:
        bound, met = (
            f"≥ {min_utilisation}, 429s per job ≤ {MAX_RATE_LIMITED_PER_JOB}",
            min_utilisation <= low and rate_limited <= MAX_RATE_LIMITED_PER_JOB,
        )
    reached = f"{low:.3f} to {high:.3f}, 429s per job {rate_limited:.4f}"
    report_goal(f"used of the limit, {prefix}", bound, reached, met=met)


if __name__ == "__main__":
    main()
