"""Does a job cost more in a longer run?

    python -m benchmarks.scale                     1,000 to 100,000 jobs at 20 s latency, in simulated time
    python -m benchmarks.scale --max-jobs 300      the short form

The real engine and its ledger run in virtual time against a scripted gateway. The benchmark fails unless each job is
charged, downloaded and stored once. Images go to a file system in memory if there is one. From 2,000 jobs on, the
number of jobs in flight is the same in all runs, because benchmarks.in_flight measures its cost separately. Each size
runs several times and the minimum counts, because other load can only add time. The plot, benchmarks/scale.svg, shows
the processor time per job over the number of jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.report import report_goal
from krea_batch import Engine, Job
from krea_batch.engine.event_loop import tune_gc
from krea_batch.rules.verdicts import Accepted, Finished, PollVerdict, PostVerdict, Waiting
from krea_batch.testing import ScriptedDownload, ScriptedGateway, make_png, run_virtual

LATENCY_S = 20.0
SCALE_RATE_PER_S = 100
JOB_COUNTS = (1_000, 3_000, 10_000, 30_000, 100_000)
SCALE_IMAGE = make_png()
PLOT = Path(__file__).with_name("scale.svg")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its fsync costs nothing; it is not the disk that is measured
MAX_GROWTH = 1.15  # chosen: what noise may look like


class ScaleCost(NamedTuple):
    """What one job costs in a run of so many."""

    jobs: int
    cpu_ms: float
    polls: float
    peak_mib: float


class FixedLatencyGateway(ScriptedGateway):
    """Each job takes `LATENCY_S`; polls are not recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.ends_s: dict[str, float] = {}
        self.polls_made: Counter[str] = Counter()

    async def submit(
        self, body: bytes, *, callback: str = "", on_sending: Callable[[], Awaitable[str | None]] | None = None
    ) -> PostVerdict:
        self.submitted_bodies.clear()
        self.submit_times_s.clear()
        accepted = await super().submit(body, callback=callback, on_sending=on_sending)
        assert isinstance(accepted, Accepted)
        self.ends_s[accepted.request_id] = loop_time_s() + LATENCY_S
        return accepted

    async def poll(self, request_id: str) -> PollVerdict:
        self.polls_made[request_id] += 1
        if loop_time_s() < self.ends_s[request_id]:
            return Waiting("PROCESSING")
        return Finished((f"https://cdn.example/{request_id}/1.png",), "image/png", LATENCY_S)

    async def download(self, url: str, *, offset: int = 0, etag: str | None = None) -> ScriptedDownload:
        self.downloads.append((url, offset))
        return ScriptedDownload([SCALE_IMAGE])


def loop_time_s() -> float:
    return asyncio.get_running_loop().time()


def measure_in_fresh_process(jobs: int) -> ScaleCost:
    """Measure in a process of its own, so that memory is that of one case."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(measure, jobs).result()


def measure(jobs: int) -> ScaleCost:
    gateway = FixedLatencyGateway()

    async def main(out: str) -> None:
        rate = f"{SCALE_RATE_PER_S}/s"
        async with Engine(out, gateway_client=gateway, rate=rate, max_in_flight=100_000, random=Random(1)) as engine:
            await engine.run(Job(prompt=f"image {n}", id=f"{n:06}") for n in range(jobs))

    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as out:
        tune_gc()  # as the command does
        started_s = time.process_time()
        run_virtual(main(out))
        cpu_ms = 1000 * (time.process_time() - started_s) / jobs
        _check(Path(out), gateway, jobs)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return ScaleCost(jobs, cpu_ms, gateway.polls_made.total() / jobs, peak_mib)


def _check(out: Path, gateway: FixedLatencyGateway, jobs: int) -> None:
    """Check that each job was charged, downloaded and stored once."""
    assert len(gateway.charged) == jobs
    assert len(set(gateway.charged.values())) == jobs, "a job was paid for twice"
    assert len(gateway.downloads) == len(set(gateway.downloads)) == jobs
    ledger = sqlite3.connect(out / "ledger.db")
    assert ledger.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall() == [("succeeded", jobs)]
    assert ledger.execute("SELECT count(DISTINCT request_id) FROM jobs").fetchone() == (jobs,)
    ledger.close()
    assert sum(entry.name.endswith(".png") for entry in os.scandir(out / "images")) == jobs


def draw_plot(results: list[ScaleCost], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "krea-batch"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot([one.jobs for one in results], [one.cpu_ms for one in results], marker="o")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.5 * max(one.cpu_ms for one in results))
    axes.set_xlabel("jobs in one run")
    axes.set_ylabel("processor time per job, ms")
    axes.set_title("What a job costs in runs of 1,000 to 100,000")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-jobs", type=int, default=JOB_COUNTS[-1])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    print("| jobs | processor time per job | polls per job | peak memory |")
    print("|---|---|---|---|")
    results = []
    for jobs in sorted({min(size, options.max_jobs) for size in JOB_COUNTS}):
        result = min((measure_in_fresh_process(jobs) for _ in range(options.repeat)), key=lambda run: run.cpu_ms)
        results.append(result)
        print(
            f"| {result.jobs:,} | {result.cpu_ms:.2f} ms | {result.polls:.2f} | {result.peak_mib:.0f} MiB |",
            flush=True,
        )
    draw_plot(results, options.plot)
    growth = results[-1].cpu_ms / results[min(1, len(results) - 1)].cpu_ms
    reached = f"{growth:.2f} times one of {results[min(1, len(results) - 1)].jobs:,}"
    report_goal(f"a job of {results[-1].jobs:,}", "costs no more", reached, met=growth <= MAX_GROWTH)


if __name__ == "__main__":
    main()
