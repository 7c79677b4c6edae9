"""Run seeds on all cores, and print each failing seed with the command that runs it again."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.simulation.scenario import Scenario
from tests.simulation.workers_scenario import WorkersScenario

SHARED_MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - fsync costs nothing there, and power loss is simulated


class SeedResult(NamedTuple):
    """How a seed went. `failure` is the violation that it found, or ''."""

    seed: int
    runs: int
    crashes: int
    failure: str


def run_seed(seed: int, *, workers: bool = False, verbose: bool = False) -> SeedResult:
    """Run one seed in a new directory, with several `workers` at the same time or with one run after the other."""
    parent_dir = SHARED_MEMORY_DIR if SHARED_MEMORY_DIR.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="krea-batch-simulation-", dir=parent_dir) as path:
        scenario = (WorkersScenario if workers else Scenario)(seed, Path(path) / "out")
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


def run_seeds(seeds: range, *, workers: bool = False, cores: int | None = None) -> int:
    """Run seeds on so many cores, by default all, print those that fail, and return their number."""
    again = f"python -m tests.simulation {'--workers ' if workers else ''}--seed"
    run = partial(run_seed, workers=workers)
    started_s, runs, crashes, failures = time.monotonic(), 0, 0, 0
    with multiprocessing.Pool(cores, initializer=gc.freeze) as pool:
        for done, result in enumerate(pool.imap_unordered(run, seeds, chunksize=4), 1):
            runs += result.runs
            crashes += result.crashes
            if result.failure:
                failures += 1
                print(f"{result.failure}\n  run again: {again} {result.seed}", flush=True)
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
    parser.add_argument("--workers", action="store_true", help="several workers at the same time")
    parser.add_argument("--cores", type=int, help="number of processes; default: one for each core")
    options = parser.parse_args()
    if options.seed is not None:
        failure = run_seed(options.seed, workers=options.workers, verbose=True).failure
        print(failure or f"seed {options.seed} passed")
        return int(bool(failure))
    seeds = range(options.first, options.first + options.seeds)
    return int(run_seeds(seeds, workers=options.workers, cores=options.cores) > 0)


if __name__ == "__main__":
    sys.exit(main())
