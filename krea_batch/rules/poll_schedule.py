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

CELLS_AN_INTERVAL = 20  # chosen: plans on a grid of a twentieth of the interval cost 2 % more than on a finer one
MOST_CELLS = 600  # chosen: a plan is made in some ten milliseconds; longer latencies make the cells wider
SCOUTS = 10  # chosen: the first jobs are looked at every interval, so that short latencies are found out soon
PRIOR_WEIGHT = 3.0  # chosen: before anything is known, three jobs' worth of belief in the document's example
PRIOR_FADES = 50.0  # chosen: after so many jobs it counts for half as much
PRIOR_MEDIAN = 3.0  # intervals; API document: polls every 5-10 s, and a job that took 15 s
PRIOR_SIGMA = 0.6  # chosen: two of three jobs between 1.6 and 5.5 intervals
REMEMBERED = 500.0  # chosen: jobs; enough for a smooth plan, few enough to follow a change within minutes
DRIFT_THRESHOLD = 0.1  # chosen: a distribution that has moved by less makes no better plan
FEW = 0.05  # chosen: a share of jobs; surprises about fewer weigh less
TRUSTED = 0.5  # chosen: an age that half a job has reached, as the prior's counts say, is known no more
TAIL_POWER = 2.0  # chosen: Pareto's; half of those who outlive all others live on for 0.4 times as long
CHECK_EVERY = 25  # chosen: polls between two looks at whether it has moved
VAGUE_SHARE = 0.1  # chosen: a gateway is known for vague after a dozen jobs
EPSILON = 1e-4  # chosen: no cell is ruled out by a belief
NEGLIGIBLE = 1e-4  # chosen: a share of jobs for which no poll is placed
NEARLY_ALL = 0.99  # chosen: one job in a hundred is polled once in vain
TAIL_COST = 3.0  # polls, for a job that outlives everything seen so far
TROUBLE_GROWTH = 2.0
MOST_TROUBLE_S = 60.0  # chosen: an outage is noticed to be over within a minute


class PollSchedule:
    """When each job is polled. `version` grows with each new plan; polls that wait may be set anew then."""

    __slots__ = (
        "_done",
        "_eagerness",
        "_grown",
        "_heard",
        "_learned",
        "_next_check",
        "_open",
        "_planned",
        "_step_s",
        "_vagueness",
        "interval_s",
        "version",
    )

    def __init__(self, interval_s: float, eagerness: float = 1.0) -> None:
        self.interval_s = interval_s
        self.version = 0
        self._eagerness = eagerness
        self._step_s = interval_s / CELLS_AN_INTERVAL
        self._learned = 0
        self._vagueness = 0.0  # share of the latest ends that were not exact
        self._heard = 0
        self._grown = SCOUTS  # as many finished jobs are worth a new plan, surprise or not
        self._next_check = 1
        self._done = [0.0]  # by cell: finished jobs, older ones counting less
        self._open = [0.0]  # by cell: jobs last seen unfinished there
        self._plan(self._survival())

    # ---- what polls have found ---------------------------------------------------------------------------

    def observe(self, latency_s: float, looked_s: float = 0.0, *, exact: bool = True) -> None:
        """A job took `latency_s`, or no longer than that where it is not `exact`.

        `looked_s` is when it was last seen unfinished, 0 where it never was.
        """
        cell = self._cell(latency_s)
        self.withdraw(looked_s)
        if exact:
            self._done[cell] += 1.0
        else:
            self._spread(looked_s, latency_s)
        self._vagueness += ((not exact) - self._vagueness) * VAGUE_SHARE
        self._learned += 1
        self._maybe_replan()

    def observe_pending(self, age_s: float, looked_s: float = 0.0) -> None:
        """A poll at `age_s` found a job unfinished, as one at `looked_s` had, if there was one."""
        self.withdraw(looked_s)
        self._open[self._cell(age_s)] += 1.0
        self._maybe_replan()

    def _spread(self, looked_s: float, latency_s: float) -> None:
        """Count a job that ended somewhere between two ages, where the plan believes that it did."""
        until = self._cell(latency_s)
        cells = range(min(self._cell(looked_s) + 1, until), until + 1)
        planned = self._planned
        surviving = planned.survival if planned.step_s == self._step_s else []
        shares = [
            EPSILON + (surviving[cell - 1] - surviving[cell] if 0 < cell < len(surviving) else 0.0) for cell in cells
        ]
        total = sum(shares)
        for cell, share in zip(cells, shares, strict=True):
            self._done[cell] += share / total

    def withdraw(self, looked_s: float) -> None:
        """A job is no longer one that was last seen unfinished at `looked_s`, 0 where it never was."""
        if looked_s > 0:
            cell = self._cell(looked_s)
            self._open[cell] = max(0.0, self._open[cell] - 1.0)

    # ---- when to look ------------------------------------------------------------------------------------

    def first_s(self) -> float:
        """Seconds after the acceptance at which a job is first polled."""
        return self.next_s(0.0)

    def next_s(self, age_s: float) -> float:
        """Seconds from a poll that found the job unfinished at `age_s` to its next poll."""
        return max(self.interval_s, self._planned.after(age_s) - age_s)

    def quantile_s(self) -> float:
        """Seconds after the acceptance by which nearly every job has ended, and an interval more."""
        return self._planned.most_done_s(NEARLY_ALL) + self.interval_s

    @property
    def exploring(self) -> bool:
        """Whether next to nothing is known, so that a few jobs should be looked at every interval."""
        return self._learned < SCOUTS

    @property
    def imprecise(self) -> bool:
        """Whether the gateway does not say when jobs ended, so that now and then one is looked at early to learn."""
        return self._vagueness > 0.5

    def retry_delay_s(self, troubles: int, retry_after_s: float | None) -> float:
        """Seconds to the next try after `troubles` unreadable answers in a row."""
        grown = self.interval_s * TROUBLE_GROWTH ** min(troubles - 1, 30)
        return max(self.interval_s, min(grown, MOST_TROUBLE_S), retry_after_s or 0.0)

    # ---- parts -------------------------------------------------------------------------------------------

    def _cell(self, age_s: float) -> int:
        """The first cell that ends no sooner than `age_s`; the grid grows, and then widens, to hold it."""
        cell = max(0, math.ceil(age_s / self._step_s - 1e-6))
        while cell >= MOST_CELLS:
            self._widen()
            cell = max(0, math.ceil(age_s / self._step_s - 1e-6))
        missing = cell + 1 - len(self._done)
        if missing > 0:
            self._done += [0.0] * missing
            self._open += [0.0] * missing
        return cell

    def _widen(self) -> None:
        self._step_s *= 2
        for cells in (self._done, self._open):
            cells.append(0.0)
            first, rest = cells[0], cells[1:]
            cells[:] = [first] + [sum(rest[at : at + 2]) for at in range(0, len(rest), 2)]

    def _maybe_replan(self) -> None:
        self._heard += 1
        if self._heard >= self._next_check:
            self._next_check = self._heard + min(CHECK_EVERY, 1 + self._heard // 4)
            self._forget()
            surviving = self._survival()
            if self._learned >= self._grown or self._surprise(surviving) > DRIFT_THRESHOLD:
                self._grown = 2 * max(SCOUTS, self._learned)
                self._plan(surviving)

    def _forget(self) -> None:
        """Let older jobs count for less, so that those of the last minutes decide."""
        weight = sum(self._done)
        if weight > REMEMBERED:
            self._done = [count * REMEMBERED / weight for count in self._done]

    def _surprise(self, surviving: list[float]) -> float:
        """How far the distribution has moved since the plan was made, at the age where it has moved most.

        Differences count the more, the fewer jobs are left at an age: what the leaders of a run find out about old
        age decides when all the others are looked at.
        """
        planned = self._planned.survival
        if self._planned.step_s != self._step_s:
            return math.inf
        ends = zip(surviving, planned, strict=False)
        return max(abs(now - then) / (then + FEW) for now, then in ends)

    def _survival(self) -> list[float]:
        """By cell, the share of jobs that take longer: the product-limit estimate, with the prior mixed in.

        Beyond the age that anybody reached, who has lived so long is taken to live on for about as long again.
        """
        done, open_ = self._with_prior(), self._open
        at_risk = sum(done) + sum(open_)
        share, surviving = 1.0, []
        for ended, unfinished in zip_longest(done, open_, fillvalue=0.0):
            if at_risk < TRUSTED:
                break
            share *= max(0.0, 1.0 - ended / at_risk)
            surviving.append(share)
            at_risk -= ended + unfinished
        edge = max(1, len(surviving) - 1)
        beyond = range(len(surviving), min(MOST_CELLS, 3 * edge))
        return surviving + [share * (edge / cell) ** TAIL_POWER for cell in beyond]

    def _with_prior(self) -> list[float]:
        """The finished jobs, and a few that nobody has seen."""
        prior, weight = _prior(self._step_s / self.interval_s), 1.0 / (1.0 + self._learned / PRIOR_FADES)
        return [count + weight * belief for count, belief in zip_longest(self._done, prior, fillvalue=0.0)]

    def _plan(self, surviving: list[float]) -> None:
        spacing = max(1, math.ceil(self.interval_s / self._step_s - 1e-6))
        following = best_polls(surviving, spacing, self._eagerness * self._step_s / self.interval_s)
        self._planned = _Plan(following, surviving, spacing, self._step_s)
        self.version += 1


@cache
def _prior(step: float) -> list[float]:
    """By cell of so many intervals, how many jobs the document's example is worth."""
    cells = min(MOST_CELLS, int(4 * PRIOR_MEDIAN / step) + 1)
    until = [0.0] + [math.log(cell * step / PRIOR_MEDIAN) / PRIOR_SIGMA for cell in range(1, cells)]
    ended = [0.0] + [0.5 * math.erfc(-z / math.sqrt(2)) for z in until[1:]]
    return [0.0] + [PRIOR_WEIGHT * (later - earlier) for earlier, later in pairwise(ended)]


class _Plan:
    """For each cell at which a job is found unfinished, the cell of its next poll."""

    __slots__ = ("_following", "_spacing", "step_s", "survival")

    def __init__(self, following: list[int], survival: list[float], spacing: int, step_s: float) -> None:
        self._following = following
        self._spacing = spacing
        self.step_s = step_s
        self.survival = survival

    def most_done_s(self, share: float) -> float:
        """The age at which so many jobs have ended."""
        cell = bisect_left(self.survival, share - 1.0, key=lambda alive: -alive)
        return cell * self.step_s

    def after(self, age_s: float) -> float:
        """The age of the poll that follows one at `age_s`. Beyond everything seen, the older the rarer."""
        cell = int(age_s / self.step_s + 1e-6)
        if cell < len(self._following):
            return self._following[cell] * self.step_s
        return age_s + math.sqrt(age_s * self._spacing * self.step_s)


def best_polls(surviving: Sequence[float], spacing: int, lag_cost: float) -> list[int]:
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
    cost[last] = TAIL_COST * surviving[-1]
    following = [0] * last
    worth_it = [last]  # cells after which fewer are left; a poll elsewhere sees nothing that one before did not
    for cell in range(last - 1, -1, -1):
        if cell + spacing < last and surviving[cell + spacing - 1] - surviving[cell + spacing] > NEGLIGIBLE:
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
