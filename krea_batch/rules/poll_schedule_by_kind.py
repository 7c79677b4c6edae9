"""Separate poll schedules for jobs that take differently long.

The kind of a job is every field of its request that may change how long it takes: aspect ratio and creativity. All
jobs share one schedule, which has the most observations. A kind gets its own schedule once its latencies differ
significantly from those of all other kinds (two-sample Kolmogorov-Smirnov test).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from functools import partial

from krea_batch.rules.poll_schedule import PollSchedule

SAMPLE_SIZE = 200  # chosen: latencies per kind; enough for the test, and to start a schedule with
MIN_SAMPLE_SIZE = 20  # chosen: fewer latencies of a kind prove too little
KS_TEST_EVERY = 10  # chosen: jobs of a kind between two tests
KS_CRITICAL = 1.95  # Kolmogorov-Smirnov: exceeded by chance once in a thousand tests


class PollSchedules:
    """The poll schedules of one run. `version` grows with each new plan of any of them.

    No poll is placed later than `timeout_s` after the acceptance, unless the interval requires it.
    """

    def __init__(self, interval_s: float, lag_weight: float = 1.0, *, timeout_s: float = math.inf) -> None:
        self._new_schedule = partial(PollSchedule, interval_s, lag_weight, timeout_s=timeout_s)
        self.shared = self._new_schedule()
        self._by_kind: dict[str, PollSchedule] = {}
        self._recent_s: dict[str, deque[float]] = {}  # by kind: the latest latencies
        self._observed: dict[str, int] = {}  # by kind: the number of completed jobs
        self._merged_versions = 0  # versions of schedules that were merged into the shared one

    @property
    def version(self) -> int:
        return self.shared.version + self._merged_versions + sum(own.version for own in self._by_kind.values())

    def for_kind(self, kind: str) -> PollSchedule:
        """Return the schedule for jobs of this kind."""
        return self._by_kind.get(kind, self.shared) if self._by_kind else self.shared

    def observe(self, kind: str, latency_s: float, last_polled_s: float = 0.0, *, exact: bool = True) -> None:
        """Add a completed job, as `PollSchedule.observe`."""
        self.shared.observe(latency_s, last_polled_s, exact=exact)
        if own := self._by_kind.get(kind):
            own.observe(latency_s, last_polled_s, exact=exact)
        self._recent_s.setdefault(kind, deque(maxlen=SAMPLE_SIZE)).append(latency_s)
        self._observed[kind] = observed = self._observed.get(kind, 0) + 1
        if len(self._observed) > 1 and observed >= MIN_SAMPLE_SIZE and observed % KS_TEST_EVERY == 0:
            self._split_or_merge(kind)

    def observe_pending(self, kind: str, age_s: float, last_polled_s: float = 0.0) -> None:
        """Add a poll that found a job unfinished, as `PollSchedule.observe_pending`."""
        self.shared.observe_pending(age_s, last_polled_s)
        if own := self._by_kind.get(kind):
            own.observe_pending(age_s, last_polled_s)

    def withdraw(self, kind: str, last_polled_s: float) -> None:
        """Remove an unfinished job, as `PollSchedule.withdraw`."""
        self.shared.withdraw(last_polled_s)
        if own := self._by_kind.get(kind):
            own.withdraw(last_polled_s)

    def _split_or_merge(self, kind: str) -> None:
        """Give a kind its own schedule if its latencies differ from all others; else let it use the shared one."""
        own_latencies_s = self._recent_s[kind]
        other_latencies_s = [
            latency_s
            for other_kind, recent_s in self._recent_s.items()
            if other_kind != kind
            for latency_s in recent_s
        ]
        if len(other_latencies_s) < MIN_SAMPLE_SIZE:
            return
        n, m = len(own_latencies_s), len(other_latencies_s)
        different = ks_distance(own_latencies_s, other_latencies_s) > KS_CRITICAL * math.sqrt((n + m) / (n * m))
        if different and kind not in self._by_kind:
            own = self._by_kind[kind] = self._new_schedule()
            for latency_s in own_latencies_s:
                own.observe(latency_s)
        elif not different and kind in self._by_kind:
            self._merged_versions += self._by_kind.pop(kind).version + 1


def ks_distance(sample: deque[float], other_sample: list[float]) -> float:
    """Return the largest difference between the empirical distributions of two samples (Kolmogorov-Smirnov)."""
    first, second = sorted(sample), sorted(other_sample)
    return max(
        abs(bisect_right(first, value) / len(first) - bisect_right(second, value) / len(second))
        for value in (*first, *second)
    )
