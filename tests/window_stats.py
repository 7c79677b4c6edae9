"""Instants come in; how many of them lie close together goes out."""

from __future__ import annotations

from collections.abc import Iterable


def most_in_a_window(times_s: Iterable[float], window_s: float = 1.0) -> int:
    """The most instants that any half-open window holds."""
    ordered = sorted(times_s)
    most = first = 0
    for last, at_s in enumerate(ordered):
        while ordered[first] <= at_s - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most
