"""How much processor time does a job cost, against a bare loop that makes the same requests and keeps no books?

    python -m benchmarks.overhead                       5,000 jobs, five times each, in turn
    python -m benchmarks.overhead --jobs 100 --repeat 1     the short form

Latency 0, 64 jobs in flight, uvloop. The engine is the library with all it does: ledger, PNG check, fsync. The bare
loop is aiohttp alone: a POST, a GET of the status, a GET of the picture. Each runs in a process of its own against a
simulator in another, and counts its own processor time, from before its first request to after its last.
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

from benchmarks.report import tell_goal
from benchmarks.throughput import Case, simulator
from krea_batch import Engine, Job
from krea_batch.engine.event_loop import run_loop
from krea_batch.gateway import wire

IN_FLIGHT = 64
CASE = Case("overhead", "none", 0, "100000/s", 5000, latency="fixed:0")
MOST = 1.5


class Cost(NamedTuple):
    """Milliseconds of processor time a job: all, and the loop's thread alone."""

    all_ms: float
    loop_ms: float


def _cost(jobs: int, work: Callable[[], None]) -> Cost:
    began, loop_began = time.process_time(), time.thread_time()
    work()
    all_s, loop_s = time.process_time() - began, time.thread_time() - loop_began
    return Cost(1000 * all_s / jobs, 1000 * loop_s / jobs)


def bare(gateway: str, jobs: int) -> Cost:
    """The requests and nothing else."""

    async def one(session: aiohttp.ClientSession, seats: asyncio.Semaphore, n: int) -> None:
        body = orjson.dumps({"prompt": f"picture {n}"})
        async with seats:
            async with session.post(gateway + wire.SUBMIT_PATH, data=body, headers=wire.SUBMIT_HEADERS) as answer:
                request_id = (await answer.json())["request_id"]
            async with session.get(gateway + wire.STATUS_PATH + request_id) as answer:
                output: Any = (await answer.json())["output"]["media_url"]
            async with session.get(output if isinstance(output, str) else output[0]) as answer:
                await answer.read()

    async def main() -> None:
        seats = asyncio.Semaphore(IN_FLIGHT)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers={wire.KEY_HEADER: "benchmark"}) as session:
            await asyncio.gather(*(one(session, seats, n) for n in range(jobs)))

    return _cost(jobs, lambda: run_loop(main))


def engine(gateway: str, jobs: int, folder: str) -> Cost:
    """The same by the engine, in a new folder: it is not deleted before all is measured.

    For minutes after files were deleted, ext4 makes new ones several times as slowly.
    """

    async def main(out: str) -> None:
        async with Engine(
            out,
            api_key="benchmark",
            gateway=gateway,
            rate=CASE.rate,
            max_in_flight=IN_FLIGHT,
            poll_interval_s=0.01,
        ) as running:
            await running.run(Job(prompt=f"picture {n}", id=f"{n:06}") for n in range(jobs))
        assert running.stats().succeeded == jobs

    return _cost(jobs, lambda: run_loop(main, tempfile.mkdtemp(dir=folder)))


def in_a_process(work: Callable[..., Cost], *args: Any) -> Cost:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(work, *args).result()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print("| pictures | bare, ms a job | engine, ms a job | of it the loop's thread | engine ÷ bare |")
    print("|---|---|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for name, size in (("of 1 KB", "0"), ("of 20 KB", "20000")):
            with simulator(CASE, "--image-bytes", size) as urls:
                work = (urls["gateway_url"], options.jobs)
                pairs = [
                    (in_a_process(bare, *work), in_a_process(engine, *work, folder)) for _ in range(options.repeat)
                ]
            bare_ms = statistics.median(without.all_ms for without, _ in pairs)
            engine_ms = statistics.median(books.all_ms for _, books in pairs)
            loop_ms = statistics.median(books.loop_ms for _, books in pairs)
            ratios.append(statistics.median(books.all_ms / without.all_ms for without, books in pairs))
            print(f"| {name} | {bare_ms:.2f} | {engine_ms:.2f} | {loop_ms:.2f} | {ratios[-1]:.2f} |", flush=True)
    reached = " and ".join(f"{ratio:.1f}" for ratio in ratios)
    tell_goal("processor time a job ÷ bare loop", f"≤ {MOST}", reached, met=max(ratios) <= MOST)


if __name__ == "__main__":
    main()
