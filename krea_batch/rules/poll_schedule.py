"""When to poll a job, from the latencies observed so far.

Two polls of one job are at least `interval_s` apart, and so are the acceptance and the first poll. A later poll costs
lag, an earlier one may find the job unfinished. The plan minimises, by dynamic programming over the observed
latencies,

    polls + lag_weight · lag / interval          lag: from the end of the job to the poll that finds it

The latencies are estimated as in survival analysis (Kaplan and Meier, 1958), so unfinished jobs count as well: it is
known that they take longer than their age. All times are seconds since the acceptance of a job, or differences.

A plan has cells of equal width, and the arrays here have one entry for each cell. The cells are so wide that a plan
covers nearly all jobs, so a few jobs that take a hundred times as long do not make it coarse. Observations are kept
more finely, whatever the plan covers: cells get narrower again when jobs that took long no longer count.

Latencies may come from the gateway's timestamps, so every number is limited here: to the job's time-out and to
MAX_AGE_INTERVALS.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import islice, pairwise, zip_longest

CELLS_PER_INTERVAL = 20  # chosen: plans on this grid cost 2 % more than on a finer one
MAX_CELLS = 600  # chosen: a plan takes about ten milliseconds; for longer latencies the cells get wider
MAX_AGE_INTERVALS = 1e6  # chosen: two months at 5 s; keeps the arithmetic exact whatever time-out is set
MAX_UNCOVERED_SHARE = 0.01  # chosen: with more jobs behind the plan, their polls cost more than wider cells do
MAX_UNCOVERED_JOBS = 1.5  # chosen: a single job never makes the cells wider
COVERED_AGAIN = 2 / 3  # chosen: of both limits; cells do not get wider and narrower in turn
MIN_KEPT_WEIGHT = 1e-6  # chosen: an observation that was discounted to less is forgotten, which bounds the memory
EXPLORING_JOBS = 10  # chosen: the first jobs are polled every interval, so that short latencies are found soon
PRIOR_WEIGHT = 3.0  # chosen: at the start, the example of the API document counts as three observed jobs
PRIOR_HALVED_AFTER = 50.0  # chosen: after this many jobs the prior counts half
PRIOR_MEDIAN = 3.0  # intervals; API document: polls every 5-10 s, and a job that took 15 s
PRIOR_SIGMA = 0.6  # chosen: two of three jobs take 1.6 to 5.5 intervals
MAX_WEIGHT = 500.0  # chosen: jobs; enough for a smooth plan, few enough to follow a change within minutes
DRIFT_THRESHOLD = 0.1  # chosen: if the distribution has moved by less, a new plan is no better
DRIFT_FLOOR = 0.05  # chosen: share of jobs; differences at ages that fewer jobs reach count less
MIN_AT_RISK = 0.5  # chosen: jobs; the estimate ends at the age that fewer have reached (the prior counts fractions)
TAIL_POWER = 2.0  # chosen: Pareto's; half of the jobs older than all others take 0.4 times as long again
DRIFT_CHECK_POLLS = 25  # chosen: polls between two checks for drift
IMPRECISION_WEIGHT = 0.1  # chosen: smoothing; after a dozen jobs it is known that a gateway reports no latencies
MIN_CELL_WEIGHT = 1e-4  # chosen: no cell is excluded because the plan expects no job to end there
MIN_POLL_SHARE = 1e-4  # chosen: no poll is placed for a smaller share of jobs
CALLBACK_QUANTILE = 0.99  # chosen: one job in a hundred is polled before its callback
TAIL_COST_POLLS = 3.0  # chosen: polls, for a job that takes longer than everything observed so far
RETRY_GROWTH = 2.0
MAX_RETRY_DELAY_S = 60.0  # chosen: the end of an outage is noticed within a minute


class PollSchedule:
    """When to poll each job. `version` grows with each new plan; waiting polls can then be rescheduled.

    No poll is placed later than `timeout_s` after the acceptance, unless the interval requires it.
    """

    __slots__ = (
        "_cell_units",
        "_completed",
        "_imprecise_share",
        "_lag_weight",
        "_max_age_s",
        "_next_check",
        "_observations",
        "_observed_jobs",
        "_pending",
        "_plan",
        "_replan_at_observed",
        "_timeout_s",
        "_unit_s",
        "interval_s",
        "version",
    )

    def __init__(self, interval_s: float, lag_weight: float = 1.0, *, timeout_s: float = math.inf) -> None:
        self.interval_s = interval_s
        self.version = 0
        self._timeout_s = timeout_s
        self._max_age_s = min(timeout_s, MAX_AGE_INTERVALS * interval_s)
        self._lag_weight = lag_weight
        self._unit_s = interval_s / CELLS_PER_INTERVAL  # the width of the narrowest cells
        self._cell_units = 1  # width of a cell of the next plan, a power of 2
        self._observed_jobs = 0
        self._imprecise_share = 0.0  # share of the latest observations that were upper bounds
        self._observations = 0
        self._replan_at_observed = EXPLORING_JOBS  # this many completed jobs cause a new plan, even without drift
        self._next_check = 1
        self._completed: dict[int, float] = {}  # by age in units: jobs completed there; older ones count less
        self._pending: dict[int, float] = {}  # by age in units: jobs last polled there, and not finished
        self._replan(self._survival())

    # ---- observations ------------------------------------------------------------------------------------

    def observe(self, latency_s: float, last_polled_s: float = 0.0, *, exact: bool = True) -> None:
        """Add a completed job that took `latency_s`, or at most that if not `exact`.

        `last_polled_s` is the age at which a poll last found it unfinished, 0 if none did.
        """
        self.withdraw(last_polled_s)
        if exact:
            _add(self._completed, self._age_units(latency_s), 1.0)
        else:
            self._observe_range(self._age_units(last_polled_s), self._age_units(latency_s))
        self._imprecise_share += ((not exact) - self._imprecise_share) * IMPRECISION_WEIGHT
        self._observed_jobs += 1
        self._maybe_replan()

    def observe_pending(self, age_s: float, last_polled_s: float = 0.0) -> None:
        """Add a poll at `age_s` that found a job unfinished; `last_polled_s` as in `observe`."""
        self.withdraw(last_polled_s)
        _add(self._pending, self._age_units(age_s), 1.0)
        self._maybe_replan()

    def withdraw(self, last_polled_s: float) -> None:
        """Remove a job from the unfinished ones; `last_polled_s` as in `observe`."""
        if last_polled_s > 0:
            units = self._age_units(last_polled_s)
            if self._pending.get(units, 0.0) > 1.0:
                self._pending[units] -= 1.0
            else:
                self._pending.pop(units, None)

    def _observe_range(self, earliest: int, latest: int) -> None:
        """Add a job that ended between two ages, spread over the cells as the current plan expects ends there."""
        plan = self._plan
        ages, age = [], earliest
        while age < latest:
            width = max(plan.cell_units, _resolution_units(age + 1))
            age = min((age // width + 1) * width, latest)
            ages.append(age)
        weights = [MIN_CELL_WEIGHT + plan.share_ending(-(-age // plan.cell_units)) for age in ages]
        total = sum(weights)
        for age, weight in zip(ages, weights, strict=True):
            _add(self._completed, age, weight / total)
        if not ages:
            _add(self._completed, latest, 1.0)

    def _age_units(self, age_s: float) -> int:
        """Return an age in units, rounded up to what is kept. NaN counts as 0, an age above the maximum as that."""
        units = math.ceil(min(max(0.0, age_s), self._max_age_s) / self._unit_s - 1e-6)
        if units <= MAX_CELLS:
            return max(0, units)
        width = _resolution_units(units)
        return -(-units // width) * width

    # ---- when to poll ------------------------------------------------------------------------------------

    def first_poll_s(self) -> float:
        """Return the seconds from the acceptance to the first poll."""
        return self.next_poll_s(0.0)

    def next_poll_s(self, age_s: float) -> float:
        """Return the seconds from a poll at `age_s`, which found the job unfinished, to the next poll."""
        known_age_s = min(max(0.0, age_s), self._max_age_s)
        return self._before_timeout_s(self._plan.next_poll_age_s(known_age_s) - known_age_s, age_s)

    def quantile_s(self) -> float:
        """Return the age by which nearly every job has ended, plus one interval."""
        return self._before_timeout_s(self._plan.quantile_s(CALLBACK_QUANTILE) + self.interval_s, 0.0)

    def _before_timeout_s(self, wait_s: float, age_s: float) -> float:
        """Return the wait from `age_s` on, or a shorter one up to the time-out, but at least the interval."""
        return max(self.interval_s, min(wait_s, self._timeout_s - age_s))

    @property
    def exploring(self) -> bool:
        """Whether so little is known that a few jobs should be polled every interval."""
        return self._observed_jobs < EXPLORING_JOBS

    @property
    def imprecise(self) -> bool:
        """Whether the gateway does not report latencies, so that some jobs should be polled early to learn them."""
        return self._imprecise_share > 0.5

    def retry_delay_s(self, failures: int, retry_after_s: float | None) -> float:
        """Return the seconds to the next poll after `failures` consecutive polls without a readable answer."""
        backoff_s = self.interval_s * RETRY_GROWTH ** min(failures - 1, 30)
        return max(self.interval_s, min(backoff_s, MAX_RETRY_DELAY_S), retry_after_s or 0.0)

    # ---- the width of cells ------------------------------------------------------------------------------

    def _adapt_cells(self) -> None:
        """Choose the narrowest cells with which MAX_CELLS of them cover all jobs but a few."""
        last = max(max(self._completed, default=0), max(self._pending, default=0))
        if self._cell_units == 1 and last < MAX_CELLS:
            return
        total = sum(self._completed.values()) + sum(self._pending.values())
        max_jobs = max(MAX_UNCOVERED_JOBS, MAX_UNCOVERED_SHARE * total)
        while self._uncovered_jobs(self._cell_units) > max_jobs:
            self._cell_units *= 2
        while self._cell_units > 1 and self._uncovered_jobs(self._cell_units // 2) <= COVERED_AGAIN * max_jobs:
            self._cell_units //= 2

    def _uncovered_jobs(self, cell_units: int) -> float:
        """Return the number of jobs at ages that a plan with cells of this width does not cover."""
        covered = (MAX_CELLS - 1) * cell_units
        return sum(
            count for counts in (self._completed, self._pending) for age, count in counts.items() if age > covered
        )

    # ---- the plan ----------------------------------------------------------------------------------------

    def _maybe_replan(self) -> None:
        """Make a new plan if many more jobs have been observed, or the distribution has moved."""
        self._observations += 1
        if self._observations >= self._next_check:
            self._next_check = self._observations + min(DRIFT_CHECK_POLLS, 1 + self._observations // 4)
            self._discount_old()
            self._adapt_cells()
            survival = self._survival()
            if self._observed_jobs >= self._replan_at_observed or self._drift(survival) > DRIFT_THRESHOLD:
                self._replan_at_observed = 2 * max(EXPLORING_JOBS, self._observed_jobs)
                self._replan(survival)

    def _discount_old(self) -> None:
        """Scale old observations down, so that the plan follows the last minutes."""
        weight = sum(self._completed.values())
        if weight > MAX_WEIGHT:
            factor = MAX_WEIGHT / weight
            self._completed = {
                age: count * factor for age, count in self._completed.items() if count > MIN_KEPT_WEIGHT
            }

    def _drift(self, survival: list[float]) -> float:
        """Return how far the distribution has moved since the plan was made, at the age where it moved most.

        A difference counts more if fewer jobs reach the age: what the first jobs of a run show about old ages decides
        when all later jobs are polled.
        """
        if self._plan.cell_units != self._cell_units:
            return math.inf
        pairs = zip(survival, self._plan.survival, strict=False)
        return max(abs(now - then) / (then + DRIFT_FLOOR) for now, then in pairs)

    def _survival(self) -> list[float]:
        """Return, by cell, the share of jobs that take longer: the product-limit estimate, with the prior mixed in.

        Beyond the highest observed age, the share falls like a Pareto tail: a job takes about its age longer.
        """
        completed, pending = self._with_prior(), self._by_cell(self._pending)
        at_risk = sum(completed) + sum(pending)
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

    def _with_prior(self) -> list[float]:
        """Return the completed jobs by cell, plus the weighted prior."""
        prior = _prior(self._cell_units / CELLS_PER_INTERVAL)
        weight = 1.0 / (1.0 + self._observed_jobs / PRIOR_HALVED_AFTER)
        completed = self._by_cell(self._completed)
        return [count + weight * prior_count for count, prior_count in zip_longest(completed, prior, fillvalue=0.0)]

    def _by_cell(self, counts: dict[int, float]) -> list[float]:
        """Return these jobs by cell. One cell more, behind the last, has those that the plan does not cover."""
        cells = [0.0] * (min(MAX_CELLS, -(-max(counts, default=0) // self._cell_units)) + 1)
        for age, count in counts.items():
            cells[min(MAX_CELLS, -(-age // self._cell_units))] += count
        return cells

    def _replan(self, survival: list[float]) -> None:
        spacing = max(1, math.ceil(CELLS_PER_INTERVAL / self._cell_units))
        next_cells = optimal_polls(survival, spacing, self._lag_weight * self._cell_units / CELLS_PER_INTERVAL)
        self._plan = _Plan(next_cells, survival, spacing, self._cell_units, self._unit_s)
        self.version += 1


def _resolution_units(age: int) -> int:
    """Return how finely an age in units is kept: by 1 up to MAX_CELLS units, by 2 up to twice that, and so on.

    This is as fine as the cells of any plan that covers the age.
    """
    return 1 << ((max(age, 1) - 1) // MAX_CELLS).bit_length()


def _add(counts: dict[int, float], age: int, count: float) -> None:
    counts[age] = counts.get(age, 0.0) + count


@cache
def _prior(cell_intervals: float) -> list[float]:
    """Return, by cell of `cell_intervals` intervals, the jobs for which the document's example counts: log-normal."""
    cells = min(MAX_CELLS, int(4 * PRIOR_MEDIAN / cell_intervals) + 1)
    z_scores = [0.0] + [math.log(cell * cell_intervals / PRIOR_MEDIAN) / PRIOR_SIGMA for cell in range(1, cells)]
    ended = [0.0] + [0.5 * math.erfc(-z / math.sqrt(2)) for z in z_scores[1:]]
    return [0.0] + [PRIOR_WEIGHT * (later - earlier) for earlier, later in pairwise(ended)]


class _Plan:
    """For each cell in which a poll finds a job unfinished, the cell of its next poll."""

    __slots__ = ("_cell_s", "_next_cells", "_spacing", "cell_units", "survival")

    def __init__(
        self, next_cells: list[int], survival: list[float], spacing: int, cell_units: int, unit_s: float
    ) -> None:
        self._next_cells = next_cells
        self._spacing = spacing
        self._cell_s = cell_units * unit_s
        self.cell_units = cell_units
        self.survival = survival

    def share_ending(self, cell: int) -> float:
        """Return the share of jobs that the plan expects to end in a cell."""
        return self.survival[cell - 1] - self.survival[cell] if 0 < cell < len(self.survival) else 0.0

    def quantile_s(self, share: float) -> float:
        """Return the age by which this share of the jobs has ended."""
        cell = bisect_left(self.survival, share - 1.0, key=lambda surviving: -surviving)
        return cell * self._cell_s

    def next_poll_age_s(self, age_s: float) -> float:
        """Return the age of the poll after one at `age_s`. Beyond the plan, older jobs are polled less often."""
        cell = int(age_s / self._cell_s + 1e-6)
        if cell < len(self._next_cells):
            return self._next_cells[cell] * self._cell_s
        return age_s + math.sqrt(age_s * self._spacing * self._cell_s)


def optimal_polls(survival: Sequence[float], spacing: int, lag_cost: float) -> list[int]:
    """Return, by cell, the best cell for the next poll of a job that a poll finds unfinished there.

    `survival` is, by cell, the share of jobs that take longer. `spacing` is the minimum number of cells between two
    polls, `lag_cost` the cost of one cell of lag; a poll costs 1. Jobs end at the end of their cell.
    """
    last = len(survival)  # a poll here, behind the last cell, stands for the rare polls of the remaining jobs
    lag = [0.0] * (last + 1)  # by cell of a poll: the total lag of all jobs that ended before it
    for cell in range(1, last + 1):
        ended = 1.0 - survival[cell - 1]
        lag[cell] = lag[cell - 1] + ended
    cost = [0.0] * (last + 1)
    cost[last] = TAIL_COST_POLLS * survival[-1]
    next_cells = [0] * last
    candidates = [last]  # cells in which jobs end; a poll in another cell finds no more than an earlier one
    for cell in range(last - 1, -1, -1):
        if cell + spacing < last and survival[cell + spacing - 1] - survival[cell + spacing] > MIN_POLL_SHARE:
            candidates.append(cell + spacing)
        surviving = survival[cell]
        ended, base = 1.0 - surviving, lag[cell]
        chosen = min(cell + spacing, last)
        best = lag_cost * (lag[chosen] - base - (chosen - cell) * ended) + cost[chosen]
        for poll in reversed(candidates):
            lag_total = lag_cost * (lag[poll] - base - (poll - cell) * ended)
            if lag_total >= best:
                break
            total = lag_total + cost[poll]
            if total < best - 1e-12:
                best, chosen = total, poll
        cost[cell] = surviving + best
        next_cells[cell] = chosen if surviving > 1e-9 else cell + spacing
    return next_cells
