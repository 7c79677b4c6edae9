"""The cases of a benchmark, and the messages between the command and its worker processes.

A `Case` is sent to a worker, which sends back `WorkerProgress` and then a `CaseRecord`.
"""

from __future__ import annotations

import msgspec

from krea_batch.errors import SettingsError
from krea_batch.settings import Rate

FIND_DURATION_S = 60.0  # chosen: a limit is found within seconds, and used for the rest of a minute
MEASURE_DURATION_S = 10.0  # chosen: long enough for a steady rate, short enough for four cases


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    `gateway` is set once its simulator has started; `out` is the run directory. `per_s` is the limit, which is also
    the engine's configured `rate`. A `limit`, in the syntax of `krea-batch simulate`, is one that it has to find.
    """

    rate: str
    per_s: float
    jobs: int
    poll_interval_s: float
    max_in_flight: int
    out: str
    prompt: str
    gateway: str = ""
    allow_networks: tuple[str, ...] = ()
    key_file: str | None = None
    simulated: bool = True
    limit: str = ""

    @property
    def simulator_limit(self) -> str:
        """The limit of the simulator; without one of its own, a token bucket of the rate."""
        return self.limit or f"token-bucket:{self.per_s:g}/s"

    @property
    def name(self) -> str:
        """What distinguishes this case from others."""
        return self.limit or self.rate


class CaseRecord(msgspec.Struct, kw_only=True, tag="record"):
    """What a worker measured. `accepted_at` is in seconds since 1970; `problem` is the error that ended the run."""

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
    """The counts of a worker so far."""

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


def jobs_for_rate(per_s: float, jobs: int | None, duration_s: float = MEASURE_DURATION_S) -> int:
    """Return `jobs`, or if it is None, as many jobs as the rate allows in the time of a measurement."""
    return jobs or max(2, round(per_s * duration_s))
