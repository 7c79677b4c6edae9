"""Test rules.bucket_fit: two refusals of a token bucket show its rate; those of other limiters show none."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.bucket_fit import MAX_RATIO, BucketCycle, fit_rates
from krea_batch.testing.simulator.request_limits import FixedWindow, RequestLimit, SlidingWindow, TokenBucket

PAUSE_S = 1.0
FIRST_RATES = [500.0]
GROWING_RATES = [12.0, 24.0, 48.0, 96.0, 192.0, 384.0, 500.0]


def refused_cycle(
    limit: RequestLimit, start_s: float, rates_per_s: list[float], jitter_s: float = 0.0
) -> BucketCycle:
    """Submit at each rate for a quarter of a second, at the last one until a submit is refused."""
    random, now_s, accepted_s = Random(1), start_s, []
    step, step_end_s = 0, start_s + 0.25
    while limit.take(now_s + jitter_s * random.random()) == 0.0:
        accepted_s.append(now_s)
        now_s += 1.0 / rates_per_s[step]
        if now_s > step_end_s and step + 1 < len(rates_per_s):
            step, step_end_s = step + 1, step_end_s + 0.25
    return BucketCycle(PAUSE_S, start_s, accepted_s, now_s, rates_per_s[step])


def two_cycles(limit: RequestLimit, jitter_s: float = 0.0) -> list[BucketCycle]:
    """Submit much too fast, and after a pause at a rate that grows."""
    first = refused_cycle(limit, 1000.0, FIRST_RATES, jitter_s)
    return [first, refused_cycle(limit, first.refused_s + PAUSE_S, GROWING_RATES, jitter_s)]


@pytest.mark.parametrize("jitter_s", [0.0, 0.003], ids=["no jitter", "3 ms"])
@pytest.mark.parametrize(("per_s", "burst"), [(60.0, 10), (60.0, 20), (20.0, 3), (150.0, 40)])
def test_a_bucket_is_found(per_s: float, burst: int, jitter_s: float) -> None:
    """The rate of a bucket with a small burst is known to 8 % after the second refusal."""
    rates = fit_rates(two_cycles(TokenBucket(per_s, burst), jitter_s))
    assert rates is not None
    low_per_s, high_per_s = rates
    assert low_per_s / 1.08 <= per_s <= high_per_s * 1.08


def test_a_bucket_without_a_burst() -> None:
    """GCRA loses what is not used immediately, so its rate is between that before the refusal and the refused one."""
    rates = fit_rates(two_cycles(TokenBucket(60.0, 1)))
    assert rates is not None
    assert rates[0] <= 60.0 <= rates[1] <= MAX_RATIO * rates[0]


@pytest.mark.parametrize(
    "limit",
    [FixedWindow(60, 1.0), SlidingWindow(60, 1.0), SlidingWindow(300, 60.0), TokenBucket(60.0, 60)],
    ids=["fixed window", "sliding window", "long window", "large bucket"],
)
def test_other_limiters_are_no_small_buckets(limit: RequestLimit) -> None:
    """A window, or a bucket that a pause does not fill, gives no rate: it is estimated from counts."""
    assert fit_rates(two_cycles(limit)) is None


@settings(deadline=None, max_examples=50)
@given(
    times=st.lists(st.floats(0.001, 0.1), min_size=1, max_size=30),
    per_s=st.floats(1.0, 500.0),
    pause_s=st.floats(0.25, 10.0),
)
def test_any_cycles(times: list[float], per_s: float, pause_s: float) -> None:
    """Whatever was accepted, the rates are in order, and not above the refused one."""
    accepted_s = [1000.0 + sum(times[:count]) for count in range(len(times))]
    assert all(earlier < later for earlier, later in pairwise(accepted_s))
    cycle = BucketCycle(pause_s, 1000.0, accepted_s, accepted_s[-1] + 0.01, per_s)
    rates = fit_rates([cycle, cycle])
    assert rates is None or 0.0 < rates[0] <= rates[1] <= per_s
