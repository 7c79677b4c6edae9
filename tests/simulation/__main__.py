"""Run seeds on all cores, and print each failing seed with the command that runs it again."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from tests.simulation.scenario import Scenario

SHARED_MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - fsync costs nothing there, and power loss is simulated


class SeedResult(NamedTuple):
    """How a seed went. `failure` is the violation that it found, or ''."""

    seed: int
    runs: int
    crashes: int
    failure: str


def run_seed(seed: int, *, verbose: bool = False) -> SeedResult:
    """Run one seed in a new directory."""
    parent_dir = SHARED_MEMORY_DIR if SHARED_MEMORY_DIR.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="krea-batch-simulation-", dir=parent_dir) as path:
        scenario = Scenario(seed, Path(path) / "out")
        failure = ""
        try:
            scenario.run()
        except Exception as error:  # noqa: BLE001 - every error is reported with its seed
            if verbose:
                traceback.print_exc()
            failure = str(error)
        if verbose:
            print(*scenario.log, sep="\n")
    return SeedResult(seed, scenario.runs, scenario.crashes, failure)


def run_seeds(seeds: range) -> int:
    """Run seeds on all cores, print those that fail, and return their number."""
    started_s, runs, crashes, failures = time.monotonic(), 0, 0, 0
    with multiprocessing.Pool(os.cpu_count(), initializer=gc.freeze) as pool:
        for done, result in enumerate(pool.imap_unordered(run_seed, seeds, chunksize=4), 1):
            runs += result.runs
            crashes += result.crashes
            if result.failure:
                failures += 1
                print(f"{result.failure}\n  run again: python -m tests.simulation --seed {result.seed}", flush=True)
            if done % 1000 == 0 or done == len(seeds):
                runs_per_minute = runs / (time.monotonic() - started_s) * 60
                counts = f"{done:,} seeds, {runs:,} runs ({runs_per_minute:,.0f} per minute), {crashes:,} crashes"
                print(f"{counts}, {failures} failed", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="run this seed only, and print its rounds")
    parser.add_argument("--seeds", type=int, default=500, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    options = parser.parse_args()
    if options.seed is not None:
        failure = run_seed(options.seed, verbose=True).failure
        print(failure or f"seed {options.seed} passed")
        return int(bool(failure))
    return int(run_seeds(range(options.first, options.first + options.seeds)) > 0)


if __name__ == "__main__":
    sys.exit(main())
