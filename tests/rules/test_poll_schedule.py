"""Test rules.poll_schedule: when jobs are polled, after which latencies."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.poll_schedule import EXPLORING_JOBS, MAX_RETRY_DELAY_S, PollSchedule

latencies = st.lists(st.floats(0, 4000), max_size=300)
intervals = st.floats(0.01, 600)


def learned(interval_s: float, latencies_s: list[float]) -> PollSchedule:
    schedule = PollSchedule(interval_s)
    for latency_s in latencies_s:
        schedule.observe(latency_s)
    return schedule


def poll_ages_s(schedule: PollSchedule, latency_s: float) -> list[float]:
    """Return the ages at which a job that takes `latency_s` is polled, up to the poll that finds it completed."""
    ages_s = [schedule.next_poll_s(0.0)]
    while ages_s[-1] < latency_s:
        ages_s.append(ages_s[-1] + schedule.next_poll_s(ages_s[-1]))
    return ages_s


def polls_and_lag(schedule: PollSchedule, latencies_s: list[float]) -> float:
    """Return the mean cost of jobs with these latencies: polls, plus lag in intervals."""
    polls = [poll_ages_s(schedule, latency_s) for latency_s in latencies_s]
    lag_s = sum(ages_s[-1] - latency_s for ages_s, latency_s in zip(polls, latencies_s, strict=True))
    return (sum(map(len, polls)) + lag_s / schedule.interval_s) / len(latencies_s)


@settings(deadline=None, max_examples=50)
@given(intervals, latencies, st.floats(0, 10_000))
def test_never_closer_than_the_interval(interval_s: float, latencies_s: list[float], age_s: float) -> None:
    """Whatever was observed, a job is polled no sooner than the interval, and not never."""
    schedule = learned(interval_s, latencies_s)
    for gap_s in (schedule.next_poll_s(0.0), schedule.next_poll_s(age_s)):
        assert interval_s <= gap_s <= 1e5


@given(intervals)
def test_the_schedule_before_any_observation(interval_s: float) -> None:
    """Without observations, jobs are polled after some intervals, as in the API document, and again."""
    schedule = PollSchedule(interval_s)
    ages_s = poll_ages_s(schedule, 12 * interval_s)
    assert ages_s[0] <= 6 * interval_s
    assert len(ages_s) <= 6
    assert ages_s[-1] <= 24 * interval_s


@pytest.mark.parametrize("latency_s", [6.0, 9.0, 14.0, 19.0, 60.0, 1000.0])
def test_it_learns_a_steady_latency(latency_s: float) -> None:
    """Jobs that all take equally long are found completed by their first poll, with almost no lag."""
    schedule = learned(5.0, [latency_s] * 1000)
    (age_s,) = poll_ages_s(schedule, latency_s)
    assert age_s - latency_s <= max(0.25, latency_s / 100)


@pytest.mark.parametrize("lag_weight", [0.2, 1.0, 5.0])
def test_the_plan_is_the_cheapest_for_its_lag_weight(lag_weight: float) -> None:
    """By the measure of each lag weight, its own plan is the cheapest."""
    rng = random.Random(3)
    latencies_s = [rng.uniform(5, 30) for _ in range(2000)]
    costs = {}
    for tried in (0.2, 1.0, 5.0):
        schedule = PollSchedule(5.0, tried)
        for latency_s in latencies_s:
            schedule.observe(latency_s)
        polls = [poll_ages_s(schedule, latency_s) for latency_s in latencies_s]
        lag_s = sum(ages_s[-1] - latency_s for ages_s, latency_s in zip(polls, latencies_s, strict=True))
        costs[tried] = sum(map(len, polls)) + lag_weight * lag_s / 5.0
    assert min(costs, key=lambda tried: costs[tried]) == lag_weight


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.lognormvariate(2.5, 0.4),
        lambda rng: rng.uniform(5, 30),
        lambda rng: (25 if rng.random() < 0.3 else 6) * rng.uniform(0.8, 1.2),
    ],
    ids=["lognormal", "uniform", "bimodal"],
)
def test_the_plan_is_nearly_optimal(draw: Callable[[random.Random], float]) -> None:
    """For the observed distribution, no two fixed gaps are better than the plan by more than 5 %."""
    rng = random.Random(7)
    schedule = learned(5.0, [draw(rng) for _ in range(500)])
    latencies_s = [draw(rng) for _ in range(300)]
    plan_cost = polls_and_lag(schedule, latencies_s)
    for first_s in range(5, 40, 2):
        for gap_s in range(5, 30, 2):
            lag_s = polls = 0.0
            for latency_s in latencies_s:
                more = max(0, math.ceil((latency_s - first_s) / gap_s))
                polls += 1 + more
                lag_s += first_s + more * gap_s - latency_s
            assert plan_cost <= 1.05 * (polls + lag_s / 5.0) / len(latencies_s)


def test_unfinished_jobs_count() -> None:
    """If 20 jobs took 6 s and 200 are unfinished at 20 s, jobs are not polled at 6 s."""
    schedule = learned(5.0, [6.0] * 20)
    assert schedule.next_poll_s(0.0) < 8
    for _ in range(200):
        schedule.observe_pending(10.0)
        schedule.observe_pending(20.0, 10.0)
    assert schedule.next_poll_s(0.0) > 15


@settings(deadline=None, max_examples=30)
@given(st.floats(5, 20), st.floats(5, 20))
def test_it_follows_a_shift(before_s: float, after_s: float) -> None:
    """If latencies change, old ones are discounted and first polls follow the new ones."""
    schedule = learned(5.0, [before_s] * 2000 + [after_s] * 4000)
    assert after_s - 1e-6 <= schedule.next_poll_s(0.0) <= after_s + 0.5


def test_inexact_latencies_are_narrowed_down() -> None:
    """From jobs known only to have ended between two polls, the schedule learns when they end."""
    rng, schedule = random.Random(1), PollSchedule(5.0)
    for _ in range(600):
        age_s = rng.uniform(5, 20)
        if age_s < 12.0:
            schedule.observe_pending(age_s)
            schedule.observe(age_s + 5.0, age_s, exact=False)
        else:
            schedule.observe(age_s, exact=False)
    assert schedule.estimate.imprecise
    assert 11.5 <= schedule.next_poll_s(0.0) <= 14.0


def test_two_humps_are_recognised_without_timestamps() -> None:
    """If the gateway reports no latencies, jobs that end at 6 or 25 s are soon polled a little after that."""
    random_, schedule = random.Random(2), PollSchedule(5.0)
    for n in range(600):
        latency_s, age_s, last_polled_s = random_.choice((6.0, 25.0)), 0.0, 0.0
        while age_s < latency_s:
            last_polled_s, wait_s = age_s, schedule.next_poll_s(age_s)
            age_s += random_.uniform(5.0, wait_s) if n % 10 == 0 else wait_s
            if age_s < latency_s:
                schedule.observe_pending(age_s, last_polled_s)
        schedule.observe(age_s, last_polled_s, exact=False)
    first_s, second_s = poll_ages_s(schedule, 25.0)
    assert 6.0 <= first_s <= 7.0
    assert 25.0 <= second_s <= 26.0


def test_the_plan_waits_with_the_oldest_jobs() -> None:
    """While the oldest jobs are still unfinished, younger ones are first polled later than half of their age."""
    schedule = PollSchedule(5.0)
    for age_s in (5.0, 10.0, 20.0, 40.0, 80.0):
        for _ in range(40):
            schedule.observe_pending(age_s, age_s / 2 if age_s > 5.0 else 0.0)
        assert schedule.next_poll_s(0.0) > age_s / 2


class TestExploring:
    def test_a_job_that_explores_is_polled_at_least_as_often(self) -> None:
        """It is polled every interval at first, then ever less often, and never later than planned."""
        schedule = learned(5.0, [300.0] * 20)
        for age_s in (0.0, 5.0, 20.0, 60.0, 150.0, 290.0):
            wait_s = schedule.exploring_poll_s(age_s)
            assert 5.0 <= wait_s <= max(5.0, 0.2 * age_s)
            assert wait_s <= schedule.next_poll_s(age_s)

    def test_until_enough_jobs_are_older(self) -> None:
        """An age is worth exploring until enough jobs are known to be unfinished at it."""
        schedule = PollSchedule(5.0)
        for _ in range(EXPLORING_JOBS - 1):
            schedule.observe_pending(10.0)
        assert schedule.is_worth_exploring(5.0)
        assert schedule.is_worth_exploring(10.0)
        schedule.observe(12.0)
        assert not schedule.is_worth_exploring(5.0)
        assert schedule.is_worth_exploring(10.0)

    def test_not_what_few_jobs_reach(self) -> None:
        """Ages that hardly a job reaches are not explored."""
        schedule = learned(5.0, [10.0] * 200)
        assert not schedule.is_worth_exploring(12.0)
        assert not schedule.is_worth_exploring(1e9)


def test_a_new_plan_is_reported() -> None:
    """The version grows with a new plan, and not while latencies are as expected."""
    schedule = learned(5.0, [15.0] * 700)
    before = schedule.version
    for _ in range(100):
        schedule.observe(15.0)
    assert schedule.version == before
    for _ in range(300):
        schedule.observe_pending(25.0)
    assert schedule.version > before


@given(intervals, st.integers(1, 2000), st.none() | st.floats(0, 3600))
def test_errors_back_off(interval_s: float, failures: int, retry_after_s: float | None) -> None:
    """Delays after unreadable answers grow to a minute, and are never below the interval or Retry-After."""
    wait_s = PollSchedule(interval_s).retry_delay_s(failures, retry_after_s)
    assert wait_s >= max(interval_s, retry_after_s or 0.0)
    assert wait_s <= max(interval_s, retry_after_s or 0.0, MAX_RETRY_DELAY_S)


def test_backoff_doubles() -> None:
    """The delays double from the interval up to a minute."""
    waits_s = [PollSchedule(5.0).retry_delay_s(errors, None) for errors in range(1, 8)]
    assert waits_s == [5, 10, 20, 40, 60, 60, 60]
    assert all(before <= after for before, after in pairwise(waits_s))


# Ages and latencies as a gateway with a wrong clock, or a clock that jumps, may give them.
wild_ages = st.floats() | st.sampled_from([1e9, -1e9, 28_800.0, 6.3e10, math.inf, -math.inf, math.nan])
wild_observations = st.lists(st.tuples(wild_ages, wild_ages, st.booleans(), st.booleans()), max_size=60)


@settings(deadline=None, max_examples=100)
@given(intervals, st.floats(1e-3, 1e9), wild_observations, wild_ages)
def test_no_poll_is_behind_the_timeout(
    interval_s: float, timeout_s: float, observations: list[tuple[float, float, bool, bool]], age_s: float
) -> None:
    """Whatever latencies are reported, a poll is placed before the time-out, or one interval after the last poll."""
    schedule = PollSchedule(interval_s, timeout_s=timeout_s)
    for latency_s, last_polled_s, completed, exact in observations:
        if completed:
            schedule.observe(latency_s, last_polled_s, exact=exact)
        else:
            schedule.observe_pending(latency_s, last_polled_s)
    latest_s = max(interval_s, timeout_s)
    assert interval_s <= schedule.next_poll_s(0.0) <= latest_s
    assert interval_s <= schedule.quantile_s() <= latest_s
    wait_s = schedule.next_poll_s(age_s)
    assert interval_s <= wait_s
    assert wait_s == interval_s or age_s + wait_s <= timeout_s * (1 + 1e-9) or not 0 <= age_s <= timeout_s


@settings(deadline=None, max_examples=50)
@given(wild_ages.filter(lambda age_s: not age_s < 100), st.integers(0, 200), st.booleans())
def test_one_outlier_does_not_make_the_polls_coarse(outlier_s: float, position: int, completed: bool) -> None:
    """One job that took a hundred times as long, or is said to have, moves the first poll by a cell at most."""
    rng = random.Random(3)
    latencies_s = [rng.gauss(15.0, 0.5) for _ in range(200)]
    expected_s = learned(5.0, latencies_s).next_poll_s(0.0)
    schedule = PollSchedule(5.0, timeout_s=1800.0)
    for index, latency_s in enumerate(latencies_s):
        if index == position:
            schedule.observe(outlier_s) if completed else schedule.observe_pending(outlier_s)
        schedule.observe(latency_s)
    assert abs(schedule.next_poll_s(0.0) - expected_s) <= 0.5


def test_polls_are_precise_again_after_a_slow_time() -> None:
    """When jobs that took half an hour no longer count, the polls are as precise as before them."""
    steady_s = [15.1] * 6000
    before_s = learned(5.0, steady_s).next_poll_s(0.0)
    assert 15.1 <= before_s <= 15.36
    schedule = learned(5.0, [15.1] * 300 + [1700.0] * 100)
    assert schedule.next_poll_s(0.0) > before_s
    for latency_s in steady_s:
        schedule.observe(latency_s)
    assert schedule.next_poll_s(0.0) == before_s


def test_jobs_behind_the_plan_are_polled_ever_less_often() -> None:
    """A job that takes far longer than all others is polled a few dozen times, not every interval."""
    schedule = PollSchedule(5.0, timeout_s=1800.0)
    for _ in range(500):
        schedule.observe(12.0)
    ages_s = poll_ages_s(schedule, 1790.0)
    assert len(ages_s) <= 60
    assert ages_s[-1] <= 1800.0
