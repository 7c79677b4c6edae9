"""Is the estimate of `plan` the time that `run` takes?

    python -m benchmarks.forecast                      four cases, each limited by something else; about six minutes
    python -m benchmarks.forecast --scale 0.05         the short form: fewer jobs, shorter latencies

For each case: `krea-batch plan --json`, then `krea-batch run --json` against a simulator with the same settings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import report_goal
from tests.processes import SimulatorProcess, run_command, write_jobs

MAX_ERROR = 0.10


class ForecastCase(NamedTuple):
    """Jobs, engine options, a latency as a format string of its scaled seconds, and a limit of the gateway."""

    jobs: int
    options: list[str]
    latency: str
    seconds: tuple[float, ...]
    limit: str = ""

    def scaled(self, scale: float) -> ForecastCase:
        """Return the case with fewer jobs and shorter latencies."""
        seconds = tuple(scale * each for each in self.seconds)
        return self._replace(jobs=max(2, round(scale * self.jobs)), seconds=seconds)


FORECAST_CASES = {
    "the rate": ForecastCase(1000, ["--rate=10/s"], "lognormal:{:g},0.3", (12,)),
    "jobs in flight": ForecastCase(300, ["--rate=20/s", "--max-in-flight=20"], "lognormal:{:g},0.3", (6,)),
    "latency": ForecastCase(100, ["--rate=20/s"], "uniform:{:g},{:g}", (20, 40)),
    "the gateway's limit (429)": ForecastCase(300, ["--rate=40/s"], "lognormal:{:g},0.3", (6,), "8/s"),
}


def json_output(*arguments: str, cwd: Path) -> dict[str, Any]:
    """Run the command, and return what it prints."""
    done = run_command(*arguments, cwd=cwd)
    if done.returncode:
        raise SystemExit(done.stderr)
    output: dict[str, Any] = json.loads(done.stdout)
    return output


def measure(case: ForecastCase) -> tuple[dict[str, Any], float]:
    """Return the output of `plan`, and the seconds that `run` takes."""
    latency = f"--latency={case.latency.format(*case.seconds)}"
    limits = [f"--submit-limit=sliding-window:{case.limit}"] if case.limit else []
    gateway_limit = [f"--gateway-limit={case.limit}"] if case.limit else []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        write_jobs(folder / "jobs.jsonl", case.jobs)
        plan = json_output("plan", "jobs.jsonl", "--json", latency, *case.options, *gateway_limit, cwd=folder)
        with closing(SimulatorProcess("--tiny", latency, *limits)) as simulator:
            gateway = f"--gateway={simulator.gateway_url}"
            run = json_output("run", "jobs.jsonl", "--out=out", "--json", gateway, *case.options, cwd=folder)
    return plan, run["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of jobs and the latencies")
    scale = parser.parse_args().scale
    print("| limited by | estimate | run | error | bottleneck according to plan |")
    print("|---|---|---|---|---|")
    max_error = 0.0
    for name, case in FORECAST_CASES.items():
        plan, seconds = measure(case.scaled(scale))
        error = plan["seconds"] / seconds - 1
        max_error = max(max_error, abs(error))
        print(
            f"| {name} | {plan['seconds']:.1f} s | {seconds:.1f} s | {error:+.1%} | {plan['bottleneck']} |",
            flush=True,
        )
    reached, met = f"{max_error:.1%} at most", max_error <= MAX_ERROR
    report_goal("error of the time that plan estimates", f"≤ {MAX_ERROR:.0%}", reached, met=met)


if __name__ == "__main__":
    main()
