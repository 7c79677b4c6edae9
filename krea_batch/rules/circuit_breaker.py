"""Pause all submits after many consecutive failures.

A single failure delays only its own job (`backoff.backoff_s`). This rule sees the requests of all jobs. During an
outage all of them fail, which does not count against any job. `now_s` and `sent_s` are monotonic, `jitter` is from
0 to 1.
"""

from __future__ import annotations

from krea_batch.rules.backoff import backoff_s

OPEN_AFTER = 3  # chosen: if 10 % of the requests fail, more consecutive failures are no coincidence
DEGRADED_SHARE = 0.2  # chosen: share of failed requests, twice that of a bad day
FAILURE_SMOOTHING = 0.05  # chosen: about the latest twenty requests decide


class CircuitBreaker:
    """Whether the gateway is available, by the failures of all jobs."""

    __slots__ = ("_consecutive_failures", "_failure_share", "_pause_count", "_pause_started_s", "failing_since_s")

    def __init__(self) -> None:
        self._failure_share = 0.0  # share of the latest requests that failed, exponentially smoothed
        self._consecutive_failures = 0
        self._pause_count = 0
        self._pause_started_s = 0.0
        self.failing_since_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is an outage."""
        return self._consecutive_failures > OPEN_AFTER

    @property
    def is_degraded(self) -> bool:
        """Whether so many requests fail that a failure does not count against its job."""
        return self.is_open or self._failure_share > DEGRADED_SHARE

    def record_success(self) -> None:
        """Record an answer of the gateway that is not an error of its own."""
        self._consecutive_failures = self._pause_count = 0
        self._failure_share -= self._failure_share * FAILURE_SMOOTHING

    def record_failure(self, sent_s: float, now_s: float, jitter: float) -> float:
        """Record that a request sent at `sent_s` failed. Return the seconds to pause all submits, usually 0.

        Requests that were sent before the current pause started contain no new information and do not extend it.
        """
        self._failure_share += (1.0 - self._failure_share) * FAILURE_SMOOTHING
        if self._consecutive_failures == 0:
            self.failing_since_s = now_s
        self._consecutive_failures += 1
        if not self.is_open or (self._pause_count and sent_s < self._pause_started_s):
            return 0.0
        self._pause_count += 1
        self._pause_started_s = now_s
        return backoff_s(self._pause_count, jitter)
