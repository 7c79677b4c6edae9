"""A Celery task that generates an image. A task that is delivered again re-attaches to its job, and pays nothing.

    krea-batch simulate --port 8787                                    # a gateway that charges nothing
    export KREA_GATEWAY=http://127.0.0.1:8787 PIXAZO_API_KEY=any
    celery -A examples.celery_tasks worker --pool threads --concurrency 100

    generate_image.apply_async(["a cat"], task_id="order-1")           # in another process

The id of the task is the id of the job. With `acks_late`, a broker delivers a task again if its worker has died, and
the ledger knows its job. Several workers on one machine share the run directory. A task waits in a thread; all of
them use one engine, which has an event loop of its own.

Environment variables: PIXAZO_API_KEY; KREA_OUT, the run directory; KREA_GATEWAY; KREA_RATE; CELERY_BROKER_URL.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal
from celery import Celery
from celery.signals import worker_shutdown

from krea_batch import Engine, Job, Outcome
from krea_batch.settings import GATEWAY_URL

app = Celery("images", broker=os.environ.get("CELERY_BROKER_URL", "memory://"), backend="cache+memory://")
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)


class EngineThread:
    """One engine for all tasks of this process. It is opened by the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._engine: Engine | None = None

    def generate(self, job: Job) -> Outcome:
        """Return the outcome of a job. Raises JobError and RunStopped."""
        with self._lock:
            if self._portal is None or self._engine is None:
                self._portal = self._stack.enter_context(start_blocking_portal())
                self._engine = Engine(
                    os.environ.get("KREA_OUT", "celery-data"),
                    shared=True,
                    rate=os.environ.get("KREA_RATE", "10/s"),
                    gateway=os.environ.get("KREA_GATEWAY", GATEWAY_URL),
                )
                self._portal.call(self._engine.start)
        return self._portal.call(self._engine.generate, job)

    def close(self) -> None:
        """Leave unfinished jobs to other workers, or to the next one."""
        with self._lock:
            if self._portal and self._engine:
                self._portal.call(partial(self._engine.aclose, detach=True))
            self._stack.close()
            self._portal = self._engine = None


engine_thread = EngineThread()


@app.task(bind=True)
def generate_image(task: Any, prompt: str, **fields: Any) -> dict[str, Any]:
    """Generate an image, or find the one that this task has generated. A failed job raises nothing."""
    outcome = engine_thread.generate(Job(prompt=prompt, id=task.request.id, **fields))
    return {
        "status": outcome.status.value,
        "request_id": outcome.request_id,
        "paths": [file.path for file in outcome.files],
        "error": outcome.error.message if outcome.error else None,
    }


@worker_shutdown.connect
def close_engine(**_: Any) -> None:
    engine_thread.close()
