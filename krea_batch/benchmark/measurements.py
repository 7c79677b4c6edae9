"""What a worker saw comes in; the numbers that people read go out. Pure.

Newcomers: `used` is accepted submits a second, from the first to the last, over the limit. A burst that a token
bucket lets through at the start can take it a little above 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import msgspec

from krea_batch.benchmark.cases import Case, Contender, Record


class Spread(msgspec.Struct, frozen=True):
    """How something is spread: its middle, its 99th percentile, its largest."""

    p50: float
    p99: float
    max: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the report. Units are in the names; None is what could not be measured."""

    contender: Contender
    rate: str
    limit_per_s: float
    jobs: int
    accepted: int
    stored: int
    accepted_per_s: float | None
    used: float | None
    accepted_each_second: list[int]
    refused_429_per_job: float | None
    polls_per_job: float | None
    lag_mean_s: float | None
    lag_s: Spread | None
    cpu_ms_per_job: float | None
    memory_kib_per_job_in_flight: float | None
    most_in_flight: int
    loop_late_ms: Spread | None
    problem: str | None = None


def figures(case: Case, record: Record) -> Figures:
    """The numbers of one case."""
    accepted = len(record.accepted_at)
    per_s = per_second(record.accepted_at)
    return Figures(
        contender=case.contender,
        rate=case.rate,
        limit_per_s=case.per_s,
        jobs=case.jobs,
        accepted=accepted,
        stored=record.stored,
        accepted_per_s=per_s,
        used=None if per_s is None else per_s / case.per_s,
        accepted_each_second=each_second(record.accepted_at),
        refused_429_per_job=_over(record.refused_429, accepted),
        polls_per_job=_over(record.polls, accepted),
        lag_mean_s=fmean(record.lags_s) if record.lags_s else None,
        lag_s=spread(record.lags_s),
        cpu_ms_per_job=_over(1000 * record.cpu_s, accepted),
        memory_kib_per_job_in_flight=_over(record.memory_kib, record.most_in_flight),
        most_in_flight=record.most_in_flight,
        loop_late_ms=spread(record.late_ms),
        problem=record.problem,
    )


def per_second(instants: Sequence[float]) -> float | None:
    """How many a second, from the first to the last; None for fewer than two."""
    if len(instants) < 2:
        return None
    over_s = max(instants) - min(instants)
    return (len(instants) - 1) / over_s if over_s > 0 else None


def each_second(instants: Sequence[float]) -> list[int]:
    """How many fell into each second since the first, empty seconds between them included."""
    if not instants:
        return []
    first = min(instants)
    bins = [0] * (int(max(instants) - first) + 1)
    for at in instants:
        bins[int(at - first)] += 1
    return bins


def spread(values: Sequence[float]) -> Spread | None:
    """Middle, 99th percentile and largest; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(percentile(ordered, 50), percentile(ordered, 99), ordered[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that is not less than `percent` of all (nearest rank), of at least one, in order."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _over(amount: float, count: int) -> float | None:
    return amount / count if count else None
