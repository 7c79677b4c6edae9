"""A case comes in; the scripts that people usually write for such an API do its work, and notes of it go out.

Newcomers: these are honest scripts, kept simple on purpose. They heed Retry-After and check HTTP statuses; they
keep no ledger, and what a crash leaves behind is lost or paid again. They are run against the simulator alone.
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
from krea_batch.benchmark.recorder import Notes, watch_loop

SUBMIT = "/krea-2-large-text-to-image/v1/krea-2-large-text-to-image-request"  # API document, Code samples
STATUS = "/v2/requests/status/"  # API document, Retrieving Results
HEADERS = {"Cache-Control": "no-cache", "Ocp-Apim-Subscription-Key": "simulated"}
THREADS = 32  # chosen: what ThreadPoolExecutor itself takes at most by default
WITHOUT_RETRY_AFTER_S = 1.0  # chosen: what such scripts sleep when nobody tells them


def run_threads(case: Case, notes: Notes) -> None:
    """A thread a job, 32 at once, with requests: the API document's Python sample in a pool."""
    import requests  # of the extra `bench`; the command has seen to it

    lock = threading.Lock()
    give_up_s = time.monotonic() + case.submit_for_s
    own = threading.local()

    def session() -> requests.Session:
        if not hasattr(own, "session"):
            own.session = requests.Session()
            own.session.headers.update(HEADERS)
        kept: requests.Session = own.session
        return kept

    def submit(n: int) -> str | None:
        while time.monotonic() < give_up_s:
            answer = session().post(case.gateway + SUBMIT, json=_body(case, n), timeout=60)
            if answer.status_code == 429:
                with lock:
                    notes.refused()
                time.sleep(_retry_after_s(answer.headers.get("Retry-After")))
                continue
            answer.raise_for_status()
            request_id: str = answer.json()["request_id"]
            with lock:
                notes.accepted(request_id)
            return request_id
        return None

    def one(n: int) -> None:
        request_id = submit(n)
        while request_id:
            time.sleep(case.poll_interval_s)
            answer = session().get(case.gateway + STATUS + request_id, timeout=60)
            answer.raise_for_status()
            status = answer.json()
            with lock:
                notes.polled()
            if status["status"] == "COMPLETED":
                with lock:
                    notes.finished(request_id, _took_s(status))
                picture = session().get(status["output"]["media_url"][0], timeout=60)
                picture.raise_for_status()
                _picture(case, n).write_bytes(picture.content)
                with lock:
                    notes.stored()
                return

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(one, n) for n in range(case.jobs)]:
            done.result()


async def run_tasks(case: Case, notes: Notes) -> None:
    """A task a job with aiohttp, and aiolimiter before each submit."""
    limiter = AsyncLimiter(1, 1 / case.per_s)
    give_up_s = time.monotonic() + case.submit_for_s

    async def submit(session: aiohttp.ClientSession, n: int) -> str | None:
        while time.monotonic() < give_up_s:
            async with limiter, session.post(case.gateway + SUBMIT, json=_body(case, n)) as answer:
                if answer.status != 429:
                    answer.raise_for_status()
                    request_id: str = (await answer.json())["request_id"]
                    notes.accepted(request_id)
                    return request_id
                notes.refused()
                wait_s = _retry_after_s(answer.headers.get("Retry-After"))
            await asyncio.sleep(wait_s)
        return None

    async def one(session: aiohttp.ClientSession, n: int) -> None:
        request_id = await submit(session, n)
        while request_id:
            await asyncio.sleep(case.poll_interval_s)
            async with session.get(case.gateway + STATUS + request_id) as answer:
                answer.raise_for_status()
                status = await answer.json()
            notes.polled()
            if status["status"] == "COMPLETED":
                notes.finished(request_id, _took_s(status))
                async with session.get(status["output"]["media_url"][0]) as picture:
                    picture.raise_for_status()
                    _picture(case, n).write_bytes(await picture.read())
                notes.stored()
                return

    watch = asyncio.create_task(watch_loop(notes.record.late_ms))
    try:
        async with aiohttp.ClientSession(headers=HEADERS) as session, asyncio.TaskGroup() as tasks:
            for n in range(case.jobs):
                tasks.create_task(one(session, n))
    finally:
        watch.cancel()


def _body(case: Case, n: int) -> dict[str, Any]:
    return {"prompt": case.prompt, "seed": n}


def _picture(case: Case, n: int) -> Path:
    return Path(case.out) / f"{n + 1:06d}.png"


def _retry_after_s(header: str | None) -> float:
    return float(header) if header and header.isdigit() else WITHOUT_RETRY_AFTER_S


def _took_s(status: dict[str, Any]) -> float | None:
    """How long the gateway says the job took, from its two timestamps."""
    try:
        created, completed = (datetime.fromisoformat(status[name]) for name in ("created_at", "completed_at"))
    except (KeyError, ValueError):
        return None
    return (completed - created).total_seconds()
