"""Test rules.window_fit: three refusals of a fixed window of a second show its number; other limiters show none."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.window_fit import MAX_RATIO, MIN_COUNT, RELEVANT_S, WindowCycle, fit_counts
from krea_batch.testing.simulator.request_limits import FixedWindow, RequestLimit, SlidingWindow, TokenBucket

RATES = [500.0, 135.0, 200.0, 90.0]
PAUSE_S = 1.02


def refused_cycles(
    limit: RequestLimit, start_s: float, rates_per_s: list[float], jitter_s: float = 0.0
) -> list[WindowCycle]:
    """Submit at each rate until a submit is refused, each time after a pause of a second."""
    random, now_s, cycles = Random(1), start_s, []
    for per_s in rates_per_s:
        accepted_s = []
        while limit.take(now_s + jitter_s * random.random()) == 0.0:
            accepted_s.append(now_s)
            now_s += 1.0 / per_s
        cycles.append(WindowCycle([at_s for at_s in accepted_s if at_s >= now_s - RELEVANT_S], now_s))
        now_s += PAUSE_S
    return cycles


@pytest.mark.parametrize("jitter_s", [0.0, 0.003], ids=["no jitter", "3 ms"])
@pytest.mark.parametrize("count", [20, 60, 120])
@pytest.mark.parametrize("eighth", range(8))
def test_a_window_is_found(count: int, eighth: int, jitter_s: float) -> None:
    """Whenever the windows start, their number is known to 5 % after a few refusals."""
    rates_per_s = [per_s * count / 60 for per_s in RATES]
    counts = fit_counts(refused_cycles(FixedWindow(count, 1.0), 1000.0 + eighth / 8, rates_per_s, jitter_s))
    assert counts is not None
    low, high = counts
    assert count / 1.05 <= low <= high <= count * 1.05


@pytest.mark.parametrize(
    "limit",
    [
        TokenBucket(60.0, 1),
        TokenBucket(60.0, 10),
        TokenBucket(60.0, 60),
        SlidingWindow(60, 1.5),
        FixedWindow(60, 1.7),
    ],
    ids=["no burst", "small burst", "large burst", "sliding", "longer"],
)
def test_other_limiters_have_none(limit: RequestLimit) -> None:
    """The refusals of other limiters have no number in common."""
    assert fit_counts(refused_cycles(limit, 1000.0, RATES)) is None


def test_two_refusals_are_not_enough() -> None:
    """Two refusals fit most limiters, for one start of the windows or another."""
    assert fit_counts(refused_cycles(FixedWindow(60, 1.0), 1000.0, RATES[:2])) is None


times = st.lists(st.floats(0.0, 2.0), max_size=100).map(sorted)


@settings(deadline=None)
@given(st.lists(times, max_size=5))
def test_any_refusals(accepted_s: list[list[float]]) -> None:
    """Whatever was accepted, the numbers are none, or close to each other."""
    cycles = [WindowCycle([10 * n + at_s for at_s in each], 10 * n + 2.0) for n, each in enumerate(accepted_s)]
    counts = fit_counts(cycles)
    if counts is not None:
        assert MIN_COUNT <= counts[0] <= counts[1] <= MAX_RATIO * counts[0]
