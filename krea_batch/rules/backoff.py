"""TODO"""

from __future__ import annotations

FIRST_BACKOFF_S = 0.5  # chosen: a passing fault of a gateway is over in about this time
MAX_BACKOFF_S = 60.0  # chosen: an outage is noticed to be over within a minute
BACKOFF_FACTOR = 2.0


def backoff_s(attempt: int, jitter: float) -> float:
    """Seconds before the try after `failures` in a row: full jitter, `chance` from 0 to 1 is the caller's."""
    max_s = min(FIRST_BACKOFF_S * BACKOFF_FACTOR ** min(attempt - 1, 30), MAX_BACKOFF_S)
    return max_s * jitter


RETRY_SHARE = 0.2  # chosen: of the rate; a brown-out then sees a fifth more requests at most
MIN_RETRIES_PER_S = 1.0  # chosen: a slow run has to get over a bad minute, too
RETRY_BURST = 50  # chosen: a passing fault of hundreds of jobs in flight is retried without delay


class RetryBudget:
    """How many requests may be repeated, over all jobs of a run: a token bucket that may go into debt."""

    __slots__ = ("_tokens", "_updated_s", "per_s")

    def __init__(self, rate_per_s: float) -> None:
        self.per_s = max(MIN_RETRIES_PER_S, RETRY_SHARE * rate_per_s)
        self._tokens = float(RETRY_BURST)
        self._updated_s = 0.0

    def spend(self, now_s: float) -> float:
        """Take one retry. Returns the seconds after which it may go, 60 at most."""
        max_debt = self.per_s * MAX_BACKOFF_S
        refilled = self._tokens + (now_s - self._updated_s) * self.per_s
        self._tokens = max(min(refilled, RETRY_BURST) - 1.0, -max_debt)
        self._updated_s = now_s
        return max(0.0, -self._tokens / self.per_s)
