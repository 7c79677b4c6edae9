"""Is the time that `plan` forecasts the time that `run` takes?

    python -m benchmarks.forecast                  four settings, each bound by something else; some six minutes

For each: `krea-batch plan --json`, then `krea-batch run --json` against a simulator of its own with these settings.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.processes import Simulated, environment, write_jobs

CASES: dict[str, tuple[int, list[str], str, str]] = {
    "the rate": (1000, ["--rate=10/s"], "lognormal:12,0.3", ""),
    "jobs in flight": (300, ["--rate=20/s", "--max-in-flight=20"], "lognormal:6,0.3", ""),
    "latency": (100, ["--rate=20/s"], "uniform:20,40", ""),
    "the gateway's limit (429)": (300, ["--rate=40/s"], "lognormal:6,0.3", "8/s"),
}


def command(*arguments: str, cwd: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "krea_batch", *arguments],
        cwd=cwd,
        env=environment(PIXAZO_API_KEY="none"),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def measure(jobs: int, options: list[str], latency: str, limit: str) -> tuple[dict[str, Any], float]:
    """The forecast, and the seconds of the run."""
    limits = [f"--submit-limit=sliding-window:{limit}"] if limit else []
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        write_jobs(folder / "jobs.jsonl", jobs)
        told = [f"--limit={limit}"] if limit else []
        plan = command("plan", "jobs.jsonl", "--json", f"--latency={latency}", *options, *told, cwd=folder)
        simulator = Simulated("--tiny", f"--latency={latency}", *limits)
        try:
            run = command(
                "run", "jobs.jsonl", "--out=out", "--json", f"--gateway={simulator.gateway}", *options, cwd=folder
            )
        finally:
            simulator.close()
    return plan, run["seconds"]


def main() -> None:
    print(f"{'bound by':<28}{'forecast':>10}{'run':>10}{'off by':>10}   what plan says binds")
    for name, case in CASES.items():
        plan, seconds = measure(*case)
        off = plan["seconds"] / seconds - 1
        print(f"{name:<28}{plan['seconds']:>8.1f} s{seconds:>8.1f} s{off:>+10.1%}   {plan['binds']}", flush=True)


if __name__ == "__main__":
    main()
