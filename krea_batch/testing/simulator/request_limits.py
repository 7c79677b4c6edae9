"""Rate limits: accept a request, or say how long to wait. Pure.

token-bucket:10/s,20   refills at 10 per second and holds 20; without the 20 it holds one second's worth, at least one
fixed-window:60/m      60 in each minute of the clock, so up to 120 around the start of a minute
sliding-window:10/s    never more than 10 in any second
none                   no limit

The periods are s, m or min, and h. Times are real seconds, whatever the simulator's time scale is. A refused request
does not count against the limit.
"""

from __future__ import annotations

import re
import sys
from collections import deque

LIMIT_SYNTAX = "token-bucket:10/s (or 10/s,20 with a burst), fixed-window:60/m or sliding-window:10/s"
_LIMIT_FORMAT = re.compile(
    r"(token-bucket|fixed-window|sliding-window):(\d+(?:\.\d+)?)/(s|m|min|h)(?:,0*([1-9]\d*))?"
)
_PERIODS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TIME_TOLERANCE_S = 1e-6  # chosen: a float of seconds since 1970 is precise to a fraction of a microsecond


class RequestLimit:
    """A rate limit. `take` counts the request and returns 0.0, or returns the seconds to wait."""

    def take(self, now_s: float) -> float:
        raise NotImplementedError


class TokenBucket(RequestLimit):
    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s, self.burst = per_s, burst
        self._tokens, self._at_s = burst, 0.0

    def take(self, now_s: float) -> float:
        self._tokens = min(self.burst, self._tokens + max(0.0, now_s - self._at_s) * self.per_s)
        self._at_s = max(now_s, self._at_s)
        if self._tokens < 1 - _TIME_TOLERANCE_S * max(1.0, self.per_s):
            return (1 - self._tokens) / self.per_s
        self._tokens = max(0.0, self._tokens - 1)
        return 0.0


class FixedWindow(RequestLimit):
    def __init__(self, count: int, window_s: float) -> None:
        self.count, self.window_s = count, window_s
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
    def __init__(self, count: int, window_s: float) -> None:
        self.window_s = window_s
        self._accepted_times_s: deque[float] = deque(maxlen=min(count, sys.maxsize))

    def take(self, now_s: float) -> float:
        if len(self._accepted_times_s) == self._accepted_times_s.maxlen:
            wait_s = self._accepted_times_s[0] + self.window_s - now_s
            if wait_s > _TIME_TOLERANCE_S:
                return wait_s
        self._accepted_times_s.append(now_s)
        return 0.0


def parse_limit(text: str) -> RequestLimit | None:
    """Return the limit that a text describes, None for `none`. Raises ValueError, which shows the syntax."""
    if text == "none":
        return None
    match = _LIMIT_FORMAT.fullmatch(text)
    count = float(match[2]) if match else 0.0
    if match is None or count <= 0 or (match[4] and match[1] != "token-bucket"):
        raise ValueError(f"invalid limit {text!r}; use none, {LIMIT_SYNTAX}")
    window_s = _PERIODS_S[match[3]]
    if match[1] == "token-bucket":
        per_s = count / window_s
        return TokenBucket(per_s, float(match[4] or max(1.0, per_s)))
    if not count.is_integer():
        raise ValueError(f"invalid limit {text!r}; a window holds a whole number of requests, as in {match[1]}:10/s")
    window_type = FixedWindow if match[1] == "fixed-window" else SlidingWindow
    return window_type(int(count), window_s)
