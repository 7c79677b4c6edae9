"""Is the time that `plan` forecasts the time that `run` takes?

    python -m benchmarks.forecast                      four settings, each bound by something else; some six minutes
    python -m benchmarks.forecast --share 0.02         the short form

For each: `krea-batch plan --json`, then `krea-batch run --json` against a simulator of its own with these settings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import report_goal
from tests.processes import SimulatorProcess, clean_environment, write_jobs

MAX_ERROR = 0.10
FORECAST_CASES: dict[str, tuple[int, list[str], str, str]] = {
    "the rate": (1000, ["--rate=10/s"], "lognormal:12,0.3", ""),
    "jobs in flight": (300, ["--rate=20/s", "--max-in-flight=20"], "lognormal:6,0.3", ""),
    "latency": (100, ["--rate=20/s"], "uniform:20,40", ""),
    "the gateway's limit (429)": (300, ["--rate=40/s"], "lognormal:6,0.3", "8/s"),
}


def run_command(*arguments: str, cwd: Path) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "krea_batch", *arguments],
        cwd=cwd,
        env=clean_environment(PIXAZO_API_KEY="none"),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(process.stderr)
    output: dict[str, Any] = json.loads(process.stdout)
    return output


def measure(jobs: int, options: list[str], latency: str, limit: str) -> tuple[dict[str, Any], float]:
    """The forecast, and the seconds of the run."""
    limits = [f"--submit-limit=sliding-window:{limit}"] if limit else []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        write_jobs(folder / "jobs.jsonl", jobs)
        gateway_limit = [f"--limit={limit}"] if limit else []
        plan = run_command(
            "plan", "jobs.jsonl", "--json", f"--latency={latency}", *options, *gateway_limit, cwd=folder
        )
        simulator = SimulatorProcess("--tiny", f"--latency={latency}", *limits)
        try:
            run = run_command(
                "run", "jobs.jsonl", "--out=out", "--json", f"--gateway={simulator.gateway_url}", *options, cwd=folder
            )
        finally:
            simulator.close()
    return plan, run["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=1.0, help="of the jobs of each case")
    share = parser.parse_args().share
    print("| bound by | forecast | run | off by | what plan says binds |")
    print("|---|---|---|---|---|")
    max_error = 0.0
    for name, (jobs, options, latency, limit) in FORECAST_CASES.items():
        plan, seconds = measure(max(2, round(share * jobs)), options, latency, limit)
        error = plan["seconds"] / seconds - 1
        max_error = max(max_error, abs(error))
        print(
            f"| {name} | {plan['seconds']:.1f} s | {seconds:.1f} s | {error:+.1%} | {plan['bottleneck']} |",
            flush=True,
        )
    reached = f"{max_error:.1%} at the most"
    report_goal(
        "the time that plan forecasts, off the run's by", f"≤ {MAX_ERROR:.0%}", reached, met=max_error <= MAX_ERROR
    )


if __name__ == "__main__":
    main()
