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

from tests.simulation.scenario import ROUNDS, Play

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its fsync costs nothing; deaths are simulated, not real


def play(seed: int, *, loud: bool = False) -> tuple[int, int, str]:
    """Play one seed in a folder of its own. Returns the seed, its deaths, and what went wrong, if anything did."""
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="krea-batch-simulation-", dir=folder) as path:
        current = Play(seed, Path(path) / "out")
        failed = ""
        try:
            current.play()
        except Exception as error:  # noqa: BLE001 - whatever it is, the seed is to be named
            if loud:
                traceback.print_exc()
            failed = str(error)
        if loud:
            print(*current.told, sep="\n")
    return seed, current.deaths, failed


def play_all(seeds: range) -> int:
    """Play many on all cores, name those that fail, and return how many that were."""
    began_s, deaths, failures = time.monotonic(), 0, 0
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for done, (seed, died, failed) in enumerate(pool.imap_unordered(play, seeds, chunksize=4), 1):
            deaths += died
            if failed:
                failures += 1
                print(f"{failed}\n  again: python -m tests.simulation --seed {seed}", flush=True)
            if done % 1000 == 0 or done == len(seeds):
                runs = done * (ROUNDS + 1)
                a_minute = runs / (time.monotonic() - began_s) * 60
                counts = f"{done:,} seeds, {runs:,} runs ({a_minute:,.0f} a minute), {deaths:,} deaths"
                print(f"{counts}, {failures} failed", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="play this one, and tell all of it")
    parser.add_argument("--seeds", type=int, default=500, help="play so many")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    options = parser.parse_args()
    if options.seed is not None:
        *_, failed = play(options.seed, loud=True)
        print(failed or f"seed {options.seed} passed")
        return int(bool(failed))
    return int(play_all(range(options.first, options.first + options.seeds)) > 0)


if __name__ == "__main__":
    sys.exit(main())
