"""The cases of a benchmark, made from its options and sent to worker processes.

A `CaseRecord` is what a worker saw; `measurements` computes the results from it. Pure.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from krea_batch.errors import SettingsError
from krea_batch.settings import Rate

MEASURE_DURATION_S = 10.0  # chosen: long enough for a steady rate, short enough for four of them
MIN_SUBMIT_WINDOW_S = 30.0  # chosen: 32 threads would need eight minutes for ten seconds of work at 400/s
SLOWDOWN_LIMIT = 3.0  # chosen: three times slower than the limit is enough to tell


class Implementation(StrEnum):
    """The program under measurement."""

    ENGINE = "krea-batch"
    THREADS = "threads + requests"
    TASKS = "aiohttp + aiolimiter"


BASELINES = (Implementation.THREADS, Implementation.TASKS)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. `gateway` is set when its simulator has started; `out` is the run directory."""

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
        """How long a script may submit, in seconds. The engine has no such limit: it completes what it accepted."""
        return max(MIN_SUBMIT_WINDOW_S, SLOWDOWN_LIMIT * self.jobs / self.per_s)


class CaseRecord(msgspec.Struct, kw_only=True, tag="record"):
    """What a worker saw. Times are in seconds since 1970; None means not measured."""

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
    """A worker's progress."""

    accepted: int
    stored: int
    rate_limited: int
    polls: int


def parse_rates(text: str) -> list[Rate]:
    """Parse `50/s,100/s`. Raises SettingsError for an invalid or duplicate rate."""
    rates = [Rate.parse(part, "rates") for part in text.split(",")]
    for index, rate in enumerate(rates):
        if rate.per_s in [earlier.per_s for earlier in rates[:index]]:
            raise SettingsError("rates", f"{rate.text!r} is given twice", "give each rate once")
    return rates


def run_dir_name(rate: Rate) -> str:
    """Return the name of the run directory of a rate: `5-per-s`."""
    return rate.text.replace(" ", "").replace("/", "-per-")


def jobs_for_rate(rate: Rate, jobs: int | None) -> int:
    """Return the number of jobs for a rate: `jobs`, or as many as fit into the measurement."""
    return jobs or max(2, round(rate.per_s * MEASURE_DURATION_S))
