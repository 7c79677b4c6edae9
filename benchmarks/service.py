"""Does image generation slow down a web service on the same event loop?

    python -m benchmarks.service                            500 concurrent generates during 200 requests per second
    python -m benchmarks.service --jobs 20 --repeat 1 --seconds 1 --latency fixed:1   the short form

A FastAPI service on uvicorn and uvloop answers 200 requests of its own per second, first alone and then while 500
tasks on the same loop wait in `engine.generate`. This process sends the requests at fixed times, whether or not
answers arrive. Service and simulator have processes of their own. Loop lag is how late a sleep of 10 ms ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from benchmarks.report import report_goal
from krea_batch.benchmark.measurements import percentile
from tests.processes import SimulatorProcess

REQUESTS_PER_S = 200
MAX_GROWTH_MS = 20.0
LAG_TICK_S = 0.01
SUBMIT_RATE = "100/s"


class ServiceTimes(NamedTuple):
    """Latencies of the service's own requests, and lag of its event loop, in milliseconds."""

    p50_ms: float
    p99_ms: float
    lag_ms: float


def serve(out: str, gateway: str) -> None:
    """Run the service, which prints its address."""
    import socket

    import uvicorn
    from fastapi import FastAPI

    from krea_batch import Engine, Job
    from krea_batch.engine.event_loop import tune_gc

    tune_gc()
    engine = Engine(out, gateway=gateway, api_key="benchmark", rate=SUBMIT_RATE)
    lags_s: list[float] = []

    async def tick() -> None:
        while True:
            started_s = time.monotonic()
            await asyncio.sleep(LAG_TICK_S)
            lags_s.append(time.monotonic() - started_s - LAG_TICK_S)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        lag_task = asyncio.create_task(tick())
        async with engine:
            yield
        lag_task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/own")
    async def own() -> dict[str, str]:
        return {"said": "hello"}

    @app.post("/images/{count}")
    async def images(count: int) -> int:
        outcomes = await asyncio.gather(*(engine.generate(Job(prompt=f"image {n}")) for n in range(count)))
        return sum(outcome.succeeded for outcome in outcomes)

    @app.get("/lag")
    async def lag() -> float:
        worst = percentile(sorted(lags_s), 99) if lags_s else 0.0
        lags_s.clear()
        return worst

    server_socket = socket.create_server(("127.0.0.1", 0))
    print(json.dumps(f"http://127.0.0.1:{server_socket.getsockname()[1]}"), flush=True)
    config = uvicorn.Config(app, loop="uvloop", log_level="warning")
    uvicorn.Server(config).run(sockets=[server_socket])


@contextmanager
def service(gateway: str) -> Iterator[str]:
    """Run the service in a process of its own, and give its address."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "benchmarks.service", "--serve", out, "--gateway", gateway]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait()


async def load(web: aiohttp.ClientSession, stop: asyncio.Event) -> list[float]:
    """Return the latencies in seconds of requests at fixed times, each from the time it was due."""
    latencies_s: list[float] = []
    pending: set[asyncio.Task[None]] = set()

    async def request(due_s: float) -> None:
        async with web.get("/own") as answer:
            assert answer.status == 200
            await answer.read()
        latencies_s.append(time.monotonic() - due_s)

    due_s = time.monotonic()
    while not stop.is_set():
        due_s += 1 / REQUESTS_PER_S
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        task = asyncio.create_task(request(max(due_s, time.monotonic() - LAG_TICK_S)))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    return latencies_s


async def measure_during(web: aiohttp.ClientSession, work: Any) -> ServiceTimes:
    """Measure the service's requests while something else runs."""
    done = asyncio.Event()
    async with web.get("/lag"):
        pass
    loading = asyncio.create_task(load(web, done))
    await work
    done.set()
    latencies_s = sorted(await loading)
    async with web.get("/lag") as answer:
        lag_s = float(await answer.text())
    return ServiceTimes(1000 * percentile(latencies_s, 50), 1000 * percentile(latencies_s, 99), 1000 * lag_s)


async def measure_both(url: str, jobs: int, seconds: float) -> tuple[ServiceTimes, ServiceTimes]:
    """Measure the service alone, then during the generates."""

    async def generate() -> None:
        async with web.post(f"/images/{jobs}", timeout=aiohttp.ClientTimeout(total=600)) as response:
            assert int(await response.text()) == jobs

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as web:
        await measure_during(web, asyncio.sleep(1.0))  # connections, caches
        alone = await measure_during(web, asyncio.sleep(seconds))
        return alone, await measure_during(web, generate())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--latency", default="uniform:4,12")
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--gateway", default="")
    options = parser.parse_args()
    if options.serve:
        serve(str(options.serve), options.gateway)
        return
    import uvloop

    runs = []
    for _ in range(options.repeat):
        simulated = SimulatorProcess("--latency", options.latency, "--image-bytes", "20000")
        try:
            with service(simulated.gateway_url) as url:
                runs.append(uvloop.run(measure_both(url, options.jobs, options.seconds)))
        finally:
            simulated.close()
    print("| the service's own requests | p50 | p99 | loop lag, p99 |")
    print("|---|---|---|---|")
    baseline, concurrent = (
        ServiceTimes(*map(statistics.median, zip(*group, strict=True))) for group in zip(*runs, strict=True)
    )
    for name, result in (("alone", baseline), (f"during {options.jobs} concurrent generates", concurrent)):
        print(f"| {name} | {result.p50_ms:.1f} ms | {result.p99_ms:.1f} ms | {result.lag_ms:.1f} ms |", flush=True)
    grown_ms = statistics.median(second.p99_ms - first.p99_ms for first, second in runs)
    goal = f"grows by ≤ {MAX_GROWTH_MS:.0f} ms"
    report_goal(
        f"p99 of a service during {options.jobs} generates",
        goal,
        f"{grown_ms:+.1f} ms",
        met=grown_ms <= MAX_GROWTH_MS,
    )


if __name__ == "__main__":
    main()
