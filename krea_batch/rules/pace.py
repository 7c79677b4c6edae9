"""Instants of submits and refusals come in; how long the next submit has to wait goes out.

Newcomers: the limiter below this (aiolimiter) spreads submits evenly at `per_s`; this rule says what `per_s`
is, keeps every window of one second under the ceiling, and holds everything back after a 429. `now_s` is
monotonic.

The rate follows the additive-increase, multiplicative-decrease rule of congestion control (RFC 5681, 3.1):
a 429 lowers it, quiet raises it step by step up to the ceiling.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 1.0  # DESIGN, pace: no window of one second ever holds more than the rate (plus one)
DECREASE = 0.7  # chosen: CUBIC's factor (RFC 9438, 4.6); half the rate would waste more than it saves
RAISE_AFTER_S = 1.0  # chosen: one window of answers without a 429 says that the rate is carried
RAISE_SHARE = 0.05  # chosen: from 0.7 back to 1 in six quiet seconds
LEAST_PER_S = 0.1  # chosen: a limit under 6/min is better told than found
BLIND_PAUSE_S = 1.0  # chosen: a 429 without Retry-After is over after one window


class Pace:
    """How fast submits may go now. `per_s` is the present rate, `ceiling_per_s` the most it will ever be."""

    __slots__ = (
        "_answer_s",
        "_lowered_s",
        "_paused_until_s",
        "_quiet_since_s",
        "_sent_s",
        "_window_s",
        "ceiling_per_s",
        "per_s",
    )

    def __init__(self, ceiling_per_s: float) -> None:
        self.ceiling_per_s = ceiling_per_s
        self.per_s = ceiling_per_s
        window = math.ceil(ceiling_per_s * WINDOW_S)
        self._window_s = window / ceiling_per_s  # one second, or as much more as makes the count whole
        self._sent_s: deque[float] = deque(maxlen=window)
        self._paused_until_s = -math.inf
        self._lowered_s = -math.inf  # submits before this instant went at a rate that is known to be too high
        self._quiet_since_s = -math.inf  # no 429 and no step up since
        self._answer_s = 0.0  # how long the latest refusal took to come: a rate is not judged sooner

    def wait_s(self, now_s: float) -> float:
        """Seconds until a submit may go; 0 when it may go now."""
        full = len(self._sent_s) == self._sent_s.maxlen
        window_end_s = self._sent_s[0] + self._window_s if full else -math.inf
        return max(0.0, self._paused_until_s - now_s, window_end_s - now_s)

    def paused_s(self, now_s: float) -> float:
        """Seconds that a refusal still holds every submit back."""
        return max(0.0, self._paused_until_s - now_s)

    def sent(self, now_s: float) -> None:
        """A submit goes out at `now_s`."""
        self._sent_s.append(now_s)
        quiet_s = now_s - self._quiet_since_s - self._answer_s
        if self.per_s < self.ceiling_per_s and quiet_s >= RAISE_AFTER_S:
            self.per_s = min(self.ceiling_per_s, self.per_s + RAISE_SHARE * self.ceiling_per_s)
            self._quiet_since_s = now_s

    def refused(self, sent_s: float, now_s: float, retry_after_s: float | None) -> None:
        """A submit of `sent_s` was refused with 429 at `now_s`.

        Submits that were in the air when the rate was last lowered say nothing new, and do not lower it again.
        Those sent since then do, though the rate may have been raised while they were in the air.
        """
        wait_s = BLIND_PAUSE_S if retry_after_s is None else retry_after_s
        self._paused_until_s = max(self._paused_until_s, now_s + wait_s)
        self._quiet_since_s = max(now_s, self._paused_until_s)
        if sent_s >= self._lowered_s:
            self.per_s = min(self.per_s, max(LEAST_PER_S, self.per_s * DECREASE))
            self._lowered_s = self._quiet_since_s
            self._answer_s = now_s - sent_s

    def hold(self, now_s: float, wait_s: float) -> None:
        """Let nothing go for `wait_s` seconds; the rate stays as it is."""
        self._paused_until_s = max(self._paused_until_s, now_s + wait_s)
