"""The send times of submits without an answer, and of accepted submits as long as a limiter may remember them."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right, insort

MAX_MEMORY_S = 300.0  # chosen: windows up to five minutes are found; users should configure a limit over hours
KEPT_S = 2 * MAX_MEMORY_S  # chosen: a window of five minutes, plus a pause that was guessed too long


class SubmitLog:
    """The send times of submits. `unanswered_s` has those without an answer, the oldest first."""

    def __init__(self) -> None:
        self.unanswered_s: list[float] = []
        self._accepted_s = array("d")

    def on_sent(self, sent_s: float) -> None:
        """Record a submit."""
        insort(self.unanswered_s, sent_s)

    def on_accepted(self, sent_s: float) -> None:
        """Record that a submit was accepted; answers arrive nearly in the order of the submits."""
        self.on_not_accepted(sent_s)
        times_s = self._accepted_s
        times_s.insert(bisect_right(times_s, sent_s), sent_s)
        half = len(times_s) // 2
        if half > 1000 and times_s[half] < sent_s - KEPT_S:
            del times_s[:half]

    def on_not_accepted(self, sent_s: float) -> None:
        """Record that a submit was refused, or not sent."""
        index = bisect_left(self.unanswered_s, sent_s)
        if index < len(self.unanswered_s) and self.unanswered_s[index] == sent_s:
            del self.unanswered_s[index]

    # ---- accepted submits --------------------------------------------------------------------------------

    def count(self, start_s: float, end_s: float = math.inf) -> int:
        """Return how many accepted submits were sent from `start_s` until before `end_s`."""
        return bisect_left(self._accepted_s, end_s) - bisect_left(self._accepted_s, start_s)

    def times_s(self, start_s: float, end_s: float) -> array[float]:
        """Return the send times of the accepted submits from `start_s` until before `end_s`."""
        return self._accepted_s[bisect_left(self._accepted_s, start_s) : bisect_left(self._accepted_s, end_s)]

    def before(self, sent_s: float, count: int) -> float:
        """Return when the `count`-th accepted submit before `sent_s` was sent; minus infinity if there is none."""
        index = bisect_left(self._accepted_s, sent_s) - count
        return self._accepted_s[index] if 0 <= index < len(self._accepted_s) else -math.inf
