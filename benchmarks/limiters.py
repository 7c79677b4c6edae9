"""How much of a limit is used if the limiter of the gateway has any shape?

    python -m benchmarks.limiters                      300 random limiters in each row; 20 minutes on two cores
    python -m benchmarks.limiters --limiters 3         the short form
    python -m benchmarks.limiters --seed 1017          one limiter; --rate 600 or --auto, --changes

The rate rule runs in virtual time against random limiters (`tests.limiter_judge`): token buckets, fixed and sliding
windows, limits on jobs in process; with Retry-After exact, in whole seconds or missing. Most constants of the rule
were chosen with other seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from benchmarks.report import report_goal
from krea_batch.benchmark.measurements import percentile
from tests.limiter_judge import KIND_WEIGHTS, JudgeResult, draw_configured_per_s, draw_limiter, judge

FIRST_SEED = 1000  # most constants were chosen with seeds below
PLOT = Path(__file__).with_name("limiters.svg")
ROWS = {"configured 3 to 30 times too high": "configured", "auto": "auto", "the limit halves or doubles": "change"}
GOALS = {"configured": (0.97, 0.90), "auto": (0.95, 0.85), "change": (0.90, 0.0)}  # median, 5th percentile
MAX_RATE_LIMITED = (0.05, 0.15)  # 429s a job: median, 95th percentile


def run(seed: int, row: str) -> JudgeResult:
    """Run the rule against the limiter of a seed."""
    case = draw_limiter(seed, changes=row == "change")
    return judge(case, None if row == "auto" else draw_configured_per_s(case))


def reached_by(results: Sequence[JudgeResult]) -> tuple[float, float, float, float]:
    """Return the median and the 5th percentile of the shares, the median and the 95th percentile of 429s per job."""
    shares = sorted(result.share for result in results)
    refused = sorted(result.rate_limited_per_job for result in results)
    return (
        statistics.median(shares), percentile(shares, 5),
        statistics.median(refused), percentile(refused, 95),
    )  # fmt: skip


def print_row(name: str, results: Sequence[JudgeResult]) -> None:
    share, low_share, refused, high_refused = reached_by(results)
    cells = f"{share:.3f} | {low_share:.3f} | {refused:.4f} | {high_refused:.3f}"
    print(f"| {name} | {len(results)} | {cells} |", flush=True)


def report(row: str, results: Sequence[JudgeResult]) -> None:
    """Report the goals of a row."""
    reached = reached_by(results)
    min_median, min_low = GOALS[row]
    bound = f"median ≥ {min_median}" + (f", 5th percentile ≥ {min_low}" if min_low else "")
    report_goal(
        f"random limiters, {row}: used of the limit", bound, f"{reached[0]:.3f}, {reached[1]:.3f}",
        met=reached[0] >= min_median and reached[1] >= min_low,
    )  # fmt: skip
    report_goal(
        f"random limiters, {row}: 429s per job",
        f"median ≤ {MAX_RATE_LIMITED[0]}, 95th percentile ≤ {MAX_RATE_LIMITED[1]}",
        f"{reached[2]:.4f}, {reached[3]:.3f}",
        met=reached[2] <= MAX_RATE_LIMITED[0] and reached[3] <= MAX_RATE_LIMITED[1],
    )


def draw_plot(results: dict[str, list[JudgeResult]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "krea-batch"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for name, runs in results.items():
        shares = sorted(result.share for result in runs)
        axes.plot([100 * (n + 0.5) / len(shares) for n in range(len(shares))], shares, label=name)
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("limiters, from the least used to the most used, %")
    axes.set_ylabel("used of the limit")
    axes.set_title("Random limiters, after the first window")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limiters", type=int, default=300)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--seed", type=int, help="run this limiter only")
    parser.add_argument("--rate", type=float, help="the configured rate, per second")
    parser.add_argument("--auto", action="store_true")
    parser.add_argument("--changes", action="store_true")
    options = parser.parse_args()
    if options.seed is not None:
        case = draw_limiter(options.seed, changes=options.changes)
        print(judge(case, None if options.auto else options.rate or draw_configured_per_s(case)))
        return
    print("| | limiters | used, median | used, 5th percentile | 429s per job, median | 95th percentile |")
    print("|---|---|---|---|---|---|")
    seeds = range(options.first_seed, options.first_seed + options.limiters)
    results = {}
    with ProcessPoolExecutor() as executor:
        for name, row in ROWS.items():
            results[name] = list(executor.map(run, seeds, repeat(row)))
            print_row(name, results[name])
            for kind in KIND_WEIGHTS:
                if of_kind := [result for result in results[name] if result.case.kind == kind]:
                    print_row(f"– {kind}", of_kind)
    draw_plot(results, options.plot)
    for name, row in ROWS.items():
        report(row, results[name])


if __name__ == "__main__":
    main()
