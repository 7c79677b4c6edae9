"""When to poll a job, from the latencies observed so far.

Two polls of one job are at least `interval_s` apart, and so are the acceptance and the first poll. A later poll costs
lag, an earlier one may find the job unfinished. The plan minimises, by dynamic programming over the observed
latencies,

    polls + lag_weight · lag / interval          lag: from the end of the job to the poll that finds it

The latencies are estimated as in survival analysis (Kaplan and Meier, 1958), so unfinished jobs count as well: it is
known that they take longer than their age. All times are seconds since the acceptance of a job, or differences.

Ages are counted in cells of equal width. The arrays here have one entry for each cell.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, zip_longest

CELLS_PER_INTERVAL = 20  # chosen: plans on this grid cost 2 % more than on a finer one
MAX_CELLS = 600  # chosen: a plan takes about ten milliseconds; for longer latencies the cells get wider
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
    """When to poll each job. `version` grows with each new plan; waiting polls can then be rescheduled."""

    __slots__ = (
        "_cell_s",
        "_completed",
        "_imprecise_share",
        "_lag_weight",
        "_next_check",
        "_observations",
        "_observed_jobs",
        "_pending",
        "_plan",
        "_replan_at_observed",
        "interval_s",
        "version",
    )

    def __init__(self, interval_s: float, lag_weight: float = 1.0) -> None:
        self.interval_s = interval_s
        self.version = 0
        self._lag_weight = lag_weight
        self._cell_s = interval_s / CELLS_PER_INTERVAL
        self._observed_jobs = 0
        self._imprecise_share = 0.0  # share of the latest observations that were upper bounds
        self._observations = 0
        self._replan_at_observed = EXPLORING_JOBS  # this many completed jobs cause a new plan, even without drift
        self._next_check = 1
        self._completed = [0.0]  # by cell: jobs completed there; older ones count less
        self._pending = [0.0]  # by cell: jobs last polled there, and not finished
        self._replan(self._survival())

    # ---- observations ------------------------------------------------------------------------------------

    def observe(self, latency_s: float, last_polled_s: float = 0.0, *, exact: bool = True) -> None:
        """Add a completed job that took `latency_s`, or at most that if not `exact`.

        `last_polled_s` is the age at which a poll last found it unfinished, 0 if none did.
        """
        cell = self._cell(latency_s)
        self.withdraw(last_polled_s)
        if exact:
            self._completed[cell] += 1.0
        else:
            self._observe_range(last_polled_s, latency_s)
        self._imprecise_share += ((not exact) - self._imprecise_share) * IMPRECISION_WEIGHT
        self._observed_jobs += 1
        self._maybe_replan()

    def observe_pending(self, age_s: float, last_polled_s: float = 0.0) -> None:
        """Add a poll at `age_s` that found a job unfinished; `last_polled_s` as in `observe`."""
        self.withdraw(last_polled_s)
        self._pending[self._cell(age_s)] += 1.0
        self._maybe_replan()

    def _observe_range(self, earliest_s: float, latest_s: float) -> None:
        """Add a job that ended between two ages, spread over the cells as the current plan expects ends there."""
        last_cell = self._cell(latest_s)
        cells = range(min(self._cell(earliest_s) + 1, last_cell), last_cell + 1)
        survival = self._plan.survival if self._plan.cell_s == self._cell_s else []
        weights = [
            MIN_CELL_WEIGHT + (survival[cell - 1] - survival[cell] if 0 < cell < len(survival) else 0.0)
            for cell in cells
        ]
        total = sum(weights)
        for cell, weight in zip(cells, weights, strict=True):
            self._completed[cell] += weight / total

    def withdraw(self, last_polled_s: float) -> None:
        """Remove a job from the unfinished ones; `last_polled_s` as in `observe`."""
        if last_polled_s > 0:
            cell = self._cell(last_polled_s)
            self._pending[cell] = max(0.0, self._pending[cell] - 1.0)

    # ---- when to poll ------------------------------------------------------------------------------------

    def first_poll_s(self) -> float:
        """Return the seconds from the acceptance to the first poll."""
        return self.next_poll_s(0.0)

    def next_poll_s(self, age_s: float) -> float:
        """Return the seconds from a poll at `age_s`, which found the job unfinished, to the next poll."""
        return max(self.interval_s, self._plan.next_poll_age_s(age_s) - age_s)

    def quantile_s(self) -> float:
        """Return the age by which nearly every job has ended, plus one interval."""
        return self._plan.quantile_s(CALLBACK_QUANTILE) + self.interval_s

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

    # ---- the grid ----------------------------------------------------------------------------------------

    def _cell(self, age_s: float) -> int:
        """Return the first cell that ends at `age_s` or later. Extend the grid, and widen its cells, to reach it."""
        cell = max(0, math.ceil(age_s / self._cell_s - 1e-6))
        while cell >= MAX_CELLS:
            self._double_cells()
            cell = max(0, math.ceil(age_s / self._cell_s - 1e-6))
        missing = cell + 1 - len(self._completed)
        if missing > 0:
            self._completed += [0.0] * missing
            self._pending += [0.0] * missing
        return cell

    def _double_cells(self) -> None:
        """Make the cells twice as wide."""
        self._cell_s *= 2
        for cells in (self._completed, self._pending):
            cells.append(0.0)
            first, rest = cells[0], cells[1:]
            cells[:] = [first] + [sum(rest[at : at + 2]) for at in range(0, len(rest), 2)]

    # ---- the plan ----------------------------------------------------------------------------------------

    def _maybe_replan(self) -> None:
        """Make a new plan if many more jobs have been observed, or the distribution has moved."""
        self._observations += 1
        if self._observations >= self._next_check:
            self._next_check = self._observations + min(DRIFT_CHECK_POLLS, 1 + self._observations // 4)
            self._discount_old()
            survival = self._survival()
            if self._observed_jobs >= self._replan_at_observed or self._drift(survival) > DRIFT_THRESHOLD:
                self._replan_at_observed = 2 * max(EXPLORING_JOBS, self._observed_jobs)
                self._replan(survival)

    def _discount_old(self) -> None:
        """Scale old observations down, so that the plan follows the last minutes."""
        weight = sum(self._completed)
        if weight > MAX_WEIGHT:
            self._completed = [count * MAX_WEIGHT / weight for count in self._completed]

    def _drift(self, survival: list[float]) -> float:
        """Return how far the distribution has moved since the plan was made, at the age where it moved most.

        A difference counts more if fewer jobs reach the age: what the first jobs of a run show about old ages decides
        when all later jobs are polled.
        """
        if self._plan.cell_s != self._cell_s:
            return math.inf
        pairs = zip(survival, self._plan.survival, strict=False)
        return max(abs(now - then) / (then + DRIFT_FLOOR) for now, then in pairs)

    def _survival(self) -> list[float]:
        """Return, by cell, the share of jobs that take longer: the product-limit estimate, with the prior mixed in.

        Beyond the highest observed age, the share falls like a Pareto tail: a job takes about its age longer.
        """
        completed, pending = self._with_prior(), self._pending
        at_risk = sum(completed) + sum(pending)
        share, survival = 1.0, []
        for ended, unfinished in zip_longest(completed, pending, fillvalue=0.0):
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
        prior, weight = _prior(self._cell_s / self.interval_s), 1.0 / (1.0 + self._observed_jobs / PRIOR_HALVED_AFTER)
        return [
            count + weight * prior_count for count, prior_count in zip_longest(self._completed, prior, fillvalue=0.0)
        ]

    def _replan(self, survival: list[float]) -> None:
        spacing = max(1, math.ceil(self.interval_s / self._cell_s - 1e-6))
        next_cells = optimal_polls(survival, spacing, self._lag_weight * self._cell_s / self.interval_s)
        self._plan = _Plan(next_cells, survival, spacing, self._cell_s)
        self.version += 1


@cache
def _prior(cell_intervals: float) -> list[float]:
    """Return, by cell of `cell_intervals` intervals, the jobs for which the document's example counts: log-normal."""
    cells = min(MAX_CELLS, int(4 * PRIOR_MEDIAN / cell_intervals) + 1)
    z_scores = [0.0] + [math.log(cell * cell_intervals / PRIOR_MEDIAN) / PRIOR_SIGMA for cell in range(1, cells)]
    ended = [0.0] + [0.5 * math.erfc(-z / math.sqrt(2)) for z in z_scores[1:]]
    return [0.0] + [PRIOR_WEIGHT * (later - earlier) for earlier, later in pairwise(ended)]


class _Plan:
    """For each cell in which a poll finds a job unfinished, the cell of its next poll."""

    __slots__ = ("_next_cells", "_spacing", "cell_s", "survival")

    def __init__(self, next_cells: list[int], survival: list[float], spacing: int, cell_s: float) -> None:
        self._next_cells = next_cells
        self._spacing = spacing
        self.cell_s = cell_s
        self.survival = survival

    def quantile_s(self, share: float) -> float:
        """Return the age by which this share of the jobs has ended."""
        cell = bisect_left(self.survival, share - 1.0, key=lambda surviving: -surviving)
        return cell * self.cell_s

    def next_poll_age_s(self, age_s: float) -> float:
        """Return the age of the poll after one at `age_s`. Beyond the plan, older jobs are polled less often."""
        cell = int(age_s / self.cell_s + 1e-6)
        if cell < len(self._next_cells):
            return self._next_cells[cell] * self.cell_s
        return age_s + math.sqrt(age_s * self._spacing * self.cell_s)


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
