"""An Airflow DAG that generates an image in a task. A retry of the task re-attaches to its job, and pays nothing.

The id of the job is made from the DAG, its run and the task, and is the same in each try of the task. Do not use the
number of the try in it. All tasks of a machine share the run directory; on several machines, put a `ledger.toml` into
it, and store images in a bucket (`sink`).

Environment variables of the workers: PIXAZO_API_KEY; KREA_OUT, the run directory; KREA_GATEWAY; KREA_RATE.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, get_current_context, task

from krea_batch import Engine, Job
from krea_batch.settings import GATEWAY_URL


def job_id(context: Any) -> str:
    """Return the id of the job of a task, the same in each try. The ids of Airflow may not be file names."""
    ids = (context["dag"].dag_id, context["run_id"], context["ti"].task_id, str(context["ti"].map_index))
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]


async def generate(job: Job) -> list[str]:
    """Return the paths of the images of a job. Raises RuntimeError if it has none."""
    async with Engine(
        os.environ.get("KREA_OUT", "airflow-data"),
        shared=True,
        rate=os.environ.get("KREA_RATE", "10/s"),
        gateway=os.environ.get("KREA_GATEWAY", GATEWAY_URL),
    ) as engine:
        outcome = await engine.generate(job)
    if not outcome.succeeded:
        raise RuntimeError(f"{outcome.id}: {outcome.status} ({outcome.error.message if outcome.error else ''})")
    return [file.path for file in outcome.files]


@task(retries=5, retry_delay=timedelta(seconds=30))
def generate_image(prompt: str) -> list[str]:
    return asyncio.run(generate(Job(prompt=prompt, id=job_id(get_current_context()))))


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False)  # noqa: DTZ001 - Airflow adds the time zone
def images() -> None:
    """Generate an image for each prompt."""
    generate_image.expand(prompt=["a red kite", "an owl at dusk"])


images()
