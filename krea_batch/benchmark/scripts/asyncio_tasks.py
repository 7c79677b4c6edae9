"""The script with asyncio: a task for each job, with aiohttp, and aiolimiter for the rate."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import aiohttp
from aiolimiter import AsyncLimiter

from krea_batch.benchmark.scripts.requests_client import (
    HEADERS,
    RETRIED,
    STATUS_PATH,
    SUBMIT_PATH,
    ScriptRun,
    request_body,
)

MAX_ATTEMPTS = 10


async def request(session: aiohttp.ClientSession, method: str, url: str, **options: Any) -> bytes:
    """Return the body of the answer. Retry 429, 5xx and lost connections with backoff."""
    for attempt in range(MAX_ATTEMPTS):
        wait_s = min(60, 0.2 * 2**attempt) + random.uniform(0, 0.5)  # noqa: S311 - jitter
        try:
            async with session.request(method, url, **options) as response:
                if response.status not in RETRIED:
                    response.raise_for_status()
                    return await response.read()
                wait_s = float(response.headers.get("Retry-After", wait_s))
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
            if attempt == MAX_ATTEMPTS - 1:
                raise
        await asyncio.sleep(wait_s)
    raise RuntimeError(f"{url}: no success in {MAX_ATTEMPTS} attempts")


async def generate(session: aiohttp.ClientSession, limiter: AsyncLimiter, run: ScriptRun, number: int) -> None:
    """Store the image of a job. If an earlier run has submitted the job, continue with its request_id."""
    image, progress = (Path(run.out) / f"{number:06d}{suffix}" for suffix in (".png", ".request_id"))
    if image.exists():
        return
    request_id = progress.read_text("utf-8") if progress.exists() else ""
    if not request_id:
        async with limiter:
            body = request_body(f"image {number}")
            answer = await request(session, "POST", run.gateway + SUBMIT_PATH, json=body, headers=HEADERS)
        request_id = json.loads(answer)["request_id"]
        progress.write_text(request_id, "utf-8")
    status: dict[str, Any] = {"status": "QUEUED"}
    while status["status"] in ("QUEUED", "PROCESSING"):
        await asyncio.sleep(run.poll_interval_s)
        status = json.loads(await request(session, "GET", run.gateway + STATUS_PATH + request_id, headers=HEADERS))
    if status["status"] != "COMPLETED":
        raise RuntimeError(f"{request_id}: {status['error']}")
    part = image.with_suffix(".part")
    part.write_bytes(await request(session, "GET", status["output"]["media_url"][0]))
    part.replace(image)


async def main() -> int:
    run = ScriptRun.read()
    limiter = AsyncLimiter(1, 1 / run.per_s)
    async with aiohttp.ClientSession() as session:
        jobs = [generate(session, limiter, run, number) for number in range(run.jobs)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
    errors = [result for result in results if result is not None]
    for error in errors:
        print(error, file=sys.stderr)  # noqa: T201 - a script
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
