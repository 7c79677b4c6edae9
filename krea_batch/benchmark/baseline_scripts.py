"""Two scripts as people usually write them for such an API, to compare the engine with.

They are simple but fair: they respect Retry-After and check HTTP statuses. They have no ledger, so a crash would lose
jobs, or charge them again. They are only run against the simulator.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiolimiter import AsyncLimiter

from krea_batch.benchmark.cases import Case
from krea_batch.benchmark.recorder import Recorder, measure_loop_lag

SUBMIT_URL_PATH = "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"  # API document, Code samples
STATUS_URL_PATH = "/v2/requests/status/"  # API document, Retrieving Results
HEADERS = {"Cache-Control": "no-cache", "Ocp-Apim-Subscription-Key": "simulated"}
MAX_THREADS = 32  # chosen: the most that ThreadPoolExecutor uses by default
DEFAULT_RETRY_AFTER_S = 1.0  # chosen: what such scripts usually sleep


def run_threads(case: Case, recorder: Recorder) -> None:
    """Run the jobs in 32 threads with requests, as the Python example of the API document does for one job."""
    import requests  # from the extra `bench`; the command has checked it

    lock = threading.Lock()
    submit_until_s = time.monotonic() + case.submit_window_s
    thread_local = threading.local()

    def session() -> requests.Session:
        if not hasattr(thread_local, "session"):
            thread_local.session = requests.Session()
            thread_local.session.headers.update(HEADERS)
        thread_session: requests.Session = thread_local.session
        return thread_session

    def submit(index: int) -> str | None:
        while time.monotonic() < submit_until_s:
            response = session().post(case.gateway + SUBMIT_URL_PATH, json=_body(case, index), timeout=60)
            if response.status_code == 429:
                with lock:
                    recorder.record_rate_limited()
                time.sleep(_retry_after_s(response.headers.get("Retry-After")))
                continue
            response.raise_for_status()
            request_id: str = response.json()["request_id"]
            with lock:
                recorder.record_accepted(request_id)
            return request_id
        return None

    def run_job(index: int) -> None:
        request_id = submit(index)
        while request_id:
            time.sleep(case.poll_interval_s)
            response = session().get(case.gateway + STATUS_URL_PATH + request_id, timeout=60)
            response.raise_for_status()
            status = response.json()
            with lock:
                recorder.record_poll()
            if status["status"] == "COMPLETED":
                with lock:
                    recorder.record_finished(request_id, _took_s(status))
                image = session().get(status["output"]["media_url"][0], timeout=60)
                image.raise_for_status()
                _image_path(case, index).write_bytes(image.content)
                with lock:
                    recorder.record_stored()
                return

    with ThreadPoolExecutor(MAX_THREADS) as pool:
        for future in [pool.submit(run_job, index) for index in range(case.jobs)]:
            future.result()


async def run_tasks(case: Case, recorder: Recorder) -> None:
    """Run each job in a task with aiohttp, and wait for aiolimiter before each submit."""
    limiter = AsyncLimiter(1, 1 / case.per_s)
    submit_until_s = time.monotonic() + case.submit_window_s

    async def submit(session: aiohttp.ClientSession, index: int) -> str | None:
        while time.monotonic() < submit_until_s:
            async with limiter, session.post(case.gateway + SUBMIT_URL_PATH, json=_body(case, index)) as response:
                if response.status != 429:
                    response.raise_for_status()
                    request_id: str = (await response.json())["request_id"]
                    recorder.record_accepted(request_id)
                    return request_id
                recorder.record_rate_limited()
                wait_s = _retry_after_s(response.headers.get("Retry-After"))
            await asyncio.sleep(wait_s)
        return None

    async def run_job(session: aiohttp.ClientSession, index: int) -> None:
        request_id = await submit(session, index)
        while request_id:
            await asyncio.sleep(case.poll_interval_s)
            async with session.get(case.gateway + STATUS_URL_PATH + request_id) as response:
                response.raise_for_status()
                status = await response.json()
            recorder.record_poll()
            if status["status"] == "COMPLETED":
                recorder.record_finished(request_id, _took_s(status))
                async with session.get(status["output"]["media_url"][0]) as image:
                    image.raise_for_status()
                    _image_path(case, index).write_bytes(await image.read())
                recorder.record_stored()
                return

    lag_task = asyncio.create_task(measure_loop_lag(recorder.record.loop_lags_ms))
    try:
        async with aiohttp.ClientSession(headers=HEADERS) as session, asyncio.TaskGroup() as tasks:
            for index in range(case.jobs):
                tasks.create_task(run_job(session, index))
    finally:
        lag_task.cancel()


def _body(case: Case, index: int) -> dict[str, Any]:
    return {"prompt": case.prompt, "seed": index}


def _image_path(case: Case, index: int) -> Path:
    return Path(case.out) / f"{index + 1:06d}.png"


def _retry_after_s(header: str | None) -> float:
    return float(header) if header and header.isdigit() else DEFAULT_RETRY_AFTER_S


def _took_s(status: dict[str, Any]) -> float | None:
    """Return the duration of the job by the gateway's two timestamps, in seconds; None without valid ones."""
    try:
        created, completed = (datetime.fromisoformat(status[name]) for name in ("created_at", "completed_at"))
    except (KeyError, ValueError):
        return None
    return (completed - created).total_seconds()
