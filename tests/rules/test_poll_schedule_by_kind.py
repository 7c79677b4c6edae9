"""Test rules.poll_schedule_by_kind: only kinds of jobs that take differently long have their own schedules."""

from __future__ import annotations

import math
from collections import deque
from random import Random

import pytest

from krea_batch.rules.poll_schedule_by_kind import MIN_SAMPLE_SIZE, PollSchedules, ks_distance

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
    assert 6.0 < schedules.for_kind("low").first_poll_s() < 8.0
    assert 24.0 < schedules.for_kind("high").first_poll_s() < 28.0


def test_kinds_that_do_not_differ_share_a_schedule() -> None:
    """Kinds with equal latencies share one schedule, and so does an unknown kind."""
    schedules = learned_schedules(200, low=(10.0, 20.0), high=(10.0, 20.0))
    for kind in ("low", "high", "unknown"):
        assert schedules.for_kind(kind) is schedules.shared


def test_few_observations_are_not_enough() -> None:
    """With too few observations of both kinds, they share one schedule."""
    schedules = learned_schedules(MIN_SAMPLE_SIZE - 1, low=(5.5, 6.5), high=(24.0, 26.0))
    assert schedules.for_kind("low") is schedules.for_kind("high") is schedules.shared


def test_a_single_kind_uses_the_shared_schedule() -> None:
    """A run with one kind of jobs uses the shared schedule."""
    schedules = learned_schedules(500, only=(5.5, 30.0))
    assert schedules.for_kind("only") is schedules.shared


def test_kinds_that_differ_no_more_share_again() -> None:
    """If the latencies of the kinds become equal, they share one schedule again."""
    schedules, rng = learned_schedules(100, low=(5.5, 6.5), high=(24.0, 26.0)), Random(4)
    assert schedules.for_kind("low") is not schedules.shared
    for _ in range(400):
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
    ("sample", "other_sample", "distance"),
    [
        ([1, 2, 3], [1, 2, 3], 0.0),
        ([1, 2], [3, 4], 1.0),
        ([1, 2, 3, 4], [3, 4, 5, 6], 0.5),
        ([1], [1, 1, 1, 2], 0.25),
    ],
)
def test_the_distance_of_two_samples(sample: list[float], other_sample: list[float], distance: float) -> None:
    """The distance of small samples is the one computed by hand."""
    assert ks_distance(deque(sample), other_sample) == pytest.approx(distance)


@pytest.mark.parametrize("wrong_s", [math.nan, math.inf, -math.inf, 1e9, -1e9])
def test_impossible_latencies_of_one_kind(wrong_s: float) -> None:
    """If a gateway reports impossible latencies, no poll is behind the time-out and other kinds stay precise."""
    schedules = PollSchedules(POLL_INTERVAL_S, timeout_s=1800.0)
    for _ in range(100):
        schedules.observe("wrong", wrong_s)
        schedules.observe("right", 12.0)
    assert POLL_INTERVAL_S <= schedules.for_kind("wrong").first_poll_s() <= 1800.0
    assert 12.0 <= schedules.for_kind("right").first_poll_s() <= 13.0
