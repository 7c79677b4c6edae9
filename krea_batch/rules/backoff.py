"""Retry delays with jitter, and the retry budget of a run."""

from __future__ import annotations

FIRST_BACKOFF_S = 0.5  # chosen: most transient errors of a gateway are over after about this time
MAX_BACKOFF_S = 60.0  # chosen: the end of an outage is noticed within a minute
BACKOFF_FACTOR = 2.0

RETRY_SHARE = 0.2  # chosen: share of the rate; a degraded gateway gets at most a fifth more requests
MIN_RETRIES_PER_S = 1.0  # chosen: a slow run must get through a bad minute, too
RETRY_BURST = 50  # chosen: a transient error of many jobs in flight is retried without delay


def backoff_s(attempt: int, jitter: float) -> float:
    """Return the seconds to wait after `attempt` consecutive failures, from 1: exponential backoff with full jitter.

    `jitter` is a random number from 0 to 1.
    """
    max_s = min(FIRST_BACKOFF_S * BACKOFF_FACTOR ** min(attempt - 1, 30), MAX_BACKOFF_S)
    return max_s * jitter


class RetryBudget:
    """Limits the retries of all jobs of a run: a token bucket that may go into debt."""

    __slots__ = ("_tokens", "_updated_s", "per_s")

    def __init__(self, rate_per_s: float) -> None:
        self.per_s = max(MIN_RETRIES_PER_S, RETRY_SHARE * rate_per_s)
        self._tokens = float(RETRY_BURST)
        self._updated_s = 0.0

    def spend(self, now_s: float) -> float:
        """Take one token, and return the seconds until the retry may be sent, at most MAX_BACKOFF_S."""
        max_debt = self.per_s * MAX_BACKOFF_S
        refilled = self._tokens + (now_s - self._updated_s) * self.per_s
        self._tokens = max(min(refilled, RETRY_BURST) - 1.0, -max_debt)
        self._updated_s = now_s
        return max(0.0, -self._tokens / self.per_s)
