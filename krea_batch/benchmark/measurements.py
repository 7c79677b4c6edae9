"""Computes results from the record of a worker.

`limit_utilisation` is the rate of accepted submits, from the first to the last, divided by the limit. The initial
burst of a token bucket can raise it slightly above 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import msgspec

from krea_batch.benchmark.cases import Case, CaseRecord


class Percentiles(msgspec.Struct, frozen=True):
    """Median, 99th percentile and maximum."""

    p50: float
    p99: float
    max: float


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the report. None means not measured."""

    rate: str
    limit: str = ""  # that the engine had to find
    limit_per_s: float
    jobs: int
    accepted: int
    stored: int
    accepted_per_s: float | None
    limit_utilisation: float | None
    accepted_each_second: list[int]
    rate_limited_per_job: float | None
    polls_per_job: float | None
    lag_mean_s: float | None
    lag_s: Percentiles | None
    cpu_ms_per_job: float | None
    memory_kib_per_job_in_flight: float | None
    peak_in_flight: int
    loop_lag_ms: Percentiles | None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The limit that was measured."""
        return self.limit or self.rate


def case_result(case: Case, record: CaseRecord) -> CaseResult:
    """Compute the result of one case."""
    accepted = len(record.accepted_at)
    per_s = rate_per_s(record.accepted_at)
    return CaseResult(
        rate=case.rate,
        limit=case.limit,
        limit_per_s=case.per_s,
        jobs=case.jobs,
        accepted=accepted,
        stored=record.stored,
        accepted_per_s=per_s,
        limit_utilisation=None if per_s is None else per_s / case.per_s,
        accepted_each_second=counts_per_second(record.accepted_at),
        rate_limited_per_job=_ratio(record.rate_limited, accepted),
        polls_per_job=_ratio(record.polls, accepted),
        lag_mean_s=fmean(record.lags_s) if record.lags_s else None,
        lag_s=percentiles(record.lags_s),
        cpu_ms_per_job=_ratio(1000 * record.cpu_s, accepted),
        memory_kib_per_job_in_flight=_ratio(record.memory_kib, record.peak_in_flight),
        peak_in_flight=record.peak_in_flight,
        loop_lag_ms=percentiles(record.loop_lags_ms),
        problem=record.problem,
    )


def rate_per_s(times_s: Sequence[float]) -> float | None:
    """Return the rate between the first and the last time; None if there are fewer than two different times."""
    if len(times_s) < 2:
        return None
    span_s = max(times_s) - min(times_s)
    return (len(times_s) - 1) / span_s if span_s > 0 else None


def counts_per_second(times_s: Sequence[float]) -> list[int]:
    """Count the times in each second after the first time, including seconds without any."""
    if not times_s:
        return []
    first = min(times_s)
    bins = [0] * (int(max(times_s) - first) + 1)
    for time_s in times_s:
        bins[int(time_s - first)] += 1
    return bins


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Return median, 99th percentile and maximum; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return Percentiles(percentile(ordered, 50), percentile(ordered, 99), ordered[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of sorted values by the nearest-rank method. There must be at least one value."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _ratio(amount: float, count: int) -> float | None:
    return amount / count if count else None
