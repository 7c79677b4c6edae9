"""What polls have found comes in; when to look at a job next goes out.

Newcomers: two polls of one job are never closer than `interval_s`, and that includes the first one after the
acceptance. What is chosen is how much later than that a look is worth its request: the plan minimises, by dynamic
programming over the latencies seen so far,

    polls + eagerness · lag / interval          lag: from the job's end to the poll that sees it

The latencies are estimated as survival analysis does (Kaplan and Meier, 1958), so that jobs which are still
unfinished count for what they tell. All times are seconds since the job was accepted, or gaps in seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, zip_longest

CELLS_PER_INTERVAL = 20  # chosen: plans on a grid of a twentieth of the interval cost 2 % more than on a finer one
MAX_CELLS = 600  # chosen: a plan is made in some ten milliseconds; longer latencies make the cells wider
EXPLORING_JOBS = 10  # chosen: the first jobs are looked at every interval, so that short latencies are found out soon
PRIOR_WEIGHT = 3.0  # chosen: before anything is known, three jobs' worth of belief in the document's example
PRIOR_HALVED_AFTER = 50.0  # chosen: after so many jobs it counts for half as much
PRIOR_MEDIAN = 3.0  # intervals; API document: polls every 5-10 s, and a job that took 15 s
PRIOR_SIGMA = 0.6  # chosen: two of three jobs between 1.6 and 5.5 intervals
MAX_WEIGHT = 500.0  # chosen: jobs; enough for a smooth plan, few enough to follow a change within minutes
DRIFT_THRESHOLD = 0.1  # chosen: a distribution that has moved by less makes no better plan
DRIFT_FLOOR = 0.05  # chosen: a share of jobs; surprises about fewer weigh less
MIN_AT_RISK = 0.5  # chosen: an age that half a job has reached, as the prior's counts say, is known no more
TAIL_POWER = 2.0  # chosen: Pareto's; half of those who outlive all others live on for 0.4 times as long
DRIFT_CHECK_POLLS = 25  # chosen: polls between two looks at whether it has moved
IMPRECISION_WEIGHT = 0.1  # chosen: a gateway is known for vague after a dozen jobs
MIN_CELL_WEIGHT = 1e-4  # chosen: no cell is ruled out by a belief
MIN_POLL_SHARE = 1e-4  # chosen: a share of jobs for which no poll is placed
CALLBACK_QUANTILE = 0.99  # chosen: one job in a hundred is polled once in vain
TAIL_COST_POLLS = 3.0  # polls, for a job that outlives everything seen so far
RETRY_GROWTH = 2.0
MAX_RETRY_DELAY_S = 60.0  # chosen: an outage is noticed to be over within a minute


class PollSchedule:
    """When each job is polled. `version` grows with each new plan; polls that wait may be set anew then."""

    __slots__ = (
        "_cell_s",
        "_completed",
        "_imprecise_share",
        "_lag_weight",
        "_next_check",
        "_observations",
        "_observed_jobs",
        "_pending",
        "_replan_at_observed",
        "interval_s",
        "next_cells",
        "version",
    )

    def __init__(self, interval_s: float, lag_weight: float = 1.0) -> None:
        self.interval_s = interval_s
        self.version = 0
        self._lag_weight = lag_weight
        self._cell_s = interval_s / CELLS_PER_INTERVAL
        self._observed_jobs = 0
        self._imprecise_share = 0.0  # share of the latest ends that were not exact
        self._observations = 0
        self._replan_at_observed = EXPLORING_JOBS  # as many finished jobs are worth a new plan, surprise or not
        self._next_check = 1
        self._completed = [0.0]  # by cell: finished jobs, older ones counting less
        self._pending = [0.0]  # by cell: jobs last seen unfinished there
        self._make_plan(self._survival())

    # ---- what polls have found ---------------------------------------------------------------------------

    def observe(self, latency_s: float, last_polled_s: float = 0.0, *, exact: bool = True) -> None:
        """A job took `latency_s`, or no longer than that where it is not `exact`.

        `looked_s` is when it was last seen unfinished, 0 where it never was.
        """
        cell = self._cell(latency_s)
        self.withdraw(last_polled_s)
        if exact:
            self._completed[cell] += 1.0
        else:
            self._observe_interval(last_polled_s, latency_s)
        self._imprecise_share += ((not exact) - self._imprecise_share) * IMPRECISION_WEIGHT
        self._observed_jobs += 1
        self._maybe_replan()

    def observe_pending(self, age_s: float, last_polled_s: float = 0.0) -> None:
        """A poll at `age_s` found a job unfinished, as one at `looked_s` had, if there was one."""
        self.withdraw(last_polled_s)
        self._pending[self._cell(age_s)] += 1.0
        self._maybe_replan()

    def _observe_interval(self, looked_s: float, latency_s: float) -> None:
        """Count a job that ended somewhere between two ages, where the plan believes that it did."""
        until = self._cell(latency_s)
        cells = range(min(self._cell(looked_s) + 1, until), until + 1)
        planned = self.next_cells
        surviving = planned.survival if planned.cell_s == self._cell_s else []
        shares = [
            MIN_CELL_WEIGHT + (surviving[cell - 1] - surviving[cell] if 0 < cell < len(surviving) else 0.0)
            for cell in cells
        ]
        total = sum(shares)
        for cell, share in zip(cells, shares, strict=True):
            self._completed[cell] += share / total

    def withdraw(self, last_polled_s: float) -> None:
        """A job is no longer one that was last seen unfinished at `looked_s`, 0 where it never was."""
        if last_polled_s > 0:
            cell = self._cell(last_polled_s)
            self._pending[cell] = max(0.0, self._pending[cell] - 1.0)

    # ---- when to look ------------------------------------------------------------------------------------

    def first_poll_s(self) -> float:
        """Seconds after the acceptance at which a job is first polled."""
        return self.next_poll_s(0.0)

    def next_poll_s(self, age_s: float) -> float:
        """Seconds from a poll that found the job unfinished at `age_s` to its next poll."""
        return max(self.interval_s, self.next_cells.next_poll_s(age_s) - age_s)

    def quantile_s(self) -> float:
        """Seconds after the acceptance by which nearly every job has ended, and an interval more."""
        return self.next_cells.quantile_s(CALLBACK_QUANTILE) + self.interval_s

    @property
    def exploring(self) -> bool:
        """Whether next to nothing is known, so that a few jobs should be looked at every interval."""
        return self._observed_jobs < EXPLORING_JOBS

    @property
    def imprecise(self) -> bool:
        """Whether the gateway does not say when jobs ended, so that now and then one is looked at early to learn."""
        return self._imprecise_share > 0.5

    def retry_delay_s(self, failures: int, retry_after_s: float | None) -> float:
        """Seconds to the next try after `troubles` unreadable answers in a row."""
        backoff_s = self.interval_s * RETRY_GROWTH ** min(failures - 1, 30)
        return max(self.interval_s, min(backoff_s, MAX_RETRY_DELAY_S), retry_after_s or 0.0)

    # ---- parts -------------------------------------------------------------------------------------------

    def _cell(self, age_s: float) -> int:
        """The first cell that ends no sooner than `age_s`; the grid grows, and then widens, to hold it."""
        cell = max(0, math.ceil(age_s / self._cell_s - 1e-6))
        while cell >= MAX_CELLS:
            self._widen()
            cell = max(0, math.ceil(age_s / self._cell_s - 1e-6))
        missing = cell + 1 - len(self._completed)
        if missing > 0:
            self._completed += [0.0] * missing
            self._pending += [0.0] * missing
        return cell

    def _widen(self) -> None:
        self._cell_s *= 2
        for cells in (self._completed, self._pending):
            cells.append(0.0)
            first, rest = cells[0], cells[1:]
            cells[:] = [first] + [sum(rest[at : at + 2]) for at in range(0, len(rest), 2)]

    def _maybe_replan(self) -> None:
        self._observations += 1
        if self._observations >= self._next_check:
            self._next_check = self._observations + min(DRIFT_CHECK_POLLS, 1 + self._observations // 4)
            self._discount_old()
            surviving = self._survival()
            if self._observed_jobs >= self._replan_at_observed or self._drift(surviving) > DRIFT_THRESHOLD:
                self._replan_at_observed = 2 * max(EXPLORING_JOBS, self._observed_jobs)
                self._make_plan(surviving)

    def _discount_old(self) -> None:
        """Let older jobs count for less, so that those of the last minutes decide."""
        weight = sum(self._completed)
        if weight > MAX_WEIGHT:
            self._completed = [count * MAX_WEIGHT / weight for count in self._completed]

    def _drift(self, surviving: list[float]) -> float:
        """How far the distribution has moved since the plan was made, at the age where it has moved most.

        Differences count the more, the fewer jobs are left at an age: what the leaders of a run find out about old
        age decides when all the others are looked at.
        """
        planned = self.next_cells.survival
        if self.next_cells.cell_s != self._cell_s:
            return math.inf
        ends = zip(surviving, planned, strict=False)
        return max(abs(now - then) / (then + DRIFT_FLOOR) for now, then in ends)

    def _survival(self) -> list[float]:
        """By cell, the share of jobs that take longer: the product-limit estimate, with the prior mixed in.

        Beyond the age that anybody reached, who has lived so long is taken to live on for about as long again.
        """
        done, open_ = self._with_prior(), self._pending
        at_risk = sum(done) + sum(open_)
        share, surviving = 1.0, []
        for ended, unfinished in zip_longest(done, open_, fillvalue=0.0):
            if at_risk < MIN_AT_RISK:
                break
            share *= max(0.0, 1.0 - ended / at_risk)
            surviving.append(share)
            at_risk -= ended + unfinished
        last_known = max(1, len(surviving) - 1)
        beyond = range(len(surviving), min(MAX_CELLS, 3 * last_known))
        return surviving + [share * (last_known / cell) ** TAIL_POWER for cell in beyond]

    def _with_prior(self) -> list[float]:
        """The finished jobs, and a few that nobody has seen."""
        prior, weight = _prior(self._cell_s / self.interval_s), 1.0 / (1.0 + self._observed_jobs / PRIOR_HALVED_AFTER)
        return [
            count + weight * prior_count for count, prior_count in zip_longest(self._completed, prior, fillvalue=0.0)
        ]

    def _make_plan(self, surviving: list[float]) -> None:
        spacing = max(1, math.ceil(self.interval_s / self._cell_s - 1e-6))
        following = optimal_polls(surviving, spacing, self._lag_weight * self._cell_s / self.interval_s)
        self.next_cells = _Plan(following, surviving, spacing, self._cell_s)
        self.version += 1


@cache
def _prior(cell_intervals: float) -> list[float]:
    """By cell of so many intervals, how many jobs the document's example is worth."""
    cells = min(MAX_CELLS, int(4 * PRIOR_MEDIAN / cell_intervals) + 1)
    z_scores = [0.0] + [math.log(cell * cell_intervals / PRIOR_MEDIAN) / PRIOR_SIGMA for cell in range(1, cells)]
    ended = [0.0] + [0.5 * math.erfc(-z / math.sqrt(2)) for z in z_scores[1:]]
    return [0.0] + [PRIOR_WEIGHT * (later - earlier) for earlier, later in pairwise(ended)]


class _Plan:
    """For each cell at which a job is found unfinished, the cell of its next poll."""

    __slots__ = ("_next_cells", "_spacing", "cell_s", "survival")

    def __init__(self, next_cells: list[int], survival: list[float], spacing: int, cell_s: float) -> None:
        self._next_cells = next_cells
        self._spacing = spacing
        self.cell_s = cell_s
        self.survival = survival

    def quantile_s(self, share: float) -> float:
        """The age at which so many jobs have ended."""
        cell = bisect_left(self.survival, share - 1.0, key=lambda alive: -alive)
        return cell * self.cell_s

    def next_poll_s(self, age_s: float) -> float:
        """The age of the poll that follows one at `age_s`. Beyond everything seen, the older the rarer."""
        cell = int(age_s / self.cell_s + 1e-6)
        if cell < len(self._next_cells):
            return self._next_cells[cell] * self.cell_s
        return age_s + math.sqrt(age_s * self._spacing * self.cell_s)


def optimal_polls(surviving: Sequence[float], spacing: int, lag_cost: float) -> list[int]:
    """By cell, the best cell for the next poll of a job that is found unfinished there.

    `surviving` gives by cell the share of jobs that take longer, `spacing` the least cells between two polls,
    `lag_cost` the cost of one cell of lag; a poll costs 1. Jobs end at the end of their cell.
    """
    last = len(surviving)  # a poll here, after the last cell, sees whoever is left once in a while
    lag = [0.0] * (last + 1)  # of everybody who ends before, at a poll in this cell, from the start on
    for cell in range(1, last + 1):
        ended = 1.0 - surviving[cell - 1]
        lag[cell] = lag[cell - 1] + ended
    cost = [0.0] * (last + 1)
    cost[last] = TAIL_COST_POLLS * surviving[-1]
    following = [0] * last
    worth_it = [last]  # cells after which fewer are left; a poll elsewhere sees nothing that one before did not
    for cell in range(last - 1, -1, -1):
        if cell + spacing < last and surviving[cell + spacing - 1] - surviving[cell + spacing] > MIN_POLL_SHARE:
            worth_it.append(cell + spacing)
        alive = surviving[cell]
        ended, base = 1.0 - alive, lag[cell]
        chosen = min(cell + spacing, last)
        best = lag_cost * (lag[chosen] - base - (chosen - cell) * ended) + cost[chosen]
        for poll in reversed(worth_it):
            waiting = lag_cost * (lag[poll] - base - (poll - cell) * ended)
            if waiting >= best:
                break
            total = waiting + cost[poll]
            if total < best - 1e-12:
                best, chosen = total, poll
        cost[cell] = alive + best
        following[cell] = chosen if alive > 1e-9 else cell + spacing
    return following
