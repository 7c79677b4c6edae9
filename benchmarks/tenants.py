"""Is scheduling fair between small and large tenants?

    python -m benchmarks.tenants                   one tenant with 10,000 jobs, nine with ten each, in virtual time
    python -m benchmarks.tenants --jobs 300        the short form

The real engine runs against a scripted gateway whose jobs take 6 to 15 s. It is limited by its rate in some rows and
by its jobs in flight in others. The nine tenants arrive when the ten thousand jobs are already queued. `the nine
alone` is the time they take without the large tenant.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from random import Random
from typing import Any

from benchmarks.report import report_goal
from krea_batch import Engine, Job
from krea_batch.testing import run_virtual
from tests.callback_gateway import CallbackGateway

SMALL_TENANTS, JOBS_EACH = "bcdefghij", 10
MAX_SLOWDOWN = 2.0
BOUNDS: dict[str, dict[str, Any]] = {
    "the rate, 10/s": {"rate": "10/s", "max_in_flight": 500},
    "the rate, 200/s": {"rate": "200/s", "max_in_flight": 5000},
    "50 jobs in flight": {"rate": "1000/s", "max_in_flight": 50},
}


async def run_small_tenants(engine: Engine) -> float:
    """Return the seconds until each of the nine has its ten images."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    jobs = [(tenant, Job(prompt=f"{tenant} {n}")) for tenant in SMALL_TENANTS for n in range(JOBS_EACH)]
    await asyncio.gather(*(engine.generate(job, tenant=tenant) for tenant, job in jobs))
    return loop.time() - started_s


async def run_next_to_large_tenant(large_jobs: int, bound: dict[str, Any]) -> float:
    """Return the seconds that the nine small tenants take next to one with so many jobs."""
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
    print("| limited by | the nine alone | next to one with " + f"{large_jobs:,} | |")
    print("|---|---|---|---|")
    worst = 0.0
    for name, bound in BOUNDS.items():
        alone_s, next_to_s = (
            run_virtual(run_next_to_large_tenant(0, bound)),
            run_virtual(run_next_to_large_tenant(large_jobs, bound)),
        )
        worst = max(worst, next_to_s / alone_s)
        print(f"| {name} | {alone_s:.1f} s | {next_to_s:.1f} s | {next_to_s / alone_s:.2f} times |", flush=True)
    goal = f"≤ {MAX_SLOWDOWN} times as long as alone"
    report_goal(
        f"nine tenants next to one with {large_jobs:,} jobs", goal, f"{worst:.2f} times", met=worst <= MAX_SLOWDOWN
    )


if __name__ == "__main__":
    main()
