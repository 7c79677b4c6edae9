"""Failures come in; how long to wait, or why the run had better stop, goes out.

Newcomers: each job has its own pauses (`lifecycle.pause_s`). What is here looks at all jobs together: an outage is
nobody's job's fault, a brown-out is not to be answered with more requests, and what fails for every job alike will
fail for the next thousand, too. `now_s` is monotonic, `chance` from 0 to 1.
"""

from __future__ import annotations

from krea_batch.rules.backoff import backoff_s

OPEN_AFTER = 3  # chosen: more failures in a row are no accident at the 10 % that a bad day brings
DEGRADED_SHARE = 0.2  # chosen: share of failures; twice what a bad day brings
FAILURE_SMOOTHING = 0.05  # chosen: the latest twenty requests or so decide


class CircuitBreaker:
    """Whether the gateway is away, by the failures in a row of all jobs."""

    __slots__ = ("_consecutive_failures", "_failure_share", "_pause_count", "_pause_started_s", "failing_since_s")

    def __init__(self) -> None:
        self._failure_share = 0.0  # share of the latest requests that failed
        self._consecutive_failures = 0
        self._pause_count = 0
        self._pause_started_s = 0.0  # when the present pause began
        self.failing_since_s = 0.0

    @property
    def is_open(self) -> bool:
        return self._consecutive_failures > OPEN_AFTER

    @property
    def is_degraded(self) -> bool:
        """Whether so many requests fail that the failures of one job are not its own fault."""
        return self.is_open or self._failure_share > DEGRADED_SHARE

    def record_success(self) -> None:
        """The gateway gave an answer that means something."""
        self._consecutive_failures = self._pause_count = 0
        self._failure_share -= self._failure_share * FAILURE_SMOOTHING

    def record_failure(self, sent_s: float, now_s: float, jitter: float) -> float:
        """A request of `sent_s` failed. Returns the seconds for which all requests should wait, mostly 0.

        What was in the air when a pause began tells nothing new, and makes the next pause no longer.
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
