"""Instants of submits and refusals go in; what the pace lets through is counted."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.pace import BLIND_PAUSE_S, DECREASE, RAISE_AFTER_S, Pace

NUDGE_S = 1e-6  # what a clock's resolution may add

rates = st.one_of(st.sampled_from([0.1, 0.5, 1.0, 2.5, 10.0, 10.5, 100.0]), st.floats(0.05, 300, allow_nan=False))


def pass_one(pace: Pace, now_s: float) -> float:
    """Wait as the pace says, submit, and return the instant."""
    while (wait_s := pace.wait_s(now_s)) > 0:
        now_s += max(wait_s, NUDGE_S)
    pace.sent(now_s)
    return now_s


def most_in_a_window(times_s: list[float], window_s: float = 1.0) -> int:
    """The most instants that any half-open window holds."""
    most, first = 0, 0
    for last, time_s in enumerate(times_s):
        while times_s[first] <= time_s - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


@settings(deadline=None)
@given(rates, st.lists(st.floats(0, 3) | st.just(0.0), min_size=1, max_size=300), st.floats(0, 1e6))
def test_no_window_holds_more_than_the_rate(per_s: float, gaps_s: list[float], now_s: float) -> None:
    """Whenever callers come, in bursts or after silence, no window of one second passes rate + 1."""
    pace = Pace(per_s)
    times_s = []
    for gap_s in gaps_s:
        now_s = pass_one(pace, now_s + gap_s)
        times_s.append(now_s)
    assert most_in_a_window(times_s, 1.0 - 2 * NUDGE_S) <= per_s + 1


@settings(deadline=None)
@given(
    rates,
    st.lists(
        st.tuples(st.floats(0, 2), st.none() | st.floats(0, 5), st.booleans()),
        min_size=1,
        max_size=200,
    ),
)
def test_refusals_never_open_the_window(per_s: float, steps: list[tuple[float, float | None, bool]]) -> None:
    """429s and holds in between change nothing about the ceiling of any window, nor about that of the rate."""
    pace = Pace(per_s)
    now_s, times_s = 0.0, []
    for gap_s, retry_after_s, refused in steps:
        now_s = pass_one(pace, now_s + gap_s)
        times_s.append(now_s)
        if refused:
            pace.refused(now_s, now_s, retry_after_s)
        elif retry_after_s:
            pace.hold(now_s, retry_after_s)
        assert 0 < pace.per_s <= per_s
    assert most_in_a_window(times_s, 1.0 - 2 * NUDGE_S) <= per_s + 1


@pytest.mark.parametrize("per_s", [2.5, 6 / 60, 1.0, 10.0, 10.5, 600 / 60, 5000 / 3600, 99.9, 1500.0])
def test_the_rate_is_reached(per_s: float) -> None:
    """A caller who always has a job uses the rate to within 1 %, whole or not, per second or per minute."""
    pace = Pace(per_s)
    count = max(400, math.ceil(per_s) * 20)
    now_s = first_s = pass_one(pace, 0.0)
    for _ in range(count):
        now_s = pass_one(pace, now_s)
    burst = math.ceil(per_s)  # the first window starts full
    assert count / (now_s - first_s) == pytest.approx(per_s, rel=0.01 + burst / count)
    assert (count - burst) / (now_s - first_s) <= per_s * 1.001


@pytest.mark.parametrize("per_s", [2.5, 7.7, 50.0])
def test_lateness_is_made_up(per_s: float) -> None:
    """A caller who comes late to each window, but has a backlog, still gets the whole rate."""
    pace = Pace(per_s)
    times_s = []
    for tick in range(1, 200):  # it wakes every 0.3 s and takes all it may
        while pace.wait_s(tick * 0.3) <= 0:
            pace.sent(tick * 0.3)
            times_s.append(tick * 0.3)
    least = math.ceil(per_s) / (math.ceil(per_s) / per_s + 0.3)
    assert len(times_s) / (200 * 0.3) >= least * 0.99


@given(rates, st.floats(0, 1000), st.floats(0, 3600))
def test_retry_after_holds(per_s: float, now_s: float, retry_after_s: float) -> None:
    """After a 429 nothing goes before its Retry-After has passed, and something goes right after."""
    pace = Pace(per_s)
    pace.refused(now_s, now_s, retry_after_s)
    assert pace.wait_s(now_s) == pytest.approx(retry_after_s)
    assert pace.paused_s(now_s) == pytest.approx(retry_after_s)
    assert pace.wait_s(now_s + retry_after_s + NUDGE_S) == 0
    assert pace.paused_s(now_s + retry_after_s + NUDGE_S) == 0


def test_a_429_without_retry_after_pauses_too() -> None:
    """A 429 that does not say for how long holds every submit back for a window."""
    pace = Pace(10)
    pace.refused(5.0, 5.0, None)
    assert pace.wait_s(5.0) == BLIND_PAUSE_S > 0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=20))
def test_the_longest_pause_counts(pauses: list[tuple[float, float]]) -> None:
    """Of many Retry-Afters and holds the one that ends last counts; a shorter one never shortens it."""
    pace, now_s, until_s = Pace(10), 0.0, 0.0
    for index, (gap_s, wait_s) in enumerate(pauses):
        now_s += gap_s
        until_s = max(until_s, now_s + wait_s)
        if index % 2:
            pace.hold(now_s, wait_s)
        else:
            pace.refused(now_s, now_s, wait_s)
        assert pace.paused_s(now_s) == pytest.approx(max(0.0, until_s - now_s))


def test_hold_keeps_the_rate() -> None:
    """A hold, which is no refusal, pauses and leaves the rate as it is."""
    pace = Pace(10)
    pace.hold(0.0, 7.0)
    assert (pace.wait_s(0.0), pace.per_s) == (7.0, 10)


@given(st.integers(1, 200), st.floats(0, 30), st.none() | st.floats(0, 60))
def test_a_burst_of_429s_lowers_once(count: int, answer_s: float, retry_after_s: float | None) -> None:
    """However many submits of one burst are refused, and however late they say so, the rate is lowered once."""
    pace = Pace(100)
    for index in range(count):
        pace.refused(index / 1000, index / 1000 + answer_s, retry_after_s)
    lowered_in_time = answer_s < count / 1000  # later submits left after the first refusal came
    if not lowered_in_time:
        assert pace.per_s == pytest.approx(100 * DECREASE)


@given(rates)
def test_one_429_lowers(per_s: float) -> None:
    """The first 429 lowers the rate, unless it is as low already as the pace goes; it never raises it."""
    pace = Pace(per_s)
    pace.refused(1.0, 1.0, 0.0)
    assert pace.per_s < per_s or per_s <= 0.1
    assert 0 < pace.per_s <= per_s


@pytest.mark.parametrize("per_s", [1 / 60, 0.05, 0.1])
def test_slow_rates_are_not_raised_by_a_429(per_s: float) -> None:
    """A 429 under a ceiling of 1/min does not make the rate faster than what the user allowed."""
    pace = Pace(per_s)
    for now_s in range(0, 600, 60):
        pace.refused(now_s, now_s, None)
        assert 0 < pace.per_s <= per_s


@settings(deadline=None)
@given(st.floats(1, 200), st.integers(1, 12))
def test_it_climbs_back(per_s: float, lowered: int) -> None:
    """After quiet the rate is exactly the ceiling again, whatever it had fallen to, and never passes it."""
    pace, now_s = Pace(per_s), 0.0
    for _ in range(lowered):
        now_s = pass_one(pace, now_s + 2)
        pace.refused(now_s, now_s, 0.0)
    steps = [pace.per_s]
    for _ in range(60):
        now_s = pass_one(pace, now_s + RAISE_AFTER_S)
        steps.append(pace.per_s)
    assert steps[-1] == per_s
    assert all(before <= after <= per_s for before, after in pairwise(steps))


def test_no_step_up_while_it_is_refused() -> None:
    """The rate is not raised before a whole window has passed without a 429."""
    pace = Pace(10)
    pace.sent(0.0)
    pace.refused(0.0, 0.0, 2.0)
    lowered = pace.per_s
    pace.sent(2.0)
    pace.sent(2.0 + RAISE_AFTER_S / 2)
    assert pace.per_s == lowered
    pace.refused(0.0, 2.9, 2.0)  # a straggler of the first burst: no new step down, but no quiet either
    pace.sent(4.9)
    assert pace.per_s == lowered
    pace.sent(4.9 + RAISE_AFTER_S)
    assert lowered < pace.per_s < 10


def run_against(limit_per_s: float, *, ceiling_per_s: float, answer_s: float, seconds: float) -> list[float]:
    """Submit at the pace's rate to a gateway that takes `limit_per_s`, with answers after `answer_s`.

    Returns the rate after each submit. The gateway is a token bucket of one second.
    """
    pace, now_s, tokens, filled_s = Pace(ceiling_per_s), 0.0, limit_per_s, 0.0
    answers: list[tuple[float, float, bool]] = []  # due, sent, refused
    rates_seen = []
    while now_s < seconds:
        while answers and answers[0][0] <= now_s:
            due_s, sent_s, refused = answers.pop(0)
            if refused:
                pace.refused(sent_s, due_s, 1.0)
        if (wait_s := pace.wait_s(now_s)) > 0:
            now_s = min([now_s + max(wait_s, NUDGE_S), *(due_s for due_s, _, _ in answers[:1])])
            continue
        pace.sent(now_s)
        tokens = min(limit_per_s, tokens + (now_s - filled_s) * limit_per_s)
        filled_s = now_s
        answers.append((now_s + answer_s, now_s, tokens < 1))
        tokens -= tokens >= 1
        rates_seen.append(pace.per_s)
        now_s += 1 / pace.per_s  # as the bucket above the pace spreads them
    return rates_seen


@pytest.mark.parametrize("answer_s", [0.05, 0.5, 1.5, 4.0])
def test_it_finds_a_limit_nobody_told_it(answer_s: float) -> None:
    """Against a gateway that takes 5/s under a ceiling of 40/s the rate comes down to 5/s, slow answers or not."""
    seen = run_against(5.0, ceiling_per_s=40.0, answer_s=answer_s, seconds=120)
    assert min(seen) < 10
    later = seen[len(seen) // 2 :]
    assert sum(later) / len(later) < 20


def test_a_limit_above_the_ceiling_is_never_felt() -> None:
    """A gateway that takes more than the ceiling sees the ceiling, from the first second to the last."""
    assert set(run_against(50.0, ceiling_per_s=40.0, answer_s=1.0, seconds=30)) == {40.0}
