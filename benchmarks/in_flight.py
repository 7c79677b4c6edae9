"""What do 30,000 jobs cost that are in flight at the same time on one event loop?

    python -m benchmarks.in_flight                 30,000 jobs at 1000/s, 45 s each: 75 seconds at best
    python -m benchmarks.in_flight --jobs 300 --latency 1   the short form

The real engine, with its ledger and real files, runs in real time against a gateway in the same process. That gateway
keeps no job in memory: its request_ids say when they are finished. Memory per job is the growth of the process from
before the first submit until all jobs wait, divided by their number. Loop lag is how late a sleep of 10 ms ends.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.report import report_goal
from krea_batch import Engine, Job
from krea_batch.benchmark.measurements import percentile
from krea_batch.benchmark.recorder import measure_loop_lag
from krea_batch.engine.event_loop import run_event_loop
from krea_batch.rules.verdicts import Accepted, Finished, PollVerdict, PostVerdict, Waiting
from krea_batch.testing import ScriptedDownload, make_png

RATE_LIMIT_PER_S = 1000
RESPONSE_LATENCY_S = 0.02
CHECK_INTERVAL_S = 0.01
IMAGE = make_png(64, 64)


class InFlightCost(NamedTuple):
    """What the jobs cost: memory in KiB per job, lag in ms."""

    in_flight: int
    kib: float
    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    wall: float  # over the ideal
    polls: float  # per job
    cpu_ms: float  # per job


class StatelessGateway:
    """A gateway without state: a request_id is `<number>_<time at which the job is finished>`."""

    def __init__(self) -> None:
        self.latency_s: Callable[[], float] = lambda: 0.0
        self._accepted = -1  # without the job that only stores the first image
        self.ideal_s = 0.0  # until the last one is finished, where each is submitted as soon as the rate lets it

    async def submit(
        self, _: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        if on_sending:
            await on_sending()
        await asyncio.sleep(RESPONSE_LATENCY_S)
        latency_s = self.latency_s()
        self.ideal_s = max(self.ideal_s, self._accepted / RATE_LIMIT_PER_S + latency_s)
        self._accepted += 1
        return Accepted(f"{self._accepted}_{time.monotonic() + latency_s:.3f}", Waiting("QUEUED"))

    async def poll(self, request_id: str) -> PollVerdict:
        await asyncio.sleep(RESPONSE_LATENCY_S)
        if time.monotonic() < float(request_id.partition("_")[2]):
            return Waiting("PROCESSING")
        return Finished((f"https://cdn.example/{request_id}.png",), "image/png")

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedDownload:
        await asyncio.sleep(RESPONSE_LATENCY_S)
        return ScriptedDownload([IMAGE])


def resident_kib() -> float:
    """Return the resident memory of the process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


async def _measure(jobs: int, latency_s: float, sigma: float, out: str) -> InFlightCost:
    random, loop = Random(1), asyncio.get_running_loop()
    gateway = StatelessGateway()
    async with Engine(out, gateway_client=gateway, rate=f"{RATE_LIMIT_PER_S}/s", max_in_flight=jobs) as engine:
        await engine.generate(Job(prompt="the first image"))  # Until it is stored, few jobs may be in flight.
        gateway.latency_s = lambda: latency_s * random.lognormvariate(0, sigma)
        before_kib, lags_ms, cpu_s, started_s = resident_kib(), list[float](), time.process_time(), loop.time()
        lag_task = asyncio.create_task(measure_loop_lag(lags_ms))
        running = asyncio.create_task(engine.run(Job(prompt=f"image {n}", id=f"{n:06}") for n in range(jobs)))
        while engine.stats().accepted <= jobs and not running.done():
            await asyncio.sleep(CHECK_INTERVAL_S)
        memory_check_s = loop.time()
        in_flight = engine.stats().in_flight
        grown_kib = resident_kib() - before_kib
        memory_check_s = loop.time() - memory_check_s  # a look at the memory is ours, and holds the loop
        await running
        wall_s = loop.time() - started_s - memory_check_s
        lag_task.cancel()
        stats = engine.stats()
    assert stats.succeeded == jobs + 1, stats
    lags_ms = sorted(lags_ms)[:-1] or [0.0]  # the last is that look
    p50, p99, maximum = (percentile(lags_ms, percent) for percent in (50, 99, 100))
    cpu_ms = 1000 * (time.process_time() - cpu_s) / jobs
    wall = wall_s / gateway.ideal_s
    return InFlightCost(in_flight, grown_kib / in_flight, p50, p99, maximum, wall, stats.polls / jobs, cpu_ms)


def measure(jobs: int, latency_s: float, sigma: float) -> InFlightCost:
    """Measure in a process of its own, so that memory is that of one case."""
    with tempfile.TemporaryDirectory() as out:
        return run_event_loop(_measure, jobs, latency_s, sigma, out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--latency", type=float, default=45.0)
    options = parser.parse_args()
    print(
        "| latency | in flight | KiB per job | loop lag p50, p99, max ms "
        "| wall ÷ ideal | polls per job | CPU ms per job |"
    )
    print("|---|---|---|---|---|---|---|")
    results = []
    for name, sigma in (("constant", 0.0), ("lognormal, sigma 0.3", 0.3)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            result = executor.submit(measure, options.jobs, options.latency, sigma).result()
        results.append(result)
        print(
            f"| {options.latency:g} s, {name} | {result.in_flight:,} | {result.kib:.2f} "
            f"| {result.lag_p50_ms:.1f}, {result.lag_p99_ms:.1f}, {result.lag_max_ms:.0f} | {result.wall:.3f} "
            f"| {result.polls:.2f} | {result.cpu_ms:.2f} |",
            flush=True,
        )
    kib, lag_ms, wall = (max(getattr(result, name) for result in results) for name in ("kib", "lag_p99_ms", "wall"))
    label = f"{options.jobs:,} jobs in flight"
    report_goal(f"{label}: memory per job", "≤ 3 KiB", f"{kib:.2f} KiB", met=kib <= 3)
    report_goal(f"{label}: loop lag, p99", "≤ 50 ms", f"{lag_ms:.1f} ms", met=lag_ms <= 50)
    report_goal(f"{label}: wall ÷ ideal", "≤ 1.15", f"{wall:.3f}", met=wall <= 1.15)


if __name__ == "__main__":
    main()
