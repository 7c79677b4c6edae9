"""Find the number of a fixed window of a second that explains what was refused.

Such windows start with the seconds of a clock that is not known here. A pause of a second ends in the middle of one,
so the submits after it are counted in two windows, and a rate that is far too high is accepted for more than a
second. If all refusals have the same number of submits since the start of their windows, for some start, and no
window has more, then that number is the limit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from krea_batch.rules.send_window import WINDOW_S

MIN_CYCLES = 3  # chosen: two determine the number and the start, and a third one shows whether it is a window
MIN_COUNT = 10  # chosen: smaller numbers are the same by chance
STARTS = 100  # chosen: the starts of windows that are tried, 10 ms from each other
MAX_CYCLES = 5  # chosen: the start of the windows may differ for cycles that are alike
MAX_SLACK = 2  # chosen: submits; so many more or fewer are in a window if some are delayed
SLACK_S = 0.5 * WINDOW_S / STARTS + 0.003  # chosen: submits arrive up to 3 ms earlier or later than each other
MAX_RATIO = 1.1  # chosen: of the highest number that fits to the lowest one
RELEVANT_S = 2 * WINDOW_S  # the window of a refusal, and a whole one before it


class WindowCycle(NamedTuple):
    """A refusal, and the accepted submits between the last pause and it, RELEVANT_S before it at most."""

    accepted_s: Sequence[float]
    refused_s: float


def fit_counts(cycles: Sequence[WindowCycle]) -> tuple[float, float] | None:
    """Return the lowest and the highest number of windows that explain all refusals; None if there are none."""
    if len(cycles) < MIN_CYCLES:
        return None
    counts = [_counts(cycles, WINDOW_S * n / STARTS) for n in range(STARTS)]
    slack = max(0, min(low - high for low, high in counts))
    if slack > MAX_SLACK:
        return None
    fits = [sorted(pair) for pair in counts if pair[0] - pair[1] <= slack]
    lowest, highest = min(low for low, _ in fits), max(high for _, high in fits)
    return (lowest, highest) if lowest >= MIN_COUNT and highest <= MAX_RATIO * lowest else None


def _counts(cycles: Sequence[WindowCycle], start_s: float) -> tuple[int, int]:
    """Return the lowest and the highest number of windows that start at `start_s` of each second."""
    low, high = 0, 10**9
    for accepted_s, refused_s in cycles:
        window_s = refused_s - (refused_s - start_s) % WINDOW_S
        high = min(high, _count(accepted_s, window_s - SLACK_S, refused_s))
        low = max(low, _count(accepted_s, window_s + SLACK_S, refused_s))
        low = max(low, _count(accepted_s, window_s - WINDOW_S + SLACK_S, window_s - SLACK_S))
    return low, high


def _count(times_s: Sequence[float], start_s: float, end_s: float) -> int:
    return max(0, bisect_left(times_s, end_s) - bisect_left(times_s, start_s))
