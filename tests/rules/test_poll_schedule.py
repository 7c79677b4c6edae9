"""Latencies go in; the instants of the polls come out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.poll_schedule import MAX_RETRY_DELAY_S, PollSchedule

latencies = st.lists(st.floats(0, 4000), max_size=300)
intervals = st.floats(0.01, 600)


def learned(interval_s: float, seen_s: list[float]) -> PollSchedule:
    schedule = PollSchedule(interval_s)
    for latency_s in seen_s:
        schedule.observe(latency_s)
    return schedule


def poll_ages_s(schedule: PollSchedule, latency_s: float) -> list[float]:
    """The ages at which a job that takes `latency_s` is polled, up to the one that finds it finished."""
    ages_s = [schedule.first_poll_s()]
    while ages_s[-1] < latency_s:
        ages_s.append(ages_s[-1] + schedule.next_poll_s(ages_s[-1]))
    return ages_s


def polls_and_lag(schedule: PollSchedule, seen_s: list[float]) -> float:
    """Polls, and lag in intervals, of jobs that take so long; the mean."""
    polls = [poll_ages_s(schedule, latency_s) for latency_s in seen_s]
    lag_s = sum(ages_s[-1] - latency_s for ages_s, latency_s in zip(polls, seen_s, strict=True))
    return (sum(map(len, polls)) + lag_s / schedule.interval_s) / len(seen_s)


@settings(deadline=None, max_examples=50)
@given(intervals, latencies, st.floats(0, 10_000))
def test_never_closer_than_the_interval(interval_s: float, seen_s: list[float], age_s: float) -> None:
    """Whatever was learned, a job is looked at no sooner than the interval, and at some time."""
    schedule = learned(interval_s, seen_s)
    for gap_s in (schedule.first_poll_s(), schedule.next_poll_s(age_s)):
        assert interval_s <= gap_s <= 1e5


@given(intervals)
def test_sound_before_anything_is_learned(interval_s: float) -> None:
    """With no latency seen, jobs are looked at as for the document's example: after some intervals, and again."""
    schedule = PollSchedule(interval_s)
    assert schedule.exploring
    ages_s = poll_ages_s(schedule, 12 * interval_s)
    assert ages_s[0] <= 6 * interval_s
    assert len(ages_s) <= 6
    assert ages_s[-1] <= 24 * interval_s


@pytest.mark.parametrize("latency_s", [6.0, 9.0, 14.0, 19.0, 60.0, 1000.0])
def test_it_learns_a_steady_latency(latency_s: float) -> None:
    """Jobs that all take the same time are each found finished by their first poll, with next to no lag."""
    schedule = learned(5.0, [latency_s] * 1000)
    assert not schedule.exploring
    (age_s,) = poll_ages_s(schedule, latency_s)
    assert age_s - latency_s <= max(0.25, latency_s / 100)


@pytest.mark.parametrize("eagerness", [0.2, 1.0, 5.0])
def test_a_higher_lag_weight_means_less_lag_and_more_polls(eagerness: float) -> None:
    """The plan is the cheapest for the worth that was given to lag: every other plan costs more by that measure."""
    chance = random.Random(3)
    seen_s = [chance.uniform(5, 30) for _ in range(2000)]
    costs = {}
    for tried in (0.2, 1.0, 5.0):
        schedule = PollSchedule(5.0, tried)
        for latency_s in seen_s:
            schedule.observe(latency_s)
        polls = [poll_ages_s(schedule, latency_s) for latency_s in seen_s]
        lag_s = sum(ages_s[-1] - latency_s for ages_s, latency_s in zip(polls, seen_s, strict=True))
        costs[tried] = sum(map(len, polls)) + eagerness * lag_s / 5.0
    assert min(costs, key=lambda tried: costs[tried]) == eagerness


@pytest.mark.parametrize(
    "draw",
    [
        lambda chance: chance.lognormvariate(2.5, 0.4),
        lambda chance: chance.uniform(5, 30),
        lambda chance: (25 if chance.random() < 0.3 else 6) * chance.uniform(0.8, 1.2),
    ],
    ids=["lognormal", "uniform", "two humps"],
)
def test_once_learned_it_is_nearly_the_best(draw: Callable[[random.Random], float]) -> None:
    """For latencies like those it has learned, no two fixed ages for the first polls are better by a twentieth."""
    chance = random.Random(7)
    schedule = learned(5.0, [draw(chance) for _ in range(500)])
    seen_s = [draw(chance) for _ in range(300)]
    ours = polls_and_lag(schedule, seen_s)
    for first_s in range(5, 40, 2):
        for gap_s in range(5, 30, 2):
            lag_s = polls = 0.0
            for latency_s in seen_s:
                more = max(0, math.ceil((latency_s - first_s) / gap_s))
                polls += 1 + more
                lag_s += first_s + more * gap_s - latency_s
            assert ours <= 1.05 * (polls + lag_s / 5.0) / len(seen_s)


def test_what_is_still_unfinished_counts() -> None:
    """Twenty jobs of fast ones seen finished and a hundred seen unfinished at 20 s are no reason to poll at 6 s."""
    schedule = learned(5.0, [6.0] * 20)
    assert schedule.first_poll_s() < 8
    for _ in range(100):
        schedule.observe_pending(10.0)
        schedule.observe_pending(20.0, 10.0)
    assert schedule.first_poll_s() > 15


@settings(deadline=None, max_examples=30)
@given(st.floats(5, 20), st.floats(5, 20))
def test_it_follows_a_shift(before_s: float, after_s: float) -> None:
    """When latencies change for good, the old ones are forgotten, and first polls follow the new ones."""
    schedule = learned(5.0, [before_s] * 2000 + [after_s] * 4000)
    assert after_s - 1e-6 <= schedule.first_poll_s() <= after_s + 0.5


def test_ends_that_are_not_exact_are_narrowed_down() -> None:
    """From jobs known only to have ended between two looks, where they end is found out."""
    chance, schedule = random.Random(1), PollSchedule(5.0)
    for _ in range(600):
        age_s = chance.uniform(5, 20)
        if age_s < 12.0:
            schedule.observe_pending(age_s)
            schedule.observe(age_s + 5.0, age_s, exact=False)
        else:
            schedule.observe(age_s, exact=False)
    assert schedule.imprecise
    assert 11.5 <= schedule.first_poll_s() <= 14.0


def test_a_new_plan_is_reported() -> None:
    """The version grows when the plan is another, and not while all goes as expected."""
    schedule = learned(5.0, [15.0] * 700)
    before = schedule.version
    for _ in range(100):
        schedule.observe(15.0)
    assert schedule.version == before
    for _ in range(300):
        schedule.observe_pending(25.0)
    assert schedule.version > before


@given(intervals, st.integers(1, 2000), st.none() | st.floats(0, 3600))
def test_errors_back_off(interval_s: float, troubles: int, retry_after_s: float | None) -> None:
    """Unreadable answers are followed by pauses that grow to a minute, never under interval or Retry-After."""
    wait_s = PollSchedule(interval_s).retry_delay_s(troubles, retry_after_s)
    assert wait_s >= max(interval_s, retry_after_s or 0.0)
    assert wait_s <= max(interval_s, retry_after_s or 0.0, MAX_RETRY_DELAY_S)


def test_backoff_doubles() -> None:
    """The pauses double from the interval on, and stay at a minute."""
    waits_s = [PollSchedule(5.0).retry_delay_s(errors, None) for errors in range(1, 8)]
    assert waits_s == [5, 10, 20, 40, 60, 60, 60]
    assert all(before <= after for before, after in pairwise(waits_s))
