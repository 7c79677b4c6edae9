"""When to poll a job, from the latencies observed so far.

Two polls of one job are at least `interval_s` apart, and so are the acceptance and the first poll. A late poll costs
lag; an early poll may find the job unfinished. The plan minimises, by dynamic programming over the estimated
latencies,

    polls + lag_weight · lag / interval          lag: from the end of the job to the poll that finds it

The first jobs explore: they are polled more often than planned, because it is not yet known how long jobs take. All
times are seconds since the acceptance of a job, or differences. A plan has the cells of its `LatencyEstimate`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from krea_batch.rules.latency_estimate import CELLS_PER_INTERVAL, LatencyEstimate

EXPLORING_JOBS = 7  # chosen: fewer exploring jobs do not show a bimodal distribution, more cost polls
EXPLORING_GROWTH = 0.2  # chosen: share of its age; an exploring job is polled some 20 times, however long it takes
MIN_EXPLORED_SHARE = 0.05  # chosen: the ages that fewer jobs reach are not worth exploring
FIRST_REPLAN_JOBS = 4  # chosen: completed jobs; the first ones show when the others end
DRIFT_THRESHOLD = 0.1  # chosen: if the distribution has moved by less, a new plan is no better
DRIFT_FLOOR = 0.05  # chosen: share of jobs; differences at ages that fewer jobs reach count less
DRIFT_CHECK_POLLS = 50  # chosen: polls between two checks for drift; more often is no better
OLDER_BY = 1.2  # chosen: factor; a job that is older than all others by less changes the plan little
MIN_POLL_SHARE = 1e-4  # chosen: no poll is placed for a smaller share of jobs
CALLBACK_QUANTILE = 0.99  # chosen: one job in a hundred is polled before its callback
TAIL_COST_POLLS = 3.0  # chosen: cost in polls of a job that takes longer than everything observed so far
RETRY_GROWTH = 2.0
MAX_RETRY_DELAY_S = 60.0  # chosen: the end of an outage is noticed within a minute


class PollSchedule:
    """When to poll each job. `version` grows with each new plan; waiting polls can then be rescheduled.

    No poll is placed later than `timeout_s` after the acceptance, unless the interval requires it.
    """

    __slots__ = (
        "_checked_oldest_units",
        "_lag_weight",
        "_next_check",
        "_observations",
        "_plan",
        "_replan_at_observed",
        "_timeout_s",
        "estimate",
        "interval_s",
        "version",
    )

    def __init__(
        self,
        interval_s: float,
        lag_weight: float = 1.0,
        *,
        timeout_s: float = math.inf,
        estimate: LatencyEstimate | None = None,
    ) -> None:
        """Plan by `estimate`, which takes the observations from now on; by a new one if it is None."""
        self.interval_s = interval_s
        self.version = 0
        self.estimate = estimate or LatencyEstimate(interval_s, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._lag_weight = lag_weight
        self._observations = 0
        self._replan_at_observed = 0  # this many completed jobs cause a new plan, even without drift
        self._check()

    # ---- observations ------------------------------------------------------------------------------------

    def observe(self, latency_s: float, last_polled_s: float = 0.0, *, exact: bool = True) -> None:
        """Add a completed job, as `LatencyEstimate.observe`."""
        self.estimate.observe(latency_s, last_polled_s, exact=exact)
        self._maybe_check()

    def observe_pending(self, age_s: float, last_polled_s: float = 0.0) -> None:
        """Add a poll that found a job unfinished, as `LatencyEstimate.observe_pending`."""
        self.estimate.observe_pending(age_s, last_polled_s)
        self._maybe_check()

    def withdraw(self, last_polled_s: float) -> None:
        """Remove an unfinished job, as `LatencyEstimate.withdraw`."""
        self.estimate.withdraw(last_polled_s)

    # ---- when to poll ------------------------------------------------------------------------------------

    def next_poll_s(self, age_s: float) -> float:
        """Return the seconds to the next poll, from a poll at `age_s` that found the job unfinished.

        At 0, they are the seconds from the acceptance to the first poll.
        """
        known_age_s = min(max(0.0, age_s), self.estimate.max_age_s)
        return self._before_timeout_s(self._plan.next_poll_age_s(known_age_s) - known_age_s, age_s)

    def quantile_s(self) -> float:
        """Return the age by which nearly every job has ended, plus one interval."""
        return self._before_timeout_s(self._plan.quantile_s(CALLBACK_QUANTILE) + self.interval_s, 0.0)

    def _before_timeout_s(self, wait_s: float, age_s: float) -> float:
        """Return the wait from `age_s` on, or a shorter one up to the time-out, but at least the interval."""
        return max(self.interval_s, min(wait_s, self._timeout_s - age_s))

    def first_exploring_poll_s(self, delay: float) -> float:
        """Return the seconds from the acceptance to the first poll of a job that explores, `delay` intervals late."""
        return self._before_timeout_s((1.0 + delay) * self.interval_s, 0.0)

    def exploring_poll_s(self, age_s: float) -> float:
        """Return the seconds from a poll at `age_s` to the next one of a job that explores; at most `next_poll_s`."""
        return max(self.interval_s, min(EXPLORING_GROWTH * age_s, self.next_poll_s(age_s)))

    def is_worth_exploring(self, age_s: float) -> bool:
        """Return whether jobs should explore the time after `age_s`: few have so far, and many may get so old."""
        return (
            self._plan.share_older_than(age_s) >= MIN_EXPLORED_SHARE
            and self.estimate.jobs_older_than(age_s) < EXPLORING_JOBS
        )

    def retry_delay_s(self, failures: int, retry_after_s: float | None) -> float:
        """Return the seconds to the next poll after `failures` consecutive polls without a readable answer."""
        backoff_s = self.interval_s * RETRY_GROWTH ** min(failures - 1, 30)
        return max(self.interval_s, min(backoff_s, MAX_RETRY_DELAY_S), retry_after_s or 0.0)

    # ---- the plan ----------------------------------------------------------------------------------------

    def _maybe_check(self) -> None:
        self._observations += 1
        if (
            self._observations >= self._next_check
            or self.estimate.observed_jobs >= self._replan_at_observed
            or self.estimate.oldest_units > self._checked_oldest_units * OLDER_BY
        ):
            self._check()

    def _check(self) -> None:
        """Make a new plan if many more jobs have been observed, or the distribution has moved."""
        self._next_check = self._observations + min(DRIFT_CHECK_POLLS, 1 + self._observations // 4)
        self._checked_oldest_units = self.estimate.oldest_units
        self.estimate.adapt_cells()
        survival, observed_jobs = self.estimate.survival(), self.estimate.observed_jobs
        if observed_jobs >= self._replan_at_observed or self._drift(survival) > DRIFT_THRESHOLD:
            self._replan_at_observed = max(FIRST_REPLAN_JOBS, 2 * observed_jobs)
            self._replan(survival)

    def _drift(self, survival: list[float]) -> float:
        """Return how far the distribution has moved since the plan was made, at the age where it moved most.

        A difference counts more if fewer jobs reach the age: what the first jobs of a run show about old ages decides
        when all later jobs are polled.
        """
        if self._plan.cell_units != self.estimate.cell_units:
            return math.inf
        pairs = zip(survival, self._plan.survival, strict=False)
        return max(abs(now - then) / (then + DRIFT_FLOOR) for now, then in pairs)

    def _replan(self, survival: list[float]) -> None:
        cell_units = self.estimate.cell_units
        spacing = max(1, math.ceil(CELLS_PER_INTERVAL / cell_units))
        next_cells = optimal_polls(survival, spacing, self._lag_weight * cell_units / CELLS_PER_INTERVAL)
        self._plan = _Plan(next_cells, survival, spacing, cell_units, self.estimate.unit_s)
        self.version += 1


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

    def share_older_than(self, age_s: float) -> float:
        """Return the share of jobs that the plan expects to take longer; 0 beyond the plan."""
        cell = int(age_s / self._cell_s + 1e-6)
        return self.survival[cell] if cell < len(self.survival) else 0.0

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
