"""What polls have found comes in, with the kind of the job; the schedule that suits the kind goes out.

Newcomers: a kind is whatever of a request may change how long it takes (its aspect ratio and creativity). All jobs
share one schedule, which knows most, until the latencies of a kind differ from those of all others beyond chance (the
two-sample test of Kolmogorov and Smirnov); from then on the kind has one of its own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque

from krea_batch.rules.poll_schedule import PollSchedule

REMEMBERED = 200  # chosen: latencies of a kind; enough for the test, and to begin a schedule with
LEAST = 20  # chosen: fewer of a kind say too little
CHECK_EVERY = 10  # chosen: jobs of a kind between two tests
CRITICAL = 1.95  # Kolmogorov-Smirnov: by chance once in a thousand tests


class PollSchedules:
    """The schedules of one run. `version` grows with each new plan of any of them."""

    def __init__(self, interval_s: float, eagerness: float = 1.0) -> None:
        self.shared = PollSchedule(interval_s, eagerness)
        self._interval_s = interval_s
        self._eagerness = eagerness
        self._own: dict[str, PollSchedule] = {}
        self._lately_s: dict[str, deque[float]] = {}
        self._heard: dict[str, int] = {}
        self._gone = 0  # plans of schedules that are no more

    @property
    def version(self) -> int:
        return self.shared.version + self._gone + sum(own.version for own in self._own.values())

    def for_kind(self, kind: str) -> PollSchedule:
        """The schedule for jobs of this kind."""
        return self._own.get(kind, self.shared) if self._own else self.shared

    def learn(self, kind: str, latency_s: float, looked_s: float = 0.0, *, exact: bool = True) -> None:
        """As `Schedule.learn`."""
        self.shared.observe(latency_s, looked_s, exact=exact)
        if own := self._own.get(kind):
            own.observe(latency_s, looked_s, exact=exact)
        self._lately_s.setdefault(kind, deque(maxlen=REMEMBERED)).append(latency_s)
        self._heard[kind] = heard = self._heard.get(kind, 0) + 1
        if len(self._heard) > 1 and heard >= LEAST and heard % CHECK_EVERY == 0:
            self._split_or_merge(kind)

    def unfinished(self, kind: str, age_s: float, looked_s: float = 0.0) -> None:
        """As `Schedule.unfinished`."""
        self.shared.observe_pending(age_s, looked_s)
        if own := self._own.get(kind):
            own.observe_pending(age_s, looked_s)

    def lost(self, kind: str, looked_s: float) -> None:
        """As `Schedule.lost`."""
        self.shared.withdraw(looked_s)
        if own := self._own.get(kind):
            own.withdraw(looked_s)

    def _split_or_merge(self, kind: str) -> None:
        """Give the kind a schedule of its own where its jobs take another time than all others, and only there."""
        ours = self._lately_s[kind]
        others = [latency_s for other, lately_s in self._lately_s.items() if other != kind for latency_s in lately_s]
        if len(others) < LEAST:
            return
        different = ks_distance(ours, others) > CRITICAL * math.sqrt(
            (len(ours) + len(others)) / (len(ours) * len(others))
        )
        if different and kind not in self._own:
            own = self._own[kind] = PollSchedule(self._interval_s, self._eagerness)
            for latency_s in ours:
                own.observe(latency_s)
        elif not different and kind in self._own:
            self._gone += self._own.pop(kind).version + 1


def ks_distance(some: deque[float], others: list[float]) -> float:
    """The largest difference between the shares of two samples that are below the same value (Kolmogorov-Smirnov)."""
    first, second = sorted(some), sorted(others)
    return max(
        abs(bisect_right(first, value) / len(first) - bisect_right(second, value) / len(second))
        for value in (*first, *second)
    )
