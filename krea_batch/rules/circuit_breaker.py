"""Hold all submits while the gateway fails, and let one through at a time to see whether it has recovered.

A single failure delays only its own job (`backoff.backoff_s`). This rule sees the answers to the POSTs of all jobs,
as they arrive. During an outage all of them fail, which does not count against any job. `now_s` and `sent_s` are
monotonic, `jitter` is from 0 to 1.
"""

from __future__ import annotations

from krea_batch.rules.backoff import backoff_s
from krea_batch.rules.verdicts import Accepted, Ambiguous, NotSent, PostVerdict, Refusal, Refused

OPEN_AFTER = 3  # chosen: if 10 % of the requests fail, more consecutive failures are no coincidence
IDENTICAL_REFUSALS = 20  # chosen: more jobs in a row with the same refusal are not a series of bad prompts
DEGRADED_SHARE = 0.2  # chosen: share of failed requests, twice that of a bad day
FAILURE_SMOOTHING = 0.05  # chosen: about the latest twenty requests decide
ENDPOINT_STATUSES = frozenset({404, 405, 411, 415, 417, 505})
"""Refusals that are about the address or the form of a request, which are the same for all jobs."""


class CircuitBreaker:
    """Decides from the answers to the POSTs of all jobs whether the gateway is available.

    Without `identical_refusals`, identical refusals of many jobs do not count as an outage.
    """

    __slots__ = (
        "_consecutive_failures",
        "_counts_refusals",
        "_failure_share",
        "_identical_refusals",
        "_last_refusal",
        "_pause_count",
        "_pause_started_s",
        "failing_since_s",
    )

    def __init__(self, *, identical_refusals: bool = True) -> None:
        self._counts_refusals = identical_refusals
        self._failure_share = 0.0  # share of the latest requests that failed, exponentially smoothed
        self._consecutive_failures = 0
        self._last_refusal: tuple[int, str] | None = None
        self._identical_refusals = 0
        self._pause_count = 0
        self._pause_started_s = 0.0
        self.failing_since_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is an outage: only one POST may be pending at a time."""
        return self._consecutive_failures > OPEN_AFTER

    @property
    def is_degraded(self) -> bool:
        """Whether so many requests fail that a failure does not count against its job."""
        return self.is_open or self._failure_share > DEGRADED_SHARE

    def record(self, verdict: PostVerdict, sent_s: float, now_s: float, jitter: float) -> float:
        """Record the result of a POST sent at `sent_s`. Return the seconds to pause all submits, usually 0.

        Requests that were sent before the current pause started contain no new information and do not extend it.
        """
        match verdict:
            case Accepted():
                self._last_refusal, self._identical_refusals = None, 0
                return self._record_success()
            case Refused():
                return self._record_refusal(verdict, sent_s, now_s, jitter)
            case NotSent() | Ambiguous():  # the last one
                return self._record_failure(sent_s, now_s, jitter)

    def _record_refusal(self, refused: Refused, sent_s: float, now_s: float, jitter: float) -> float:
        if refused.refusal is Refusal.RETRYABLE:
            return self._record_failure(sent_s, now_s, jitter)
        if refused.refusal is not Refusal.REJECTED:  # A rate limit, or a decision about the key, is not an outage.
            return self._record_success()
        refusal = (refused.status, refused.detail)
        self._identical_refusals = self._identical_refusals + 1 if refusal == self._last_refusal else 1
        self._last_refusal = refusal
        if refused.status in ENDPOINT_STATUSES:
            return self._record_failure(sent_s, now_s, jitter)
        if self._counts_refusals and self._identical_refusals > IDENTICAL_REFUSALS:
            return self._record_failure(sent_s, now_s, jitter, min_consecutive=OPEN_AFTER + 1)
        return self._record_success()

    def _record_success(self) -> float:
        self._consecutive_failures = self._pause_count = 0
        self._failure_share -= self._failure_share * FAILURE_SMOOTHING
        return 0.0

    def _record_failure(self, sent_s: float, now_s: float, jitter: float, *, min_consecutive: int = 1) -> float:
        self._failure_share += (1.0 - self._failure_share) * FAILURE_SMOOTHING
        if self._consecutive_failures == 0:
            self.failing_since_s = now_s
        self._consecutive_failures = max(self._consecutive_failures + 1, min_consecutive)
        if not self.is_open or (self._pause_count and sent_s < self._pause_started_s):
            return 0.0
        self._pause_count += 1
        self._pause_started_s = now_s
        return backoff_s(self._pause_count, jitter)
