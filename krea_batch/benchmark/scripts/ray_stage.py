"""The script with Ray: a stage of `map_batches`, on two actors that each have half of the rate.

An actor takes many rows at the same time, and Ray runs the rows of an actor that was killed on another one.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from krea_batch.benchmark.scripts.requests_client import RequestsClient, ScriptRun

if TYPE_CHECKING:
    from ray.data import Dataset

ACTORS = 2
BLOCK_ROWS = 20  # chosen: a block is as slow as its slowest row
MAX_IN_FLIGHT = 500


class RowClient:
    """Generates the images of the rows of a batch."""

    def __init__(self, run: ScriptRun) -> None:
        self._out = Path(run.out)
        self._out.mkdir(parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(MAX_IN_FLIGHT)
        self._client = RequestsClient(run.gateway, per_s=run.per_s / ACTORS, poll_interval_s=run.poll_interval_s)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = zip(map(str, batch["id"]), map(str, batch["prompt"]), strict=True)
        return {**batch, "status": list(self._pool.map(self._generate, rows))}

    def _generate(self, row: tuple[str, str]) -> str:
        try:
            self._client.generate(*row, self._out)
        except (requests.RequestException, RuntimeError) as error:
            return str(error)
        return "succeeded"


def generate_rows(dataset: Dataset, run: ScriptRun) -> Dataset:
    """Return the rows with their status, once Ray executes the dataset."""
    from ray.data import ActorPoolStrategy

    blocks = MAX_IN_FLIGHT // BLOCK_ROWS
    return dataset.repartition(target_num_rows_per_block=BLOCK_ROWS, strict=True).map_batches(
        RowClient,
        fn_constructor_kwargs={"run": run},
        batch_size=None,
        compute=ActorPoolStrategy(
            size=ACTORS,
            max_tasks_in_flight_per_actor=blocks,
            max_concurrent_calls_per_actor=blocks,
            enable_true_multi_threading=True,
        ),
        num_cpus=0.25,
    )


def main() -> int:
    import ray

    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    run = ScriptRun.read()
    dataset = ray.data.from_items([{"id": f"{n:06d}", "prompt": f"image {n}"} for n in range(run.jobs)])
    rows = generate_rows(dataset, run).take_all()
    ray.shutdown()
    return 0 if all(row["status"] == "succeeded" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
