"""Separate poll schedules for kinds of jobs with different latencies.

The kind of a job is every field of its request that may change how long it takes: aspect ratio and creativity. At
first, all jobs share one schedule, which has the most observations. A kind gets its own schedule once its latencies
differ significantly from those of all other kinds. This is decided by the log-rank test, in the version that takes
the largest difference up to any age (Fleming, Harrington and O'Sullivan, 1987). The test counts unfinished jobs as
well. So if the jobs of one kind have ended and those of another have not, it shows the difference long before the
latter end.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from itertools import zip_longest

from krea_batch.rules.latency_estimate import LatencyEstimate, jobs_by_cell
from krea_batch.rules.poll_schedule import EXPLORING_JOBS, PollSchedule

MAX_EXPLORING_JOBS = 60  # chosen: for all kinds together; dozens of kinds must not make most jobs explore
TEST_EVERY = 2  # chosen: polls of a kind between two tests at first; the sooner a difference is found, the better
MAX_TEST_EVERY = 50  # chosen: polls between two tests later, when one more poll changes little
MIN_VARIANCE = 0.5  # chosen: of the difference in jobs; the test is not valid for one or two ends
SPLIT_ABOVE = 3.5  # standard deviations; exceeded by chance once in a thousand tests
MERGE_BELOW = 2.0  # standard deviations; kinds that are equal are below in nine of ten tests


class PollSchedules:
    """The poll schedules of one run. `version` grows with each new plan of any of them.

    No poll is placed later than `timeout_s` after the acceptance, unless the interval requires it.
    """

    def __init__(self, interval_s: float, lag_weight: float = 1.0, *, timeout_s: float = math.inf) -> None:
        self._new_schedule = partial(PollSchedule, interval_s, lag_weight, timeout_s=timeout_s)
        self._new_estimate = partial(LatencyEstimate, interval_s, timeout_s=timeout_s)
        self.shared = self._new_schedule()
        self._by_kind: dict[str, PollSchedule] = {}
        self._estimates: dict[str, LatencyEstimate] = {}  # by kind
        self._observations: Counter[str] = Counter()  # by kind
        self._next_test: dict[str, int] = {}  # by kind: after how many observations
        self._merged_versions = 0  # versions of schedules that were merged into the shared one
        self._exploring: Counter[str] = Counter()  # by kind: the jobs that began to explore

    @property
    def version(self) -> int:
        return self.shared.version + self._merged_versions + sum(own.version for own in self._by_kind.values())

    def for_kind(self, kind: str) -> PollSchedule:
        """Return the schedule for jobs of this kind."""
        return self._by_kind.get(kind, self.shared) if self._by_kind else self.shared

    def first_exploring_poll_s(self, kind: str) -> float | None:
        """Return the seconds from the acceptance to the first poll of a job that explores, None if this job does not.

        The first polls of these jobs are spread over one interval, so that together they see every age.
        """
        begun = self._exploring[kind]
        known = self._estimate(kind).observed_jobs >= EXPLORING_JOBS
        if known or begun >= EXPLORING_JOBS or self._exploring.total() >= MAX_EXPLORING_JOBS:
            return None
        self._exploring[kind] += 1
        return self.shared.first_exploring_poll_s(begun / EXPLORING_JOBS)

    # ---- observations ------------------------------------------------------------------------------------

    def observe(self, kind: str, latency_s: float, last_polled_s: float = 0.0, *, exact: bool = True) -> None:
        """Add a completed job, as `PollSchedule.observe`."""
        # The test comes first, because it may avert a new shared plan, which would cause polls of all kinds.
        if (own := self._own(kind)) is not None:
            own.observe(latency_s, last_polled_s, exact=exact)
            self._maybe_test(kind)
        self.shared.observe(latency_s, last_polled_s, exact=exact)

    def observe_pending(self, kind: str, age_s: float, last_polled_s: float = 0.0) -> None:
        """Add a poll that found a job unfinished, as `PollSchedule.observe_pending`."""
        if (own := self._own(kind)) is not None:
            own.observe_pending(age_s, last_polled_s)
            self._maybe_test(kind)
        self.shared.observe_pending(age_s, last_polled_s)

    def withdraw(self, kind: str, last_polled_s: float) -> None:
        """Remove an unfinished job, as `PollSchedule.withdraw`."""
        self.shared.withdraw(last_polled_s)
        if (own := self._own(kind)) is not None:
            own.withdraw(last_polled_s)

    def _own(self, kind: str) -> PollSchedule | LatencyEstimate | None:
        """Return what takes observations of this kind besides the shared schedule; None for a single kind."""
        estimate = self._estimate(kind)
        return None if estimate is self.shared.estimate else self._by_kind.get(kind, estimate)

    def _estimate(self, kind: str) -> LatencyEstimate:
        """Return the estimate of a kind. While there is a single kind, the shared schedule plans by it."""
        if kind not in self._estimates:
            for first_kind, estimate in self._estimates.items():
                if estimate is self.shared.estimate:
                    self._estimates[first_kind] = deepcopy(estimate)
            self._estimates[kind] = self._new_estimate() if self._estimates else self.shared.estimate
        return self._estimates[kind]

    # ---- the test ----------------------------------------------------------------------------------------

    def _maybe_test(self, kind: str) -> None:
        self._observations[kind] = observations = self._observations[kind] + 1
        if observations >= self._next_test.setdefault(kind, TEST_EVERY):
            self._next_test[kind] = observations + max(TEST_EVERY, min(MAX_TEST_EVERY, observations // 4))
            self._split_or_merge(kind)

    def _split_or_merge(self, kind: str) -> None:
        """Give a kind its own schedule if its latencies differ from all others; else let it use the shared one."""
        estimate = self._estimates[kind]
        others = [other for other in self._estimates.values() if other is not estimate]
        cell_units = self.shared.estimate.cell_units
        deviation = log_rank(*_by_cell([estimate], cell_units), *_by_cell(others, cell_units))
        if deviation is None:
            return
        if deviation > SPLIT_ABOVE and kind not in self._by_kind:
            self._by_kind[kind] = self._new_schedule(estimate=estimate)
        elif deviation < MERGE_BELOW and kind in self._by_kind:
            self._merged_versions += self._by_kind.pop(kind).version + 1


def _by_cell(estimates: Iterable[LatencyEstimate], cell_units: int) -> tuple[list[float], list[float]]:
    """Return, by cell, the jobs of these estimates that ended there, and those that were unfinished there."""
    ended: dict[int, float] = defaultdict(float)
    pending: dict[int, float] = defaultdict(float)
    for estimate in estimates:
        for counts, added in ((ended, estimate.ended_units()), (pending, estimate.pending_units())):
            for age, count in added.items():
                counts[age] += count
    return jobs_by_cell(ended, cell_units), jobs_by_cell(pending, cell_units)


def log_rank(
    ended: list[float], pending: list[float], other_ended: list[float], other_pending: list[float]
) -> float | None:
    """Return by how many standard deviations two samples differ, None if too few jobs ended for the test.

    Each sample has, by cell, the jobs that ended there, and those that were unfinished there when last polled.
    """
    at_risk, others_at_risk = sum(ended) + sum(pending), sum(other_ended) + sum(other_pending)
    difference = largest = variance = 0.0
    for own, own_pending, other, pending_there in zip_longest(
        ended, pending, other_ended, other_pending, fillvalue=0.0
    ):
        total, ends = at_risk + others_at_risk, own + other
        if ends > 0 and total > 1:
            difference += own - ends * at_risk / total
            variance += ends * at_risk * others_at_risk / total**2 * max(0.0, total - ends) / (total - 1)
            largest = max(largest, abs(difference))
        at_risk -= own + own_pending
        others_at_risk -= other + pending_there
        if min(at_risk, others_at_risk) <= 1e-9:
            break
    return largest / math.sqrt(variance) if variance > MIN_VARIANCE else None
