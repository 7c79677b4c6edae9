"""Test rules.poll_schedule_by_kind: only kinds of jobs that take differently long have their own schedules."""

from __future__ import annotations

import math
from random import Random

import pytest

from krea_batch.rules.poll_schedule import EXPLORING_JOBS
from krea_batch.rules.poll_schedule_by_kind import MAX_EXPLORING_JOBS, PollSchedules, log_rank

POLL_INTERVAL_S = 5.0


def learned_schedules(count: int, **kinds_s: tuple[float, float]) -> PollSchedules:
    """Return schedules that observed `count` jobs of each kind, spread evenly between two latencies."""
    schedules, random = PollSchedules(POLL_INTERVAL_S), Random(3)
    for _ in range(count):
        for kind, (min_s, max_s) in kinds_s.items():
            schedules.observe(kind, random.uniform(min_s, max_s))
    return schedules


def test_kinds_that_differ_have_separate_schedules() -> None:
    """Jobs of each kind are first polled when jobs of that kind end."""
    schedules = learned_schedules(100, low=(5.5, 6.5), high=(24.0, 26.0))
    assert 6.0 < schedules.for_kind("low").next_poll_s(0.0) < 8.0
    assert 24.0 < schedules.for_kind("high").next_poll_s(0.0) < 28.0


def test_kinds_that_do_not_differ_share_a_schedule() -> None:
    """Kinds with equal latencies share one schedule, and so does an unknown kind."""
    schedules = learned_schedules(200, low=(10.0, 20.0), high=(10.0, 20.0))
    for kind in ("low", "high", "unknown"):
        assert schedules.for_kind(kind) is schedules.shared


def test_few_observations_are_not_enough() -> None:
    """With too few observations of both kinds, they share one schedule."""
    schedules = learned_schedules(5, low=(5.5, 6.5), high=(24.0, 26.0))
    assert schedules.for_kind("low") is schedules.for_kind("high") is schedules.shared


def test_a_single_kind_uses_the_shared_schedule() -> None:
    """A run with one kind of jobs uses the shared schedule."""
    schedules = learned_schedules(500, only=(5.5, 30.0))
    assert schedules.for_kind("only") is schedules.shared


def test_kinds_that_differ_no_more_share_again() -> None:
    """If the latencies of the kinds become equal, they share one schedule again."""
    schedules, rng = learned_schedules(100, low=(5.5, 6.5), high=(24.0, 26.0)), Random(4)
    assert schedules.for_kind("low") is not schedules.shared
    for _ in range(2000):  # Until the old latencies no longer count.
        for kind in ("low", "high"):
            schedules.observe(kind, rng.uniform(10.0, 12.0))
    assert schedules.for_kind("low") is schedules.for_kind("high") is schedules.shared


def test_the_version_only_grows() -> None:
    """The version grows with each new plan, even if schedules are split and merged."""
    schedules, rng, versions = PollSchedules(POLL_INTERVAL_S), Random(5), [0]
    for n in range(3000):
        different = (n // 1000) % 2 == 0
        for kind, latency_s in (("low", 6.0), ("high", 25.0 if different else 6.0)):
            schedules.observe(kind, latency_s * rng.uniform(0.9, 1.1), exact=n % 3 > 0)
            schedules.observe_pending(kind, 3.0)
            schedules.withdraw(kind, 3.0)
            versions.append(schedules.version)
    assert versions == sorted(versions)
    assert versions[-1] > versions[1]


@pytest.mark.parametrize(
    ("ended", "pending", "other_ended", "other_pending", "deviation"),
    [
        ([0, 2, 2], [], [0, 2, 2], [], 0.0),
        ([0, 4], [], [0, 0, 4], [], 7**0.5),  # difference 2, variance 4/7
        ([0, 4], [], [], [0, 0, 4], 7**0.5),  # the others have not ended
        ([0, 4], [], [], [4], None),  # the others were not polled at the age at which the first ended
        ([0, 1], [], [0, 0, 1], [], None),  # too few
        ([], [0, 5], [], [0, 0, 5], None),  # none has ended
        ([], [], [], [], None),  # there are no jobs
        ([0, 4, 0, 0, 4], [], [0, 0, 4, 4], [], 2 / (0.8 + 64 / 99 + 4 / 7) ** 0.5),  # largest at the first ends
    ],
)
def test_the_deviation_of_two_samples(
    ended: list[float],
    pending: list[float],
    other_ended: list[float],
    other_pending: list[float],
    deviation: float | None,
) -> None:
    """The deviation of small samples is the one computed by hand, whichever of them comes first."""
    expected = None if deviation is None else pytest.approx(deviation)
    assert log_rank(ended, pending, other_ended, other_pending) == expected
    assert log_rank(other_ended, other_pending, ended, pending) == expected


def test_unfinished_jobs_show_that_kinds_differ() -> None:
    """If all jobs of one kind ended at 6 s, and those of the other did not, both have a schedule of their own."""
    schedules = PollSchedules(POLL_INTERVAL_S)
    for age_s in (7.0, 14.0):
        for _ in range(10):
            if age_s == 7.0:
                schedules.observe("low", 6.0)
            schedules.observe_pending("high", age_s, age_s - 7.0)
    assert schedules.for_kind("low").next_poll_s(0.0) < 10.0
    assert schedules.for_kind("high").next_poll_s(0.0) > 14.0
    assert schedules.for_kind("high") is not schedules.shared


def test_chance_hardly_splits_kinds() -> None:
    """Kinds whose latencies have the same distribution share one schedule, but for one in ten."""
    split = 0
    for seed in range(8):
        random, schedules = Random(seed), PollSchedules(POLL_INTERVAL_S)
        for n in range(800):
            kind, latency_s = f"k{n % 4}", random.lognormvariate(2.5, 0.4)
            age_s = last_polled_s = 0.0
            while (age_s := age_s + schedules.for_kind(kind).next_poll_s(last_polled_s)) < latency_s:
                schedules.observe_pending(kind, age_s, last_polled_s)
                last_polled_s = age_s
            exact = seed % 2 == 0
            schedules.observe(kind, latency_s if exact else age_s, last_polled_s, exact=exact)
        split += sum(schedules.for_kind(f"k{n}") is not schedules.shared for n in range(4))
    assert split <= 3


def test_a_second_kind_leaves_what_is_known_of_the_first() -> None:
    """When a second kind appears, the first keeps its latencies, and does not get those of the second."""
    schedules = PollSchedules(POLL_INTERVAL_S)
    for _ in range(100):
        schedules.observe("first", 8.0)
    for _ in range(100):
        schedules.observe("second", 40.0)
    assert 8.0 <= schedules.for_kind("first").next_poll_s(0.0) <= 8.5
    assert 40.0 <= schedules.for_kind("second").next_poll_s(0.0) <= 40.5
    schedules.withdraw("third", 3.0)
    assert schedules.for_kind("third") is schedules.shared


class TestExploring:
    def test_the_first_jobs_of_each_kind_explore(self) -> None:
        """The first polls of the first jobs of a kind are spread over an interval; later jobs do not explore."""
        schedules = PollSchedules(POLL_INTERVAL_S)
        for kind in ("low", "high"):
            waits_s = [schedules.first_exploring_poll_s(kind) for _ in range(EXPLORING_JOBS)]
            assert waits_s == [POLL_INTERVAL_S * (1 + n / EXPLORING_JOBS) for n in range(EXPLORING_JOBS)]
            assert schedules.first_exploring_poll_s(kind) is None

    def test_not_behind_the_timeout(self) -> None:
        """The first poll of a job that explores is not behind the time-out, and not sooner than the interval."""
        for timeout_s in (3.0, 7.0):
            schedules = PollSchedules(POLL_INTERVAL_S, timeout_s=timeout_s)
            waits_s = [schedules.first_exploring_poll_s("low") for _ in range(EXPLORING_JOBS)]
            assert waits_s[0] == POLL_INTERVAL_S
            assert waits_s[-1] == max(POLL_INTERVAL_S, timeout_s)

    def test_a_known_kind_is_not_explored(self) -> None:
        """If latencies of a kind are known from an earlier run, its jobs do not explore, and those of others do."""
        schedules = learned_schedules(EXPLORING_JOBS, known=(10.0, 20.0))
        assert schedules.first_exploring_poll_s("known") is None
        assert schedules.first_exploring_poll_s("new") == POLL_INTERVAL_S
        assert schedules.first_exploring_poll_s("known") is None

    def test_many_kinds(self) -> None:
        """With dozens of kinds, few of the jobs explore."""
        schedules = PollSchedules(POLL_INTERVAL_S)
        waits_s = [schedules.first_exploring_poll_s(f"k{n % 32}") for n in range(1000)]
        assert sum(wait_s is not None for wait_s in waits_s) == MAX_EXPLORING_JOBS


@pytest.mark.parametrize("wrong_s", [math.nan, math.inf, -math.inf, 1e9, -1e9])
def test_impossible_latencies_of_one_kind(wrong_s: float) -> None:
    """If a gateway reports impossible latencies, no poll is behind the time-out and other kinds stay precise."""
    schedules = PollSchedules(POLL_INTERVAL_S, timeout_s=1800.0)
    for _ in range(100):
        schedules.observe("wrong", wrong_s)
        schedules.observe("right", 12.0)
    assert POLL_INTERVAL_S <= schedules.for_kind("wrong").next_poll_s(0.0) <= 1800.0
    assert 12.0 <= schedules.for_kind("right").next_poll_s(0.0) <= 13.0
