"""Find the rates of the token buckets that explain what was refused. Two refusals nearly determine a bucket.

How many submits a bucket accepts after a pause, before it refuses one, depends on its burst and on its rate. One
refusal is explained by a small burst and a high rate, or by a large burst and a low rate. At another rate of submits,
other pairs explain the refusal, so only few of them explain both.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from krea_batch.rules.send_window import WINDOW_S

BURSTS = [*range(1, 21), *(round(20 * 1.07**power) for power in range(1, 30))]  # chosen: up to 142, in steps of 7 %
MAX_SUBMITS = 250  # chosen: a small bucket refuses earlier, and more submits take long to compare
STEPS = 9  # chosen: steps of each bisection; the result is within 1 %
MIN_PER_S = 0.2  # chosen: a slower bucket is not filled by a pause
FILLED_SHARE = 0.5  # chosen: a bucket that half a pause fills is full at its end
SAME_COUNT = 0.95  # chosen: counts are the same if the smallest is this share of the largest
SLACK = 0.3  # chosen: part of a submit; a bucket need not contain a whole number of tokens
SLACK_SHARE = 0.035  # chosen: share of a burst above 20, since large bursts are tried in steps of 7 %
SLACK_S = 0.003  # chosen: by how much the delays of submits differ
MAX_RATIO = 4.0  # chosen: the highest rate that fits, divided by the lowest; more is no result


class BucketCycle(NamedTuple):
    """A refusal: the pause before it, its time and rate, and the accepted submits in between."""

    pause_s: float
    start_s: float
    accepted_s: Sequence[float]
    refused_s: float
    per_s: float


def fit_rates(cycles: Sequence[BucketCycle]) -> tuple[float, float] | None:
    """Return the lowest and the highest rate of the buckets that explain all refusals.

    Return None if there is no such bucket, or if one of them is so large that the pauses do not fill it. Also return
    None if a window of a second explains the refusals: the same number was accepted in the second before each.
    """
    counts = [len(cycle.accepted_s) - bisect_left(cycle.accepted_s, cycle.refused_s - WINDOW_S) for cycle in cycles]
    if min(counts) >= SAME_COUNT * max(counts):
        return None
    lowest, highest = math.inf, 0.0
    pause_s, max_per_s = min(cycle.pause_s for cycle in cycles), min(cycle.per_s for cycle in cycles)
    cycles = sorted(cycles, key=lambda cycle: len(cycle.accepted_s))  # The shortest leave least to the others.
    for burst in reversed(BURSTS):
        low, high = MIN_PER_S, max_per_s
        for cycle in cycles:
            low = _bisect(low, high, partial(_accepts, cycle, burst))
            high = min(high, _bisect(low, high, partial(_does_not_refuse, cycle, burst)))
            if low >= high:
                break
        else:
            if burst > FILLED_SHARE * pause_s * high:
                return None
            lowest, highest = min(lowest, low), max(highest, high)
    return (lowest, highest) if lowest <= highest <= MAX_RATIO * lowest else None


def _bisect(low: float, high: float, is_enough: Callable[[float], bool]) -> float:
    """Return the lowest rate that is enough, not below `low`; infinity if `high` is not enough."""
    if low >= high or is_enough(low):
        return low
    if not is_enough(high):
        return math.inf
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _accepts(cycle: BucketCycle, burst: float, per_s: float) -> bool:
    """Return whether such a bucket would accept all submits that were accepted."""
    slack = SLACK + min(per_s * SLACK_S, SLACK) + SLACK_SHARE * max(0.0, burst - 20.0)
    tokens, at_s = min(burst, per_s * cycle.pause_s), cycle.start_s
    for sent_s in cycle.accepted_s:
        tokens = min(burst, tokens + per_s * (sent_s - at_s))
        at_s = sent_s
        if tokens < 1.0 - slack:
            return False
        tokens -= 1.0
    return True


def _does_not_refuse(cycle: BucketCycle, burst: float, per_s: float) -> bool:
    """Return whether such a bucket would accept the submit that was refused."""
    tokens, at_s = min(burst, per_s * cycle.pause_s), cycle.start_s
    for sent_s in cycle.accepted_s:
        tokens = min(burst, tokens + per_s * (sent_s - at_s)) - 1.0
        at_s = sent_s
    return min(burst, tokens + per_s * max(0.0, cycle.refused_s - at_s - SLACK_S)) >= 1.0
