"""Limits: accept a request, or say how long to wait. Pure.

token-bucket:10/s,20   refills at 10 per second and holds 20; without the 20 it holds one second's worth, at least one
gcra:60/s              a token bucket that holds one: requests have to be evenly spread
fixed-window:300/5m    300 in each five minutes of the clock, so up to 600 around the start of a window
sliding-window:60/10s  never more than 60 in any ten seconds
jobs-in-process:20     a job is accepted while fewer than 20 accepted jobs are in process
none                   no limit

The periods are s, m or min, and h, with a number before them or without. Times are real seconds, whatever the
simulator's time scale is. A refused request does not count against the limit; with `+refused` behind it
(`sliding-window:60/s+refused`) it does, so a client that does not wait is not accepted again.
"""

from __future__ import annotations

import heapq
import re
import sys
from collections import deque

LIMIT_SYNTAX = (
    "token-bucket:10/s (or 10/s,20 with a burst), gcra:60/s, fixed-window:60/m, sliding-window:10/s "
    "or jobs-in-process:20"
)
_LIMIT_FORMAT = re.compile(
    r"(token-bucket|gcra|fixed-window|sliding-window):(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)?(s|m|min|h)(?:,0*([1-9]\d*))?"
    r"(\+refused)?"
)
_JOBS_FORMAT = re.compile(r"jobs-in-process:0*([1-9]\d*)")
_PERIODS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TIME_TOLERANCE_S = 1e-6  # chosen: a float of seconds since 1970 is precise to a fraction of a microsecond


class RequestLimit:
    """A limit. `take` counts the request and returns 0.0, or returns the seconds to wait.

    `per_s` is what it allows in the long run, None if that depends on the jobs.
    """

    per_s: float | None = None

    def take(self, now_s: float) -> float:
        raise NotImplementedError

    def on_accepted(self, end_s: float) -> None:
        """Take note of a job that was accepted, and of its end."""

    def forget_jobs(self) -> None:
        """Forget the jobs in process."""


class TokenBucket(RequestLimit):
    def __init__(self, per_s: float, burst: float, *, counts_refused: bool = False) -> None:
        self.per_s: float = per_s
        self.burst = burst
        self._counts_refused = counts_refused
        self._tokens, self._at_s = burst, 0.0

    def take(self, now_s: float) -> float:
        self._tokens = min(self.burst, self._tokens + max(0.0, now_s - self._at_s) * self.per_s)
        self._at_s = max(now_s, self._at_s)
        if self._tokens < 1 - _TIME_TOLERANCE_S * max(1.0, self.per_s):
            if self._counts_refused:
                self._tokens = 0.0
            return (1 - self._tokens) / self.per_s
        self._tokens = max(0.0, self._tokens - 1)
        return 0.0


class FixedWindow(RequestLimit):
    def __init__(self, count: int, window_s: float) -> None:
        self.count, self.window_s = count, window_s
        self.per_s = count / window_s
        self._window, self._used = -1, 0

    def take(self, now_s: float) -> float:
        window = int((now_s + _TIME_TOLERANCE_S) // self.window_s)
        if window != self._window:
            self._window, self._used = window, 0
        if self._used >= self.count:
            return max((window + 1) * self.window_s - now_s, _TIME_TOLERANCE_S)
        self._used += 1
        return 0.0


class SlidingWindow(RequestLimit):
    def __init__(self, count: int, window_s: float, *, counts_refused: bool = False) -> None:
        self.window_s = window_s
        self.per_s = count / window_s
        self._counts_refused = counts_refused
        self._counted_times_s: deque[float] = deque(maxlen=min(count, sys.maxsize))

    def take(self, now_s: float) -> float:
        if len(self._counted_times_s) == self._counted_times_s.maxlen:
            wait_s = self._counted_times_s[0] + self.window_s - now_s
            if wait_s > _TIME_TOLERANCE_S:
                if self._counts_refused:
                    self._counted_times_s.append(now_s)
                    wait_s = self._counted_times_s[0] + self.window_s - now_s
                return wait_s
        self._counted_times_s.append(now_s)
        return 0.0


class JobsInProcess(RequestLimit):
    def __init__(self, count: int) -> None:
        self.count = count
        self._ends_s: list[float] = []  # a heap

    def take(self, now_s: float) -> float:
        while self._ends_s and self._ends_s[0] <= now_s:
            heapq.heappop(self._ends_s)
        return self._ends_s[0] - now_s if len(self._ends_s) >= self.count else 0.0

    def on_accepted(self, end_s: float) -> None:
        heapq.heappush(self._ends_s, end_s)

    def forget_jobs(self) -> None:
        self._ends_s.clear()


def parse_limit(text: str) -> RequestLimit | None:
    """Return the limit that a text describes, None for `none`. Raises ValueError, which shows the syntax."""
    if text == "none":
        return None
    if jobs := _JOBS_FORMAT.fullmatch(text):
        return JobsInProcess(int(jobs[1]))
    match = _LIMIT_FORMAT.fullmatch(text)
    window_s = float(match[3] or 1) * _PERIODS_S[match[4]] if match else 0.0
    if match is None or float(match[2]) <= 0 or window_s <= 0:
        raise _invalid_limit(text)
    return _parse_rate(text, match, float(match[2]), window_s)


def parse_poll_limit(text: str) -> RequestLimit | None:
    """Return the limit of polls that a text describes. Raises ValueError as `parse_limit` does."""
    limit = parse_limit(text)
    if isinstance(limit, JobsInProcess):
        raise ValueError(f"invalid limit {text!r} of polls; it limits submits only")  # noqa: TRY004 - a value
    return limit


def _parse_rate(text: str, found: re.Match[str], count: float, window_s: float) -> RequestLimit:
    kind, burst, counts_refused = found[1], found[5], found[6] is not None
    per_s = count / window_s
    if kind in ("token-bucket", "gcra"):
        default_burst = max(1.0, per_s) if kind == "token-bucket" else 1.0
        return TokenBucket(per_s, float(burst or default_burst), counts_refused=counts_refused)
    if burst:
        raise _invalid_limit(text)
    if not count.is_integer():
        raise ValueError(f"invalid limit {text!r}; a window holds a whole number of requests, as in {kind}:10/s")
    if kind == "fixed-window":
        if counts_refused:  # It makes no difference: the window ends when it ends.
            raise ValueError(f"invalid limit {text!r}; refused requests change nothing about a fixed window")
        return FixedWindow(int(count), window_s)
    return SlidingWindow(int(count), window_s, counts_refused=counts_refused)


def _invalid_limit(text: str) -> ValueError:
    return ValueError(f"invalid limit {text!r}; use none, {LIMIT_SYNTAX}")
