"""Failures come in; how long to wait, or why the run had better stop, goes out.

Newcomers: each job has its own pauses (`lifecycle.pause_s`). What is here looks at all jobs together: an outage is
nobody's job's fault, a brown-out is not to be answered with more requests, and what fails for every job alike will
fail for the next thousand, too. `now_s` is monotonic, `chance` from 0 to 1.
"""

from __future__ import annotations

from krea_batch.jobs import Outcome, State
from krea_batch.rules.lifecycle import LONGEST_PAUSE_S, pause_s

OUTAGE_AFTER = 3  # chosen: more failures in a row are no accident at the 10 % that a bad day brings
BROWN_OUT = 0.2  # chosen: share of failures; twice what a bad day brings
LATEST_SHARE = 0.05  # chosen: the latest twenty requests or so decide
RETRY_SHARE = 0.2  # chosen: of the rate; a brown-out then sees a fifth more requests at most
LEAST_RETRIES_PER_S = 1.0  # chosen: a slow run has to get over a bad minute, too
RETRIES_AT_ONCE = 50  # chosen: a passing fault of hundreds of jobs in flight is retried without delay


class Outage:
    """Whether the gateway is away, by the failures in a row of all jobs."""

    __slots__ = ("_failing", "_in_a_row", "_paused_s", "_pauses", "since_s")

    def __init__(self) -> None:
        self._failing = 0.0  # share of the latest requests that failed
        self._in_a_row = 0
        self._pauses = 0
        self._paused_s = 0.0  # when the present pause began
        self.since_s = 0.0

    @property
    def is_on(self) -> bool:
        return self._in_a_row > OUTAGE_AFTER

    @property
    def is_near(self) -> bool:
        """Whether so many requests fail that the failures of one job are not its own fault."""
        return self.is_on or self._failing > BROWN_OUT

    def worked(self) -> None:
        """The gateway gave an answer that means something."""
        self._in_a_row = self._pauses = 0
        self._failing -= self._failing * LATEST_SHARE

    def failed(self, sent_s: float, now_s: float, chance: float) -> float:
        """A request of `sent_s` failed. Returns the seconds for which all requests should wait, mostly 0.

        What was in the air when a pause began tells nothing new, and makes the next pause no longer.
        """
        self._failing += (1.0 - self._failing) * LATEST_SHARE
        if self._in_a_row == 0:
            self.since_s = now_s
        self._in_a_row += 1
        if not self.is_on or (self._pauses and sent_s < self._paused_s):
            return 0.0
        self._pauses += 1
        self._paused_s = now_s
        return pause_s(self._pauses, chance)


class RetryBudget:
    """How many requests may be repeated, over all jobs of a run: a token bucket that may go into debt."""

    __slots__ = ("_at_s", "_left", "per_s")

    def __init__(self, rate_per_s: float) -> None:
        self.per_s = max(LEAST_RETRIES_PER_S, RETRY_SHARE * rate_per_s)
        self._left = float(RETRIES_AT_ONCE)
        self._at_s = 0.0

    def spend(self, now_s: float) -> float:
        """Take one retry. Returns the seconds after which it may go, 60 at most."""
        most_debt = self.per_s * LONGEST_PAUSE_S
        refilled = self._left + (now_s - self._at_s) * self.per_s
        self._left = max(min(refilled, RETRIES_AT_ONCE) - 1.0, -most_debt)
        self._at_s = now_s
        return max(0.0, -self._left / self.per_s)


class SameFailure:
    """Whether a run fails for every job in the same way, as it does for a wrong model, plan or proxy.

    `most` jobs may (0: any number). Only the first jobs of a run are judged by their FAILED and rejections, later
    ones may well be bad prompts in a row; and rejections only while no POST was accepted. Ambiguous ones in a row
    are judged at any time, since each may be paid.
    """

    __slots__ = ("_first", "_in_a_row", "_kind", "_most", "_none_accepted")

    def __init__(self, most: int, *, has_succeeded: bool = False) -> None:
        self._most = most
        self._first = not has_succeeded
        self._kind: str | None = None
        self._in_a_row = 0
        self._none_accepted = True

    def accepted(self) -> None:
        """A POST was accepted."""
        self._none_accepted = False

    def ended(self, outcome: Outcome) -> str | None:
        """A job ended. Returns why the run should stop, where it should."""
        kind = f"{outcome.status.value} {outcome.error.kind}" if outcome.error else ""
        alike = kind == self._kind
        self._first = self._first and (alike or self._kind is None)  # nothing else has come in this run
        self._in_a_row = self._in_a_row + 1 if alike else 1
        self._kind = kind
        if outcome.error is None or not 0 < self._most <= self._in_a_row:
            return None
        if outcome.status is State.AMBIGUOUS:
            return f"{self._in_a_row} jobs in a row are ambiguous, and may have been paid ({outcome.error.message})"
        if self._first and (self._none_accepted or outcome.status is not State.REJECTED):
            return f"the first {self._in_a_row} jobs all ended {outcome.status.value} ({outcome.error.message})"
        return None
