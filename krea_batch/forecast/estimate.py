"""How many jobs, how fast, and how long each takes comes in; a forecast of the run goes out.

Newcomers: the engine that runs here is the real one, with a ledger of its own in a temporary folder. The first jobs
fill the pipeline, the last ones empty it, and what lies between goes on at one rate; so a run of some thousand jobs
tells of a million.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from krea_batch.engine.engine import Engine
from krea_batch.forecast.latency_model import Latencies
from krea_batch.forecast.model_gateway import World
from krea_batch.jobs import Job
from krea_batch.settings import Settings
from krea_batch.testing.virtual_time import run_virtual

MOST_JOBS = 2000  # chosen: some two seconds of real time, and four times the usual cap on jobs in flight
FEW_JOBS = 400  # chosen: less than one
SAMPLE_EVERY_S = 1.0
FULL = 0.9  # chosen: from this share of its cap on, "in flight" counts as full
TAIL = 0.5  # chosen: a run that waits for its last jobs for this share of its time is bound by their latency
_SHM = Path("/dev/shm")  # noqa: S108 - a ledger that is thrown away need not wait for a disk
MEMORY = _SHM if _SHM.is_dir() else None
PICTURE_BYTES = 1_500_000  # measured: the mean of what the simulator draws at 1:1; --latency-from learns the real one


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run. `settings` are those of `Settings` that say how fast; `limit_per_s` is the gateway's."""

    jobs: int
    latencies: Latencies
    settings: dict[str, Any]
    limit_per_s: float | None = None
    image_bytes: float = PICTURE_BYTES
    most_jobs: int = MOST_JOBS

    @property
    def cap(self) -> int:
        """Most jobs in flight."""
        return Settings.from_options(Path(), **self.settings).max_in_flight


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be expected. `binds` says what the time is due to; `simulated_jobs` how many were really run."""

    jobs: int
    seconds: float
    polls: int
    refused_429: int
    bytes: int
    in_flight: int
    per_s: float
    submits_per_s: float  # accepted ones, once the pipeline is full
    tail_s: float  # from the last submit to the end
    binds: str
    simulated_jobs: int


class _Seen(msgspec.Struct):
    """What a simulated run came to."""

    seconds: float = 0.0
    polls: int = 0
    refused_429: int = 0
    most_in_flight: int = 0
    in_flight_s: float = 0.0  # all jobs together
    full_s: float = 0.0
    accepted_s: list[float] = []


def forecast(question: Question) -> Forecast:
    """Run the question's jobs in virtual time. Call it from where no event loop is running. Raises SettingsError."""
    jobs = question.jobs
    if not jobs:
        return Forecast(
            jobs=0,
            seconds=0.0,
            polls=0,
            refused_429=0,
            bytes=0,
            in_flight=0,
            per_s=0.0,
            submits_per_s=0.0,
            tail_s=0.0,
            binds="there is nothing to do",
            simulated_jobs=0,
        )
    run = min(jobs, question.most_jobs)
    seen = run_virtual(_run(question, run))
    per_s, in_flight = _steady(seen, question, run)
    seconds = seen.seconds + (jobs - run) / per_s
    share = jobs / run
    return Forecast(
        jobs=jobs,
        seconds=seconds,
        polls=round(seen.polls * share),
        refused_429=round(seen.refused_429 * share),
        bytes=round(jobs * question.image_bytes),
        in_flight=in_flight,
        per_s=jobs / seconds,
        submits_per_s=per_s,
        tail_s=seen.seconds - seen.accepted_s[-1],
        binds=_binds(seen, question, (jobs - run) / per_s, in_flight),
        simulated_jobs=run,
    )


async def _run(question: Question, jobs: int) -> _Seen:
    loop = asyncio.get_running_loop()
    world = World(question.latencies, question.limit_per_s)
    seen = _Seen(accepted_s=world.accepted_s)
    with tempfile.TemporaryDirectory(prefix="krea-batch-", dir=MEMORY) as folder:
        engine = Engine(
            Path(folder) / "out", gateway_client=world, clock=loop.time, random=Random(0), **question.settings
        )
        async with engine:
            watching = asyncio.create_task(_watch(engine, seen))
            began_s = loop.time()
            await engine.run(_jobs(jobs))
            seen.seconds = loop.time() - began_s
            watching.cancel()
            stats = engine.stats()
            seen.polls, seen.refused_429 = stats.polls, stats.rate_limited
    seen.accepted_s = [at_s - began_s for at_s in world.accepted_s]
    return seen


async def _watch(engine: Engine, seen: _Seen) -> None:
    """Look at how many jobs are in flight, now and then."""
    cap = engine.settings.max_in_flight
    while True:
        await asyncio.sleep(SAMPLE_EVERY_S)
        in_flight = engine.stats().in_flight
        seen.most_in_flight = max(seen.most_in_flight, in_flight)
        seen.in_flight_s += in_flight * SAMPLE_EVERY_S
        if in_flight >= FULL * cap:
            seen.full_s += SAMPLE_EVERY_S


def _jobs(count: int) -> Iterator[Job]:
    for n in range(count):
        yield Job(prompt="a forecast", id=f"{n:07d}")


def _steady(seen: _Seen, question: Question, run: int) -> tuple[float, int]:
    """How many jobs are accepted a second once the pipeline is full, and how many are then in flight.

    The later half of those that were run tells. Where there are more jobs, and the cap on jobs in flight was not
    met yet, Little's law (in flight = rate x stay) tells whether it will be.
    """
    accepted_s = seen.accepted_s
    half = len(accepted_s) // 2
    span_s = accepted_s[-1] - accepted_s[half]
    per_s = (len(accepted_s) - 1 - half) / span_s if span_s > 0 else float(len(accepted_s))
    if run == question.jobs or _is_full(seen, question):
        return per_s, seen.most_in_flight
    stay_s = seen.in_flight_s / run
    per_s = min(per_s, question.cap / max(stay_s, SAMPLE_EVERY_S))
    return per_s, max(seen.most_in_flight, round(per_s * stay_s))


def _is_full(seen: _Seen, question: Question) -> bool:
    return seen.most_in_flight >= FULL * question.cap


def _binds(seen: _Seen, question: Question, more_s: float, in_flight: int) -> str:
    """What the time is due to, in words. The jobs that were not run take `more_s`."""
    seconds, accepting_s = seen.seconds + more_s, seen.accepted_s[-1] + more_s
    if seen.refused_429:
        return "the gateway's limit: it refuses what comes faster (429)"
    if seconds - accepting_s > TAIL * seconds:
        return "the latency of the jobs: most of the time passes after the last submit"
    if seen.full_s > (1 - FULL) * seen.seconds or (more_s and in_flight >= FULL * question.cap):
        return "the cap on jobs in flight: --max-in-flight"
    return "the rate: --rate"
