"""Does a web service notice that its loop makes pictures, too?

    python -m benchmarks.service                            500 concurrent generates beside 200 requests a second
    python -m benchmarks.service --jobs 20 --repeat 1 --seconds 2   the short form

A FastAPI service on uvicorn and uvloop answers requests of its own, 200 a second, first alone and then while 500
tasks of the same loop wait in `engine.generate`. The requests come from this process at fixed instants, whether
answers come or not; the simulator has a process of its own: three on the cores of one machine. Loop lag is how much
later than asked a sleep of 10 ms ends.
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

from benchmarks.report import tell_goal
from tests.processes import Simulated

PER_S = 200
MOST_MS = 20.0
TICK_S = 0.01
RATE = "100/s"


class Measured(NamedTuple):
    """Milliseconds: latencies of the service's own requests, and lag of its loop."""

    p50_ms: float
    p99_ms: float
    lag_ms: float


def serve(out: str, gateway: str) -> None:
    """The service; tells its address on standard output."""
    import socket

    import uvicorn
    from fastapi import FastAPI

    from krea_batch import Engine, Job
    from krea_batch.engine.event_loop import spare_the_collector

    spare_the_collector()
    engine = Engine(out, gateway=gateway, api_key="benchmark", rate=RATE)
    lags_s: list[float] = []

    async def tick() -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(TICK_S)
            lags_s.append(time.monotonic() - began_s - TICK_S)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        ticking = asyncio.create_task(tick())
        async with engine:
            yield
        ticking.cancel()

    app = FastAPI(lifespan=life)

    @app.get("/own")
    async def own() -> dict[str, str]:
        return {"said": "hello"}

    @app.post("/pictures/{count}")
    async def pictures(count: int) -> int:
        outcomes = await asyncio.gather(*(engine.generate(Job(prompt=f"picture {n}")) for n in range(count)))
        return sum(outcome.succeeded for outcome in outcomes)

    @app.get("/lag")
    async def lag() -> float:
        worst = percentile(lags_s, 0.99)
        lags_s.clear()
        return worst

    listening = socket.create_server(("127.0.0.1", 0))
    print(json.dumps(f"http://127.0.0.1:{listening.getsockname()[1]}"), flush=True)
    config = uvicorn.Config(app, loop="uvloop", log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def service(gateway: str) -> Iterator[str]:
    """The service in a process of its own. Gives its address."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "benchmarks.service", "--serve", out, "--gateway", gateway]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def load(web: aiohttp.ClientSession, until: asyncio.Event) -> list[float]:
    """Latencies, in seconds, of requests at fixed instants, from when each was due."""
    latencies_s: list[float] = []
    asking: set[asyncio.Task[None]] = set()

    async def ask(due_s: float) -> None:
        async with web.get("/own") as answer:
            assert answer.status == 200
            await answer.read()
        latencies_s.append(time.monotonic() - due_s)

    due_s = time.monotonic()
    while not until.is_set():
        due_s += 1 / PER_S
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        task = asyncio.create_task(ask(max(due_s, time.monotonic() - TICK_S)))
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.gather(*asking)
    return latencies_s


async def measured_while(web: aiohttp.ClientSession, work: Any) -> Measured:
    """What requests meet while something else goes on."""
    done = asyncio.Event()
    async with web.get("/lag"):
        pass
    loading = asyncio.create_task(load(web, done))
    await work
    done.set()
    latencies_s = await loading
    async with web.get("/lag") as answer:
        lag_s = float(await answer.text())
    return Measured(1000 * percentile(latencies_s, 0.5), 1000 * percentile(latencies_s, 0.99), 1000 * lag_s)


async def both(url: str, jobs: int, seconds: float) -> tuple[Measured, Measured]:
    """Alone, and beside the pictures."""

    async def make() -> None:
        async with web.post(f"/pictures/{jobs}", timeout=aiohttp.ClientTimeout(total=600)) as answer:
            assert int(await answer.text()) == jobs

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as web:
        await measured_while(web, asyncio.sleep(1.0))  # connections, caches
        alone = await measured_while(web, asyncio.sleep(seconds))
        return alone, await measured_while(web, make())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--gateway", default="")
    options = parser.parse_args()
    if options.serve:
        serve(str(options.serve), options.gateway)
        return
    import uvloop

    runs = []
    for _ in range(options.repeat):
        simulated = Simulated("--latency", "uniform:4,12", "--image-bytes", "20000")
        try:
            with service(simulated.gateway) as url:
                runs.append(uvloop.run(both(url, options.jobs, options.seconds)))
        finally:
            simulated.close()
    print("| the service's own requests | p50 | p99 | loop lag, p99 |")
    print("|---|---|---|---|")
    alone, beside = (Measured(*map(statistics.median, zip(*some, strict=True))) for some in zip(*runs, strict=True))
    for name, one in (("alone", alone), (f"beside {options.jobs} concurrent generates", beside)):
        print(f"| {name} | {one.p50_ms:.1f} ms | {one.p99_ms:.1f} ms | {one.lag_ms:.1f} ms |", flush=True)
    grown_ms = statistics.median(second.p99_ms - first.p99_ms for first, second in runs)
    goal = f"grows by ≤ {MOST_MS:.0f} ms"
    tell_goal(
        f"p99 of a service beside {options.jobs} generates", goal, f"{grown_ms:+.1f} ms", met=grown_ms <= MOST_MS
    )


if __name__ == "__main__":
    main()
