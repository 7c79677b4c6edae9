"""Estimate how long jobs take, from completed jobs and from polls that found jobs unfinished.

The latencies are estimated as in survival analysis (Kaplan and Meier, 1958), so unfinished jobs count as well: it is
known that they take longer than their age. If the gateway does not report latencies, the end of a job is only known
to lie between two polls, and `poll_trials` estimates where. All times are seconds since the acceptance of a job.

An estimate has cells of equal width, and the arrays here have one entry for each cell. The cells are so wide that
they cover nearly all jobs, so a few jobs that take a hundred times as long do not make the plan coarse. Observations
are kept more finely, whatever the cells cover: cells get narrower again when jobs that took long no longer count.

Latencies may come from the gateway's timestamps, so every number is limited here: to the job's time-out and to
MAX_AGE_INTERVALS.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import islice, pairwise, zip_longest

from krea_batch.rules.poll_trials import PollTrials

CELLS_PER_INTERVAL = 20  # chosen: plans on this grid cost 2 % more than on a finer one
MAX_CELLS = 600  # chosen: a plan takes about ten milliseconds; for longer latencies the cells get wider
MAX_AGE_INTERVALS = 1e6  # chosen: two months at 5 s; keeps the arithmetic exact whatever time-out is set
MAX_UNCOVERED_SHARE = 0.01  # chosen: if more jobs outlast the plan, their polls cost more than wider cells would
MAX_UNCOVERED_JOBS = 1.5  # chosen: a single job never makes the cells wider
COVERED_AGAIN = 2 / 3  # chosen: share of both limits, so that cells do not alternate between two widths
MAX_WEIGHT = 500.0  # chosen: jobs; enough for a smooth plan, few enough to follow a change within minutes
DISCOUNTED_AT = 1.05  # chosen: times MAX_WEIGHT; discounting every 25 jobs costs little
MIN_KEPT_WEIGHT = 1e-6  # chosen: an observation that was discounted to less is forgotten, which bounds the memory
PRIOR_WEIGHT = 3.0  # chosen: at the start, the example of the API document counts as three observed jobs
PRIOR_HALVED_AFTER = 50.0  # chosen: after this many jobs the prior counts half
PRIOR_MEDIAN = 3.0  # intervals; API document: polls every 5-10 s, and a job that took 15 s
PRIOR_SIGMA = 0.6  # chosen: two of three jobs take 1.6 to 5.5 intervals
MIN_AT_RISK = 0.5  # chosen: jobs; the estimate ends at the age that fewer have reached (the prior counts fractions)
TAIL_POWER = 2.0  # chosen: exponent of a Pareto tail; half of the oldest jobs take 0.4 times as long again
IMPRECISION_WEIGHT = 0.1  # chosen: smoothing; after a dozen jobs it is known that a gateway reports no latencies


class LatencyEstimate:
    """The latencies of the latest jobs. Older jobs count less."""

    __slots__ = (
        "_completed",
        "_completed_weight",
        "_imprecise_share",
        "_pending",
        "_trials",
        "cell_units",
        "max_age_s",
        "observed_jobs",
        "oldest_units",
        "unit_s",
    )

    def __init__(self, interval_s: float, *, timeout_s: float = math.inf) -> None:
        self.max_age_s = min(timeout_s, MAX_AGE_INTERVALS * interval_s)
        self.unit_s = interval_s / CELLS_PER_INTERVAL  # the width of the narrowest cells
        self.cell_units = 1  # width of a cell, a power of 2
        self.observed_jobs = 0  # completed jobs, including those that no longer count
        self.oldest_units = 1  # the highest age observed so far
        self._imprecise_share = 0.0  # share of the latest completed jobs whose latency was an upper bound
        self._completed: dict[int, float] = {}  # by age in units: jobs completed there
        self._completed_weight = 0.0
        self._pending: dict[int, float] = {}  # by age in units: jobs last polled there, and not finished
        self._trials = PollTrials()

    # ---- observations ------------------------------------------------------------------------------------

    def observe(self, latency_s: float, last_polled_s: float = 0.0, *, exact: bool = True) -> None:
        """Add a completed job that took `latency_s`, or at most that if not `exact`.

        `last_polled_s` is the age at which a poll last found it unfinished, 0 if none did.
        """
        self.withdraw(last_polled_s)
        age = self._age_units(latency_s)
        if exact:
            _add(self._completed, age)
            self._completed_weight += 1.0
            if self._completed_weight > DISCOUNTED_AT * MAX_WEIGHT:
                self._discount(MAX_WEIGHT / self._completed_weight)
        else:
            self._trials.add(self._age_units(last_polled_s), age, completed=True)
        self._imprecise_share += ((not exact) - self._imprecise_share) * IMPRECISION_WEIGHT
        self.observed_jobs += 1
        self.oldest_units = max(self.oldest_units, age)

    def observe_pending(self, age_s: float, last_polled_s: float = 0.0) -> None:
        """Add a poll at `age_s` that found a job unfinished; `last_polled_s` as in `observe`."""
        self.withdraw(last_polled_s)
        age = self._age_units(age_s)
        _add(self._pending, age)
        self.oldest_units = max(self.oldest_units, age)
        if self._imprecise_share > 0 or not self.observed_jobs:  # Latencies that are reported need no trials.
            self._trials.add(self._age_units(last_polled_s), age, completed=False)

    def withdraw(self, last_polled_s: float) -> None:
        """Remove a job from the unfinished ones; `last_polled_s` as in `observe`."""
        if last_polled_s > 0:
            units = self._age_units(last_polled_s)
            if self._pending.get(units, 0.0) > 1.0:
                self._pending[units] -= 1.0
            else:
                self._pending.pop(units, None)

    def _age_units(self, age_s: float) -> int:
        """Return an age in units, rounded up to the kept resolution, at most the maximum. NaN counts as 0."""
        units = math.ceil(min(max(0.0, age_s), self.max_age_s) / self.unit_s - 1e-6)
        if units <= MAX_CELLS:
            return max(0, units)
        width = _resolution_units(units)
        return -(-units // width) * width

    def _discount(self, factor: float) -> None:
        """Scale old observations down, so that the estimate follows the last minutes."""
        self._completed = {age: count * factor for age, count in self._completed.items() if count > MIN_KEPT_WEIGHT}
        self._completed_weight = sum(self._completed.values())

    # ---- what they show ----------------------------------------------------------------------------------

    @property
    def imprecise(self) -> bool:
        """Whether the gateway does not report latencies, so that some jobs should be polled early to learn them."""
        return self._imprecise_share > 0.5

    def jobs_older_than(self, age_s: float) -> float:
        """Return how many of the observed jobs took longer than `age_s`, or were unfinished at a higher age."""
        units = self._age_units(age_s)
        older = sum(count for (_, age), count in self._trials.completed.items() if age > units)
        return older + sum(_count_above(units, counts) for counts in (self._completed, self._pending))

    def adapt_cells(self) -> None:
        """Choose the narrowest cells so that MAX_CELLS of them cover all but a few jobs."""
        if self.cell_units == 1 and self.oldest_units < MAX_CELLS:
            return
        ended = self.ended_units()
        total = sum(ended.values()) + sum(self._pending.values())
        max_jobs = max(MAX_UNCOVERED_JOBS, MAX_UNCOVERED_SHARE * total)

        def uncovered_jobs(cell_units: int) -> float:
            covered = (MAX_CELLS - 1) * cell_units
            return _count_above(covered, ended) + _count_above(covered, self._pending)

        while uncovered_jobs(self.cell_units) > max_jobs:
            self.cell_units *= 2
        while self.cell_units > 1 and uncovered_jobs(self.cell_units // 2) <= COVERED_AGAIN * max_jobs:
            self.cell_units //= 2

    def ended_units(self) -> dict[int, float]:
        """Return, by age in units, the jobs that were completed, or that a poll found completed, at that age."""
        ended = self._completed.copy()
        for (_, age), count in self._trials.completed.items():
            _add(ended, age, count)
        return ended

    def pending_units(self) -> dict[int, float]:
        """Return, by age in units, the unfinished jobs that were last polled there."""
        return self._pending

    def survival(self) -> list[float]:
        """Return, by cell, the share of jobs that take longer: the product-limit estimate, the prior included."""
        completed, pending = self._with_prior(), jobs_by_cell(self._pending, self.cell_units)
        if not self._trials.completed:
            return _product_limit(completed, pending)
        if self.imprecise:
            expected = self._trials.survival(self.cell_units, MAX_CELLS)
        else:
            expected = _product_limit(completed, pending)
        spread = self._trials.completed_by_cell(expected, self.cell_units, MAX_CELLS)
        return _product_limit([sum(cell) for cell in zip_longest(completed, spread, fillvalue=0.0)], pending)

    def _with_prior(self) -> list[float]:
        """Return the completed jobs by cell, plus the weighted prior."""
        prior = _prior(self.cell_units / CELLS_PER_INTERVAL)
        weight = 1.0 / (1.0 + self.observed_jobs / PRIOR_HALVED_AFTER)
        completed = jobs_by_cell(self._completed, self.cell_units)
        return [count + weight * prior_count for count, prior_count in zip_longest(completed, prior, fillvalue=0.0)]


def jobs_by_cell(counts: dict[int, float], cell_units: int) -> list[float]:
    """Return jobs at ages in units by cell. One cell more, behind the last, has those that the cells do not cover."""
    cells = [0.0] * (min(MAX_CELLS, -(-max(counts, default=0) // cell_units)) + 1)
    for age, count in counts.items():
        cells[min(MAX_CELLS, -(-age // cell_units))] += count
    return cells


def _product_limit(completed: list[float], pending: list[float]) -> list[float]:
    """Return, by cell, the share of jobs that take longer.

    Beyond the highest observed age, the share falls like a Pareto tail: a job takes about its age longer.
    """
    at_risk = max(MIN_AT_RISK, sum(completed) + sum(pending))
    share, survival = 1.0, []
    for ended, unfinished in islice(zip_longest(completed, pending, fillvalue=0.0), MAX_CELLS):
        if at_risk < MIN_AT_RISK:
            break
        share *= max(0.0, 1.0 - ended / at_risk)
        survival.append(share)
        at_risk -= ended + unfinished
    last_known = max(1, len(survival) - 1)
    tail = range(len(survival), min(MAX_CELLS, 3 * last_known))
    return survival + [share * (last_known / cell) ** TAIL_POWER for cell in tail]


def _resolution_units(age: int) -> int:
    """Return how finely an age in units is kept: by 1 up to MAX_CELLS units, by 2 up to twice that, and so on.

    This is as fine as the cells of any plan that covers the age.
    """
    return 1 << ((max(age, 1) - 1) // MAX_CELLS).bit_length()


def _add(counts: dict[int, float], age: int, count: float = 1.0) -> None:
    counts[age] = counts.get(age, 0.0) + count


def _count_above(age: int, counts: dict[int, float]) -> float:
    return sum(count for at, count in counts.items() if at > age)


@cache
def _prior(cell_intervals: float) -> list[float]:
    """Return, by cell of `cell_intervals` intervals, the jobs for which the document's example counts: log-normal."""
    cells = min(MAX_CELLS, int(4 * PRIOR_MEDIAN / cell_intervals) + 1)
    z_scores = [0.0] + [math.log(cell * cell_intervals / PRIOR_MEDIAN) / PRIOR_SIGMA for cell in range(1, cells)]
    ended = [0.0] + [0.5 * math.erfc(-z / math.sqrt(2)) for z in z_scores[1:]]
    return [0.0] + [PRIOR_WEIGHT * (later - earlier) for earlier, later in pairwise(ended)]
