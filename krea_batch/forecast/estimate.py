"""Forecasts a run from the number of jobs, the rate and the latency.

The real engine runs in virtual time, with a temporary ledger. The first jobs fill the pipeline, the last ones empty
it, and the rate in between is constant. So a simulation of a few thousand jobs can be extrapolated to a million.
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
from krea_batch.forecast.model_gateway import ModelGateway
from krea_batch.jobs import Job
from krea_batch.settings import Settings
from krea_batch.testing.virtual_time import run_virtual

MAX_SIMULATED_JOBS = 2000  # chosen: about two seconds of real time, and four times the default maximum in flight
MAX_SIMULATED_JOBS_QUICK = 400  # chosen: less than one second of real time
IN_FLIGHT_SAMPLE_INTERVAL_S = 1.0  # chosen: short compared with the latency of a job
AT_CAP_SHARE = 0.9  # chosen: with this share of the maximum in flight, a run counts as limited by it
# Chosen: a run that spends more than this share of its time after the last submit counts as limited by latency.
LATENCY_BOUND_SHARE = 0.5
_SHM = Path("/dev/shm")  # noqa: S108 - a temporary ledger need not be durable
LEDGER_DIR = _SHM if _SHM.is_dir() else None
# Measured: the mean size of the simulator's images at 1:1. With --latency-from, the sizes of that run are used.
SIMULATED_IMAGE_BYTES = 1_500_000


class ForecastRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to forecast.

    `settings` are the fields of `Settings` that affect speed. `limit_per_s` is the gateway's rate limit; None means
    that it has none.
    """

    jobs: int
    latencies: Latencies
    settings: dict[str, Any]
    limit_per_s: float | None = None
    image_bytes: float = SIMULATED_IMAGE_BYTES
    max_simulated_jobs: int = MAX_SIMULATED_JOBS

    @property
    def max_in_flight(self) -> int:
        """The maximum of jobs in flight."""
        return Settings.from_options(Path(), **self.settings).max_in_flight


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """A forecast. `bottleneck` describes what limits the speed; `simulated_jobs` of the jobs were simulated."""

    jobs: int
    seconds: float
    polls: int
    rate_limited: int
    bytes: int
    in_flight: int
    per_s: float
    submits_per_s: float  # accepted submits per second, once the pipeline is full
    tail_s: float  # from the last submit to the end
    bottleneck: str
    simulated_jobs: int


class _Measurements(msgspec.Struct):
    """The measurements of a simulated run."""

    seconds: float = 0.0
    polls: int = 0
    rate_limited: int = 0
    peak_in_flight: int = 0
    in_flight_s: float = 0.0  # sum over all jobs
    at_cap_s: float = 0.0
    accepted_s: list[float] = []


def forecast(request: ForecastRequest) -> Forecast:
    """Simulate the run in virtual time. It starts an event loop, so none may be running. Raises SettingsError."""
    jobs = request.jobs
    if not jobs:
        return Forecast(
            jobs=0,
            seconds=0.0,
            polls=0,
            rate_limited=0,
            bytes=0,
            in_flight=0,
            per_s=0.0,
            submits_per_s=0.0,
            tail_s=0.0,
            bottleneck="nothing: no jobs are left",
            simulated_jobs=0,
        )
    simulated_jobs = min(jobs, request.max_simulated_jobs)
    measured = run_virtual(_simulate(request, simulated_jobs))
    per_s, in_flight = _steady_state(measured, request, simulated_jobs)
    seconds = measured.seconds + (jobs - simulated_jobs) / per_s
    scale = jobs / simulated_jobs
    return Forecast(
        jobs=jobs,
        seconds=seconds,
        polls=round(measured.polls * scale),
        rate_limited=round(measured.rate_limited * scale),
        bytes=round(jobs * request.image_bytes),
        in_flight=in_flight,
        per_s=jobs / seconds,
        submits_per_s=per_s,
        tail_s=measured.seconds - measured.accepted_s[-1],
        bottleneck=_bottleneck(measured, request, (jobs - simulated_jobs) / per_s, in_flight),
        simulated_jobs=simulated_jobs,
    )


async def _simulate(request: ForecastRequest, jobs: int) -> _Measurements:
    loop = asyncio.get_running_loop()
    gateway = ModelGateway(request.latencies, request.limit_per_s)
    measured = _Measurements(accepted_s=gateway.accepted_s)
    with tempfile.TemporaryDirectory(prefix="krea-batch-", dir=LEDGER_DIR) as directory:
        engine = Engine(
            Path(directory) / "out", gateway_client=gateway, clock=loop.time, random=Random(0), **request.settings
        )
        async with engine:
            sampler = asyncio.create_task(_sample_in_flight(engine, measured))
            started_s = loop.time()
            await engine.run(_jobs(jobs))
            measured.seconds = loop.time() - started_s
            sampler.cancel()
            stats = engine.stats()
            measured.polls, measured.rate_limited = stats.polls, stats.rate_limited
    measured.accepted_s = [at_s - started_s for at_s in gateway.accepted_s]
    return measured


async def _sample_in_flight(engine: Engine, measured: _Measurements) -> None:
    """Sample the number of jobs in flight at intervals, until cancelled."""
    cap = engine.settings.max_in_flight
    while True:
        await asyncio.sleep(IN_FLIGHT_SAMPLE_INTERVAL_S)
        in_flight = engine.stats().in_flight
        measured.peak_in_flight = max(measured.peak_in_flight, in_flight)
        measured.in_flight_s += in_flight * IN_FLIGHT_SAMPLE_INTERVAL_S
        if in_flight >= AT_CAP_SHARE * cap:
            measured.at_cap_s += IN_FLIGHT_SAMPLE_INTERVAL_S


def _jobs(count: int) -> Iterator[Job]:
    for index in range(count):
        yield Job(prompt="a forecast", id=f"{index:07d}")


def _steady_state(measured: _Measurements, request: ForecastRequest, simulated_jobs: int) -> tuple[float, int]:
    """Return accepts per second and jobs in flight once the pipeline is full.

    They are measured in the second half of the simulated jobs. If there are more jobs, and the maximum in flight was
    not reached, Little's law (in flight = rate x latency) says whether it will be.
    """
    accepted_s = measured.accepted_s
    middle = len(accepted_s) // 2
    span_s = accepted_s[-1] - accepted_s[middle]
    per_s = (len(accepted_s) - 1 - middle) / span_s if span_s > 0 else float(len(accepted_s))
    if simulated_jobs == request.jobs or _is_at_cap(measured, request):
        return per_s, measured.peak_in_flight
    in_flight_time_s = measured.in_flight_s / simulated_jobs
    per_s = min(per_s, request.max_in_flight / max(in_flight_time_s, IN_FLIGHT_SAMPLE_INTERVAL_S))
    return per_s, max(measured.peak_in_flight, round(per_s * in_flight_time_s))


def _is_at_cap(measured: _Measurements, request: ForecastRequest) -> bool:
    return measured.peak_in_flight >= AT_CAP_SHARE * request.max_in_flight


def _bottleneck(measured: _Measurements, request: ForecastRequest, extrapolated_s: float, in_flight: int) -> str:
    """Return what limits the speed. The jobs that were not simulated take `extrapolated_s`."""
    seconds, submitting_s = measured.seconds + extrapolated_s, measured.accepted_s[-1] + extrapolated_s
    if measured.rate_limited:
        return "the gateway's rate limit: it refuses faster submits (429)"
    if seconds - submitting_s > LATENCY_BOUND_SHARE * seconds:
        return "the latency of jobs: most of the time is after the last submit"
    if measured.at_cap_s > (1 - AT_CAP_SHARE) * measured.seconds or (
        extrapolated_s and in_flight >= AT_CAP_SHARE * request.max_in_flight
    ):
        return "the maximum of jobs in flight: --max-in-flight"
    return "the rate: --rate"
