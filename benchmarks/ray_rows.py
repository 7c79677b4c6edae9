"""How often is a row of a Ray Dataset paid for, when actors are killed?

    python -m benchmarks.ray_rows                        1,200 rows, 2 actors, 4 kills; the engine and a control
    python -m benchmarks.ray_rows --rows 60 --kills 1    the short form

The control is what is written without this library, `krea_batch.benchmark.scripts.ray_stage`: it has the same number
of actors, each with its share of the rate, a file for each request_id, and Ray's own retries. An actor is killed with
SIGKILL each time that another share of the rows has been accepted. Surplus charges are charges beyond one per row.

Without Ray (`pip install 'krea-batch[ray]'`), nothing is measured, and the output says so.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.report import NOT_MEASURED, report_goal
from krea_batch.benchmark.scripts.ray_stage import ACTORS, MAX_IN_FLIGHT, generate_rows
from krea_batch.benchmark.scripts.requests_client import ScriptRun
from krea_batch.ray import generate_images
from krea_batch.settings import KEY_VARIABLE
from tests.processes import SimulatorProcess

if TYPE_CHECKING:
    from ray.data import Dataset

PER_S = 50
MIN_USED = 0.95
KILLED_WITHIN = 0.75  # of the rows: an actor that is killed starts again before the end
POLL_INTERVAL_S = 0.5
LATENCY = "uniform:2,6"
RESPONSE_DELAY_S = 0.3  # chosen: an actor that is killed at 25 submits/s has some that are accepted but not answered
KEY = "benchmark"


class RayResult(NamedTuple):
    """What became of the rows of a dataset, by the accounting of the gateway."""

    rows: int
    distinct_rows: int
    kills: int
    surplus_charges: int
    ambiguous: int
    utilisation: float
    rate_limited: int


class ActorKiller(threading.Thread):
    """Kills actors of the dataset that this process executes, each time that more rows have been accepted."""

    def __init__(self, simulator: SimulatorProcess, rows: int, kills: int) -> None:
        super().__init__(daemon=True)
        self._simulator = simulator
        self._due = [round(rows * KILLED_WITHIN * (n + 1) / (kills + 1)) for n in range(kills)]
        self._random = Random(1)
        self._ended = threading.Event()
        self.kills = 0

    def run(self) -> None:
        while self._due and not self._ended.wait(0.1):
            if self._simulator.admin_request("/totals")["accepted"] < self._due[0]:
                continue
            if actors := actor_processes():
                with suppress(ProcessLookupError):  # It has ended by itself.
                    os.kill(self._random.choice(actors), signal.SIGKILL)
                    self.kills += 1
                    self._due.pop(0)

    def end(self) -> None:
        self._ended.set()
        self.join()


def actor_processes() -> list[int]:
    """Return the process ids of the actors of Ray Data that this process has started, on Linux."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                actors.append(int(folder.name))

    def is_own(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return [process for process in actors if is_own(process)]


def measure(make: Callable[[Dataset, str], Dataset], rows: int, kills: int, limit: str) -> RayResult:
    """Execute a dataset, kill actors meanwhile, and count what the gateway has charged."""
    import ray

    items = [{"id": f"row-{n}", "prompt": f"image {n}"} for n in range(rows)]
    delay = ("--fault", "submit-hang=1", "--hang-duration", f"{RESPONSE_DELAY_S}s")
    simulator = SimulatorProcess("--tiny", "--latency", LATENCY, "--rate-limit", limit, *delay)
    killer = ActorKiller(simulator, rows, kills)
    try:
        killer.start()
        executed = make(ray.data.from_items(items, override_num_blocks=1), simulator.gateway_url).take_all()
        killer.end()
        posts = simulator.admin_request("/ledger")["posts"]
    finally:
        simulator.close()
    charged = [post for post in posts if post["charged"]]
    accepted_s = [post["at_s"] for post in charged]
    return RayResult(
        rows=len(executed),
        distinct_rows=len({row["id"] for row in executed}),
        kills=killer.kills,
        surplus_charges=len(charged) - len({post["body"]["prompt"] for post in charged}),
        ambiguous=sum(row["status"] == "ambiguous" for row in executed),
        utilisation=(len(charged) - 1) / (accepted_s[-1] - accepted_s[0]) / PER_S,
        rate_limited=sum(post["status"] == 429 for post in posts),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--limit", default="token-bucket", help="the kind of the gateway's limit")
    parser.add_argument("--only", choices=["engine", "control"])
    options = parser.parse_args()
    if find_spec("ray") is None:
        print(f"{NOT_MEASURED}: Ray is not installed (pip install 'krea-batch[ray]')")
        return
    os.environ |= {KEY_VARIABLE: KEY, "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    limit = f"{options.limit}:{PER_S}/s"
    print("| stage | rows out | distinct | kills | surplus charges | ambiguous | used | 429s |")
    print("|---|---|---|---|---|---|---|---|")
    table = sys.stdout
    # Ray prints what it thinks of killed actors, at any time.
    with tempfile.TemporaryDirectory() as out, redirect_stdout(sys.stderr):

        def engine(dataset: Dataset, gateway: str) -> Dataset:
            return generate_images(
                dataset,
                out=f"{out}/engine",
                rate=f"{PER_S}/s",
                workers=ACTORS,
                gateway=gateway,
                poll_interval_s=POLL_INTERVAL_S,
                max_in_flight=MAX_IN_FLIGHT,
            )

        def control(dataset: Dataset, gateway: str) -> Dataset:
            run = ScriptRun(gateway, PER_S, POLL_INTERVAL_S, options.rows, f"{out}/control")
            return generate_rows(dataset, run)

        stages = {"engine": engine, "control": control}
        results = {}
        for name in [options.only] if options.only else stages:
            results[name] = measure(stages[name], options.rows, options.kills, limit)
            *counts, used, refused = results[name]
            print(f"| {name} | {' | '.join(map(str, counts))} | {used:.3f} | {refused} |", file=table, flush=True)
        ray.shutdown()
    if result := results.get("engine"):
        goal = f"{options.rows} distinct rows, 0 charged twice, used ≥ {MIN_USED}"
        reached = f"{result.distinct_rows}, {result.surplus_charges}, {result.utilisation:.3f}"
        met = (result.distinct_rows, result.surplus_charges) == (options.rows, 0) and result.utilisation >= MIN_USED
        report_goal(f"Ray: {options.rows} rows, {result.kills} kills of actors", goal, reached, met=met)


if __name__ == "__main__":
    main()
