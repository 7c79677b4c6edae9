"""How much processor time does a job cost, compared with a bare loop that makes the same requests?

    python -m benchmarks.overhead                       5,000 jobs, five times each, in turn
    python -m benchmarks.overhead --jobs 100 --repeat 1     the short form

Latency 0, 64 jobs in flight, uvloop. The engine does everything that the library does: ledger, PNG check, fsync. The
bare loop is aiohttp's ClientSession alone: a POST, a GET of the status, a GET of the image. It uses connections as
the engine does: a fresh one for each POST and each image, and kept ones for polls. The first column is the same loop
with kept connections for everything; the difference is the price of fresh ones. In the last row, the gateway is
behind TLS, and the CDN is not. Each runs in a process of its own, against a simulator in another, and measures its
processor time from before the first request until after the last.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import orjson

from benchmarks.report import report_goal
from benchmarks.throughput import LimitCase, simulator_of
from benchmarks.tls_front import tls_front
from krea_batch import Engine, Job
from krea_batch.engine.event_loop import run_event_loop
from krea_batch.gateway import wire

MAX_IN_FLIGHT = 64
OVERHEAD_CASE = LimitCase("overhead", "none", 0, "100000/s", 5000, latency="fixed:0")
MAX_CPU_RATIO = 2.0


class Cost(NamedTuple):
    """Milliseconds of processor time per job: of all threads, and of the event loop's thread."""

    all_ms: float
    loop_ms: float


def _cost(jobs: int, work: Callable[[], None]) -> Cost:
    started_s, loop_started_s = time.process_time(), time.thread_time()
    work()
    all_s, loop_s = time.process_time() - started_s, time.thread_time() - loop_started_s
    return Cost(1000 * all_s / jobs, 1000 * loop_s / jobs)


def bare_loop(gateway: str, jobs: int, keeps_all: bool = False) -> Cost:
    """Make the requests, and nothing else. With `keeps_all`, POSTs and downloads use kept connections too."""

    async def run_job(
        once: aiohttp.ClientSession, kept: aiohttp.ClientSession, semaphore: asyncio.Semaphore, index: int
    ) -> None:
        body = orjson.dumps({"prompt": f"image {index}"})
        headers = {wire.KEY_HEADER: "benchmark"}
        async with semaphore:
            async with once.post(
                gateway + wire.SUBMIT_PATH, data=body, headers=headers | wire.SUBMIT_HEADERS
            ) as response:
                request_id = (await response.json())["request_id"]
            async with kept.get(gateway + wire.STATUS_PATH + request_id, headers=headers) as response:
                output: Any = (await response.json())["output"]["media_url"]
            async with once.get(output if isinstance(output, str) else output[0]) as response:
                await response.read()

    async def main() -> None:
        semaphore = asyncio.Semaphore(MAX_IN_FLIGHT)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=not keeps_all)) as once,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as kept,
        ):
            await asyncio.gather(*(run_job(once, kept, semaphore, n) for n in range(jobs)))

    return _cost(jobs, lambda: run_event_loop(main))


def engine_run(gateway: str, jobs: int, folder: str) -> Cost:
    """Run the same jobs with the engine, in a new directory that is kept until the end.

    For minutes after files were deleted, ext4 makes new ones several times as slowly.
    """

    async def main(out: str) -> None:
        async with Engine(
            out,
            api_key="benchmark",
            gateway=gateway,
            rate=OVERHEAD_CASE.rate,
            max_in_flight=MAX_IN_FLIGHT,
            poll_interval_s=0.01,
        ) as krea_engine:
            await krea_engine.run(Job(prompt=f"image {n}", id=f"{n:06}") for n in range(jobs))
        assert krea_engine.stats().succeeded == jobs

    return _cost(jobs, lambda: run_event_loop(main, tempfile.mkdtemp(dir=folder)))


def in_fresh_process(work: Callable[..., Cost], *args: Any) -> Cost:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(work, *args).result()


def measure(gateway: str, jobs: int, folder: str) -> tuple[Cost, Cost, Cost]:
    """Return the cost of a bare loop with kept connections, of the bare loop, and of the engine."""
    return (
        in_fresh_process(bare_loop, gateway, jobs, True),
        in_fresh_process(bare_loop, gateway, jobs),
        in_fresh_process(engine_run, gateway, jobs, folder),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print("| images | bare, all kept, ms | bare, ms | engine, ms | of which event loop, ms | engine ÷ bare |")
    print("|---|---|---|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for name, size, with_tls in (
            ("of 1 KB", "0", False),
            ("of 20 KB", "20000", False),
            ("of 20 KB, TLS", "20000", True),
        ):
            with simulator_of(OVERHEAD_CASE, "--image-bytes", size) as simulator, ExitStack() as stack:
                gateway = simulator.gateway_url
                if with_tls:
                    gateway = stack.enter_context(tls_front(urlsplit(gateway).port or 0))
                rounds = [measure(gateway, options.jobs, folder) for _ in range(options.repeat)]
            kept_ms = statistics.median(kept.all_ms for kept, _, _ in rounds)
            bare_ms = statistics.median(bare.all_ms for _, bare, _ in rounds)
            engine_ms = statistics.median(engine.all_ms for _, _, engine in rounds)
            loop_ms = statistics.median(engine.loop_ms for _, _, engine in rounds)
            ratios.append(statistics.median(engine.all_ms / bare.all_ms for _, bare, engine in rounds))
            cells = (f"{value:.2f}" for value in (kept_ms, bare_ms, engine_ms, loop_ms, ratios[-1]))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    reached = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    report_goal("processor time per job ÷ bare loop", f"≤ {MAX_CPU_RATIO}", reached, met=max(ratios) <= MAX_CPU_RATIO)


if __name__ == "__main__":
    main()
