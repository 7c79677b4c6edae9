"""Latencies of finished jobs come in; when to look at a job next goes out.

Newcomers: two polls of one job are never closer than `interval_s`, and that includes the first one after the
acceptance. What is chosen is only how much later than that a look is worth its request. All times are seconds
since the job was accepted, or gaps in seconds.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque

LEARN_FROM = 20  # chosen: fewer latencies say too little about the shape of their distribution
REMEMBER = 500  # chosen: enough for a smooth quantile, few enough to follow a change within minutes
FIRST_LOOK_SHARE = 0.5  # chosen: half of the jobs are found finished at their first poll
WORTH_SHARE = 0.5  # chosen: a poll is due once half of the jobs still open should have finished
MOST_INTERVALS = 4.0  # chosen: no job is left unseen for longer, whatever was learned
TROUBLE_GROWTH = 2.0
MOST_TROUBLE_S = 60.0  # chosen: an outage is noticed to be over within a minute


class Schedule:
    """When each job is polled. Knows the latencies seen so far; quantiles of them place the next polls."""

    __slots__ = ("_recent", "_sorted", "interval_s")

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def learn(self, latency_s: float) -> None:
        """A job was finished `latency_s` after it was accepted (the upper bound that polls give)."""
        if len(self._recent) == REMEMBER:
            oldest = self._recent.popleft()
            del self._sorted[bisect_right(self._sorted, oldest) - 1]
        self._recent.append(latency_s)
        insort(self._sorted, latency_s)

    def first_s(self) -> float:
        """Seconds after the acceptance at which a job is first polled."""
        if len(self._sorted) < LEARN_FROM:
            return self.interval_s
        return self._at_least_interval(self._quantile(0, FIRST_LOOK_SHARE))

    def next_s(self, age_s: float) -> float:
        """Seconds from a poll that found the job unfinished at `age_s` to its next poll."""
        if len(self._sorted) < LEARN_FROM:
            return self.interval_s
        passed = bisect_right(self._sorted, age_s)
        if passed == len(self._sorted):
            return self.interval_s
        return self._at_least_interval(self._quantile(passed, WORTH_SHARE) - age_s)

    def after_trouble_s(self, troubles: int, retry_after_s: float | None) -> float:
        """Seconds to the next try after `troubles` unreadable answers in a row."""
        grown = self.interval_s * TROUBLE_GROWTH ** min(troubles - 1, 30)
        return max(self.interval_s, min(grown, MOST_TROUBLE_S), retry_after_s or 0.0)

    def _quantile(self, passed: int, share: float) -> float:
        """The latency by which `share` of the jobs beyond the first `passed` ones had finished."""
        left = len(self._sorted) - passed
        return self._sorted[passed + min(left - 1, int(left * share))]

    def _at_least_interval(self, gap_s: float) -> float:
        return min(max(gap_s, self.interval_s), MOST_INTERVALS * self.interval_s)
