"""What is to be measured comes in as options; cases go out, one a worker, fit to be sent to another process.

Newcomers: `record` is what a worker saw, raw; `figures` makes the numbers that people read of it. Pure.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from krea_batch.errors import SettingsError
from krea_batch.settings import Rate

MEASURE_DURATION_S = 10.0  # chosen: long enough for a rate to settle, short enough to sit through four of them
MIN_SUBMIT_WINDOW_S = 30.0  # chosen: 32 threads would need eight minutes for ten seconds' work at 400/s
SLOWDOWN_LIMIT = 3.0  # chosen: a script that is three times slower than its limit has shown it


class Implementation(StrEnum):
    """Who does the work."""

    ENGINE = "krea-batch"
    THREADS = "threads + requests"
    TASKS = "aiohttp + aiolimiter"


BASELINES = (Implementation.THREADS, Implementation.TASKS)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. `gateway` is filled in once its simulator has an address; `out` is the run's folder."""

    implementation: Implementation
    rate: str
    per_s: float
    jobs: int
    poll_interval_s: float
    max_in_flight: int
    out: str
    prompt: str
    gateway: str = ""
    key_file: str | None = None
    simulated: bool = True

    @property
    def submit_window_s(self) -> float:
        """How long a script may go on submitting. The engine has no such end: what it took, it brings home."""
        return max(MIN_SUBMIT_WINDOW_S, SLOWDOWN_LIMIT * self.jobs / self.per_s)


class CaseRecord(msgspec.Struct, kw_only=True, tag="record"):
    """What a worker saw. Instants are seconds since 1970; None is what could not be measured."""

    accepted_at: list[float] = []
    rate_limited: int = 0
    polls: int = 0
    stored: int = 0
    peak_in_flight: int = 0
    lags_s: list[float] = []
    loop_lags_ms: list[float] = []
    cpu_s: float = 0.0
    memory_kib: int = 0
    problem: str | None = None


class WorkerProgress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a worker is: what it tells while it works."""

    accepted: int
    stored: int
    rate_limited: int
    polls: int


def parse_rates(text: str) -> list[Rate]:
    """Read `50/s,100/s`. Raises SettingsError naming the one that is no rate, or stands twice."""
    rates = [Rate.parse(part, "rates") for part in text.split(",")]
    for index, rate in enumerate(rates):
        if rate.per_s in [earlier.per_s for earlier in rates[:index]]:
            raise SettingsError("rates", f"{rate.text!r} stands twice", "give each rate once")
    return rates


def run_dir_name(rate: Rate) -> str:
    """The run folder of a rate, the same each time: `5-per-s`."""
    return rate.text.replace(" ", "").replace("/", "-per-")


def jobs_for_rate(rate: Rate, jobs: int | None) -> int:
    """How many jobs a rate gets: those asked for, or as many as it lets through while it is measured."""
    return jobs or max(2, round(rate.per_s * MEASURE_DURATION_S))
