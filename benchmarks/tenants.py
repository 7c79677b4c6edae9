"""How long does who brings ten jobs wait beside who brings ten thousand?

    python -m benchmarks.tenants                   one tenant with 10,000 jobs, nine with ten each, in virtual time
    python -m benchmarks.tenants --jobs 300        the short form

The real engine against a scripted gateway whose jobs take 6 to 15 s, where the rate is what bounds it, and where the
jobs in flight are. The nine come when the ten thousand wait already. `alone` is how long the nine take by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from random import Random
from typing import Any

from benchmarks.report import report_goal
from krea_batch import Engine, Job
from tests.callback_gateway import CallbackGateway
from tests.virtual_time_runs import run_virtual

SMALL_TENANTS, JOBS_EACH = "bcdefghij", 10
MAX_SLOWDOWN = 2.0
BOUNDS: dict[str, dict[str, Any]] = {
    "the rate, 10/s": {"rate": "10/s", "max_in_flight": 500},
    "the rate, 200/s": {"rate": "200/s", "max_in_flight": 5000},
    "50 jobs in flight": {"rate": "1000/s", "max_in_flight": 50},
}


async def run_small_tenants(engine: Engine) -> float:
    """Seconds until each of the nine has its ten images."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    jobs = [(tenant, Job(prompt=f"{tenant} {n}")) for tenant in SMALL_TENANTS for n in range(JOBS_EACH)]
    await asyncio.gather(*(engine.generate(job, tenant=tenant) for tenant, job in jobs))
    return loop.time() - started_s


async def run_beside_large_tenant(large_jobs: int, bound: dict[str, Any]) -> float:
    """The same, beside a tenant with so many jobs."""
    with tempfile.TemporaryDirectory() as out:
        engine = Engine(out, gateway_client=CallbackGateway(), random=Random(1), **bound)
        await engine.start()
        for n in range(large_jobs):
            await engine.enqueue(Job(prompt=f"a {n}"), tenant="a")
        took_s = await run_small_tenants(engine)
        await engine.aclose(detach=True)
        return took_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10_000)
    large_jobs = parser.parse_args().jobs
    print("| what bounds the engine | the nine alone | beside one with " + f"{large_jobs:,} | |")
    print("|---|---|---|---|")
    worst = 0.0
    for name, bound in BOUNDS.items():
        alone_s, beside_s = (
            run_virtual(run_beside_large_tenant(0, bound)),
            run_virtual(run_beside_large_tenant(large_jobs, bound)),
        )
        worst = max(worst, beside_s / alone_s)
        print(f"| {name} | {alone_s:.1f} s | {beside_s:.1f} s | {beside_s / alone_s:.2f} times |", flush=True)
    goal = f"≤ {MAX_SLOWDOWN} times as long as alone"
    report_goal(
        f"nine tenants beside one with {large_jobs:,} jobs", goal, f"{worst:.2f} times", met=worst <= MAX_SLOWDOWN
    )


if __name__ == "__main__":
    main()
