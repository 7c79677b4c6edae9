"""What the scripts that use requests have in common: the calls of the API document, retried, and a job's progress."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

MAX_THREADS = 256  # chosen: 50/s for 5 s each; the processor is no limit, because the threads mostly sleep
SUBMIT_PATH = "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"  # API document, Code samples
STATUS_PATH = "/v2/requests/status/"  # API document, Retrieving Results
HEADERS = {"Cache-Control": "no-cache", "Ocp-Apim-Subscription-Key": "simulated"}
RETRIED = (429, 500, 502, 503, 504)


class ScriptRun(msgspec.Struct, frozen=True):
    """What a script has to do. Job number `n` has the id `{n:06d}` and the prompt `image {n}`."""

    gateway: str
    per_s: float
    poll_interval_s: float
    jobs: int
    out: str

    @classmethod
    def read(cls) -> ScriptRun:
        return msgspec.json.decode(os.environ["BENCH_RUN"], type=cls)


def request_body(prompt: str) -> dict[str, Any]:
    """Return the body of the API document's example."""
    return {
        "prompt": prompt,
        "aspect_ratio": "1:1",
        "creativity": "medium",
        "image_style_references": [],
        "styles": [],
        "moodboards": [],
    }


class RequestsClient:
    """Submits, polls and downloads, from any number of threads. It retries with backoff and respects Retry-After."""

    def __init__(self, gateway: str, *, per_s: float, poll_interval_s: float) -> None:
        self._gateway = gateway
        self._interval_s, self._poll_interval_s = 1 / per_s, poll_interval_s
        self._lock = threading.Lock()
        self._next_submit_s = 0.0
        retry = Retry(10, status_forcelist=RETRIED, allowed_methods=None, backoff_factor=0.2, backoff_jitter=0.5)
        self._session = requests.Session()
        self._session.headers.update(HEADERS)
        self._session.mount("http://", HTTPAdapter(pool_maxsize=MAX_THREADS, max_retries=retry))

    def generate(self, job_id: str, prompt: str, out: Path) -> None:
        """Store the image of a job. If an earlier run has submitted the job, continue with its request_id."""
        image, progress = out / f"{job_id}.png", out / f"{job_id}.request_id"
        if image.exists():
            return
        request_id = progress.read_text("utf-8") if progress.exists() else ""
        if not request_id:
            request_id = self.submit(prompt)
            progress.write_text(request_id, "utf-8")
        self.download(self.wait_for_url(request_id), image)

    def submit(self, prompt: str) -> str:
        with self._lock:
            slot_s = self._next_submit_s = max(self._next_submit_s + self._interval_s, time.monotonic())
        time.sleep(max(0.0, slot_s - time.monotonic()))
        response = self._session.post(self._gateway + SUBMIT_PATH, json=request_body(prompt), timeout=60)
        response.raise_for_status()
        return str(response.json()["request_id"])

    def wait_for_url(self, request_id: str) -> str:
        while True:
            time.sleep(self._poll_interval_s)
            response = self._session.get(self._gateway + STATUS_PATH + request_id, timeout=60)
            response.raise_for_status()
            status = response.json()
            if status["status"] == "COMPLETED":
                return str(status["output"]["media_url"][0])
            if status["status"] in ("FAILED", "ERROR"):
                raise RuntimeError(f"{request_id}: {status['error']}")

    def download(self, url: str, image: Path) -> None:
        response = self._session.get(url, headers=dict.fromkeys(HEADERS), timeout=60)
        response.raise_for_status()
        part = image.with_suffix(".part")
        part.write_bytes(response.content)
        part.replace(image)


def exit_code(futures: Iterable[Future[None]]) -> int:
    """Wait for all jobs; report those that failed. Returns 1 if there are any."""
    errors = [error for future in futures if (error := future.exception())]
    for error in errors:
        print(error, file=sys.stderr)  # noqa: T201 - a script
    return 1 if errors else 0
