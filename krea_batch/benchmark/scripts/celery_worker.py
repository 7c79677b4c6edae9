"""The script with Celery: a task for each job, and a worker with a pool of threads.

The broker and the results are directories, so that no server has to run. Each start enqueues the jobs that have no
image yet, because the broker of a killed machine may have lost tasks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from celery import Celery, group

from krea_batch.benchmark.scripts.requests_client import MAX_THREADS, RequestsClient, ScriptRun
from krea_batch.engine.child_process import python_command

run = ScriptRun.read()
queue = Path(run.out) / "queue"
app = Celery("images", broker="filesystem://", backend=f"file://{queue}/results")
app.conf.update(
    broker_transport_options={"data_folder_in": f"{queue}/tasks", "data_folder_out": f"{queue}/tasks"},
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
)
client = RequestsClient(run.gateway, per_s=run.per_s, poll_interval_s=run.poll_interval_s)


@app.task(name="generate")
def generate(job_id: str, prompt: str) -> None:
    client.generate(job_id, prompt, Path(run.out))


def main() -> int:
    for name in ("tasks", "results"):
        shutil.rmtree(queue / name, ignore_errors=True)
        (queue / name).mkdir(parents=True)
    options = ["worker", "--pool=threads", f"--concurrency={MAX_THREADS}", "--loglevel=ERROR", "--without-mingle"]
    worker = subprocess.Popen(python_command("celery", f"--app={__spec__.name}", *options))  # noqa: S603 - our own
    missing = [n for n in range(run.jobs) if not (Path(run.out) / f"{n:06d}.png").exists()]
    results = group(generate.s(f"{n:06d}", f"image {n}") for n in missing).apply_async()
    results.join(propagate=False)
    worker.terminate()
    worker.wait()
    return 1 if results.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
