"""Statistics of time windows."""

from __future__ import annotations

from collections.abc import Iterable


def max_in_window(times_s: Iterable[float], window_s: float = 1.0) -> int:
    """Return the maximum number of times in any half-open window."""
    ordered = sorted(times_s)
    maximum = first = 0
    for last, at_s in enumerate(ordered):
        while ordered[first] <= at_s - window_s:
            first += 1
        maximum = max(maximum, last - first + 1)
    return maximum
