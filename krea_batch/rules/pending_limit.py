"""How many POSTs may be pending: little more than the rate needs, so that few become ambiguous if the gateway hangs.

By Little's law, submits at `rate_per_s` that each take `s` seconds keep `rate_per_s · s` POSTs pending. If the
gateway stops answering, no more POSTs than the limit become ambiguous.
"""

from __future__ import annotations

INITIAL_PENDING = 25  # chosen: before the first answer; so many may be ambiguous if the gateway hangs from the start
EXTRA_PENDING = 5  # chosen: lets the limit of a slow run grow when answers take longer
HEADROOM = 1.5  # chosen: a gateway that gets slower by a third is not slowed down further
VARIATIONS = 2.0  # chosen: of the smoothed variation; RFC 6298 allows 4 for time-outs, where a mistake costs more
SMOOTHING = 0.125  # RFC 6298, 2: alpha
VARIATION_SMOOTHING = 0.25  # RFC 6298, 2: beta


class PendingLimit:
    """The number of POSTs that may be pending, from how long they take: from their dispatch to their answer."""

    __slots__ = ("_max", "_took_s", "_variation_s")

    def __init__(self, max_pending: int) -> None:
        self._max = max_pending
        self._took_s: float | None = None
        self._variation_s = 0.0

    def record_answer(self, took_s: float) -> None:
        """Record that a POST took `took_s` seconds. Time-outs are not answers."""
        if self._took_s is None:
            self._took_s, self._variation_s = took_s, took_s / 2
            return
        self._variation_s += VARIATION_SMOOTHING * (abs(took_s - self._took_s) - self._variation_s)
        self._took_s += SMOOTHING * (took_s - self._took_s)

    def max_pending(self, rate_per_s: float) -> int:
        """Return how many POSTs may be pending at this rate."""
        if self._took_s is None:
            return min(INITIAL_PENDING, self._max)
        needed = HEADROOM * rate_per_s * (self._took_s + VARIATIONS * self._variation_s)
        return min(int(needed) + EXTRA_PENDING, self._max)
