"""Latencies go in; the instants of the polls come out."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.schedule import LEARN_FROM, MOST_INTERVALS, MOST_TROUBLE_S, REMEMBER, Schedule

latencies = st.lists(st.floats(0, 4000), max_size=600)
intervals = st.floats(0.01, 600)
few = st.lists(st.floats(0, 4000), max_size=LEARN_FROM - 1)


def learned(interval_s: float, seen_s: list[float]) -> Schedule:
    schedule = Schedule(interval_s)
    for latency_s in seen_s:
        schedule.learn(latency_s)
    return schedule


def polls_of(schedule: Schedule, latency_s: float) -> list[float]:
    """The ages at which a job that takes `latency_s` is polled, up to the one that finds it finished."""
    ages_s = [schedule.first_s()]
    while ages_s[-1] < latency_s:
        ages_s.append(ages_s[-1] + schedule.next_s(ages_s[-1]))
    return ages_s


@settings(deadline=None)
@given(intervals, latencies, st.floats(0, 10_000))
def test_never_closer_than_the_interval(interval_s: float, seen_s: list[float], age_s: float) -> None:
    """Whatever was learned, a job is looked at no sooner than the interval and no later than four of them."""
    schedule = learned(interval_s, seen_s)
    for gap_s in (schedule.first_s(), schedule.next_s(age_s)):
        assert interval_s <= gap_s <= MOST_INTERVALS * interval_s


@given(intervals, few, st.floats(0, 10_000))
def test_sound_before_anything_is_learned(interval_s: float, seen_s: list[float], age_s: float) -> None:
    """With few latencies or none every gap is the interval that the document asks for."""
    schedule = learned(interval_s, seen_s)
    assert schedule.first_s() == interval_s
    assert schedule.next_s(age_s) == interval_s


@pytest.mark.parametrize("latency_s", [6.0, 9.0, 14.0, 19.0])
def test_it_learns_a_steady_latency(latency_s: float) -> None:
    """Jobs that all take the same time are each found finished by their first poll, with no lag."""
    schedule = learned(5.0, [latency_s] * LEARN_FROM)
    assert polls_of(schedule, latency_s) == [latency_s]


def test_it_polls_less_than_every_interval() -> None:
    """For latencies around 15 s, learned polls are fewer than polls every 5 s, and find jobs no later on average."""
    chance = random.Random(7)
    seen_s = [chance.gauss(15, 2) for _ in range(1200)]
    schedule = Schedule(5.0)
    blind_polls = learned_polls = 0
    blind_lag_s = learned_lag_s = 0.0
    for latency_s in seen_s[:200]:
        schedule.learn(latency_s)
    for latency_s in seen_s[200:]:
        blind, wise = polls_of(Schedule(5.0), latency_s), polls_of(schedule, latency_s)
        blind_polls, learned_polls = blind_polls + len(blind), learned_polls + len(wise)
        blind_lag_s, learned_lag_s = blind_lag_s + blind[-1] - latency_s, learned_lag_s + wise[-1] - latency_s
        schedule.learn(latency_s)
    assert learned_polls < 0.6 * blind_polls
    assert learned_lag_s < 1.2 * blind_lag_s


@settings(deadline=None)
@given(st.floats(5, 20), st.floats(5, 20))
def test_it_follows_a_shift(before_s: float, after_s: float) -> None:
    """When latencies change for good, the old ones are forgotten, and first polls follow the new ones."""
    schedule = learned(5.0, [before_s] * 2000 + [after_s] * REMEMBER)
    assert schedule.first_s() == after_s


@settings(deadline=None)
@given(st.lists(st.sampled_from([1.0, 5.0, 7.5, 12.0, 20.0]), min_size=REMEMBER, max_size=REMEMBER + 80))
def test_only_the_latest_count(seen_s: list[float]) -> None:
    """A schedule that has seen many latencies decides as one that has seen the latest ones only."""
    long, short = learned(5.0, seen_s), learned(5.0, seen_s[-REMEMBER:])
    assert long.first_s() == short.first_s()
    assert [long.next_s(age_s) for age_s in range(30)] == [short.next_s(age_s) for age_s in range(30)]


@given(intervals, st.integers(1, 2000), st.none() | st.floats(0, 3600))
def test_trouble_backs_off(interval_s: float, troubles: int, retry_after_s: float | None) -> None:
    """Unreadable answers are followed by pauses that grow to a minute, never under interval or Retry-After."""
    wait_s = Schedule(interval_s).after_trouble_s(troubles, retry_after_s)
    assert wait_s >= max(interval_s, retry_after_s or 0.0)
    assert wait_s <= max(interval_s, retry_after_s or 0.0, MOST_TROUBLE_S)


def test_trouble_doubles() -> None:
    """The pauses double from the interval on, and stay at a minute."""
    waits_s = [Schedule(5.0).after_trouble_s(troubles, None) for troubles in range(1, 8)]
    assert waits_s == [5, 10, 20, 40, 60, 60, 60]
    assert all(before <= after for before, after in pairwise(waits_s))
