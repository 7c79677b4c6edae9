"""How much processor time does a job cost, compared with a bare loop that makes the same requests?

    python -m benchmarks.overhead                       5,000 jobs, five times each, in turn
    python -m benchmarks.overhead --jobs 100 --repeat 1     the short form

Latency 0, 64 jobs in flight, uvloop. The engine does everything that the library does: ledger, PNG check, fsync. The
bare loop is aiohttp alone: a POST, a GET of the status, a GET of the image. Each runs in a process of its own,
against a simulator in another, and measures its processor time from before the first request until after the last.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson

from benchmarks.report import report_goal
from benchmarks.throughput import LimitCase, run_simulator
from krea_batch import Engine, Job
from krea_batch.engine.event_loop import run_event_loop
from krea_batch.gateway import wire

MAX_IN_FLIGHT = 64
OVERHEAD_CASE = LimitCase("overhead", "none", 0, "100000/s", 5000, latency="fixed:0")
MAX_CPU_RATIO = 1.5


class Cost(NamedTuple):
    """Milliseconds of processor time per job: of all threads, and of the event loop's thread."""

    all_ms: float
    loop_ms: float


def _cost(jobs: int, work: Callable[[], None]) -> Cost:
    started_s, loop_started_s = time.process_time(), time.thread_time()
    work()
    all_s, loop_s = time.process_time() - started_s, time.thread_time() - loop_started_s
    return Cost(1000 * all_s / jobs, 1000 * loop_s / jobs)


def bare_loop(gateway: str, jobs: int) -> Cost:
    """Make the requests, and nothing else."""

    async def run_job(session: aiohttp.ClientSession, semaphore: asyncio.Semaphore, index: int) -> None:
        body = orjson.dumps({"prompt": f"image {index}"})
        async with semaphore:
            async with session.post(gateway + wire.SUBMIT_PATH, data=body, headers=wire.SUBMIT_HEADERS) as response:
                request_id = (await response.json())["request_id"]
            async with session.get(gateway + wire.STATUS_PATH + request_id) as response:
                output: Any = (await response.json())["output"]["media_url"]
            async with session.get(output if isinstance(output, str) else output[0]) as response:
                await response.read()

    async def main() -> None:
        semaphore = asyncio.Semaphore(MAX_IN_FLIGHT)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers={wire.KEY_HEADER: "benchmark"}) as session:
            await asyncio.gather(*(run_job(session, semaphore, n) for n in range(jobs)))

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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print("| images | bare, ms per job | engine, ms per job | of which event loop | engine ÷ bare |")
    print("|---|---|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for name, size in (("of 1 KB", "0"), ("of 20 KB", "20000")):
            with run_simulator(OVERHEAD_CASE, "--image-bytes", size) as urls:
                work = (urls["gateway_url"], options.jobs)
                pairs = [
                    (in_fresh_process(bare_loop, *work), in_fresh_process(engine_run, *work, folder))
                    for _ in range(options.repeat)
                ]
            bare_ms = statistics.median(without_ledger.all_ms for without_ledger, _ in pairs)
            engine_ms = statistics.median(with_ledger.all_ms for _, with_ledger in pairs)
            loop_ms = statistics.median(with_ledger.loop_ms for _, with_ledger in pairs)
            ratios.append(statistics.median(with_ledger.all_ms / bare.all_ms for bare, with_ledger in pairs))
            print(f"| {name} | {bare_ms:.2f} | {engine_ms:.2f} | {loop_ms:.2f} | {ratios[-1]:.2f} |", flush=True)
    reached = " and ".join(f"{ratio:.1f}" for ratio in ratios)
    report_goal("processor time per job ÷ bare loop", f"≤ {MAX_CPU_RATIO}", reached, met=max(ratios) <= MAX_CPU_RATIO)


if __name__ == "__main__":
    main()
