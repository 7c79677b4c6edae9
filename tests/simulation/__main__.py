"""Seeds come in; a line for each failing one, and how to see it again, go out."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.simulation.scenario import ROUNDS, Scenario

SHARED_MEMORY_DIR = Path("/dev/shm")  # noqa: S108 - its fsync costs nothing; deaths are simulated, not real


def run_seed(seed: int, *, verbose: bool = False) -> tuple[int, int, str]:
    """Play one seed in a folder of its own. Returns the seed, its deaths, and what went wrong, if anything did."""
    folder = SHARED_MEMORY_DIR if SHARED_MEMORY_DIR.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="krea-batch-simulation-", dir=folder) as path:
        scenario = Scenario(seed, Path(path) / "out")
        failure = ""
        try:
            scenario.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the seed is to be named
            if verbose:
                traceback.print_exc()
            failure = str(error)
        if verbose:
            print(*scenario.log, sep="\n")
    return seed, scenario.crashes, failure


def run_seeds(seeds: range) -> int:
    """Play many on all cores, name those that fail, and return how many that were."""
    started_s, crashes, failures = time.monotonic(), 0, 0
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for done, (seed, seed_crashes, failure) in enumerate(pool.imap_unordered(run_seed, seeds, chunksize=4), 1):
            crashes += seed_crashes
            if failure:
                failures += 1
                print(f"{failure}\n  again: python -m tests.simulation --seed {seed}", flush=True)
            if done % 1000 == 0 or done == len(seeds):
                runs = done * (ROUNDS + 1)
                runs_per_minute = runs / (time.monotonic() - started_s) * 60
                counts = f"{done:,} seeds, {runs:,} runs ({runs_per_minute:,.0f} a minute), {crashes:,} deaths"
                print(f"{counts}, {failures} failed", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="play this one, and tell all of it")
    parser.add_argument("--seeds", type=int, default=500, help="play so many")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    options = parser.parse_args()
    if options.seed is not None:
        *_, failure = run_seed(options.seed, verbose=True)
        print(failure or f"seed {options.seed} passed")
        return int(bool(failure))
    return int(run_seeds(range(options.first, options.first + options.seeds)) > 0)


if __name__ == "__main__":
    sys.exit(main())
