"""Tests of rules.kinds: kinds of jobs that take another time get a schedule of their own, and no others."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest

from krea_batch.rules.poll_schedule_by_kind import MIN_SAMPLE_SIZE, PollSchedules, ks_distance

POLL_INTERVAL_S = 5.0


def learned_schedules(count: int, **kinds_s: tuple[float, float]) -> PollSchedules:
    """Schedules that have heard of so many jobs of each kind, evenly spread between two latencies."""
    schedules, random = PollSchedules(POLL_INTERVAL_S), Random(3)
    for _ in range(count):
        for kind, (min_s, max_s) in kinds_s.items():
            schedules.observe(kind, random.uniform(min_s, max_s))
    return schedules


def test_kinds_that_differ_have_separate_schedules() -> None:
    """Each is first polled when its own jobs end, not when those of the other do."""
    schedules = learned_schedules(100, low=(5.5, 6.5), high=(24.0, 26.0))
    assert 6.0 < schedules.for_kind("low").first_poll_s() < 8.0
    assert 24.0 < schedules.for_kind("high").first_poll_s() < 28.0


def test_kinds_that_do_not_differ_share_what_is_known() -> None:
    """What one of them teaches serves all, and one that nobody has seen yet."""
    schedules = learned_schedules(200, low=(10.0, 20.0), high=(10.0, 20.0))
    for kind in ("low", "high", "never seen"):
        assert schedules.for_kind(kind) is schedules.shared


def test_few_observations_are_not_enough() -> None:
    """Before there are enough of both, nothing is told apart."""
    schedules = learned_schedules(MIN_SAMPLE_SIZE - 1, low=(5.5, 6.5), high=(24.0, 26.0))
    assert schedules.for_kind("low") is schedules.for_kind("high") is schedules.shared


def test_one_kind_alone_is_all() -> None:
    """Most runs have jobs of one kind only, and pay nothing for this."""
    schedules = learned_schedules(500, only=(5.5, 30.0))
    assert schedules.for_kind("only") is schedules.shared


def test_kinds_that_differ_no_more_share_again() -> None:
    """A gateway may change; then the schedule of all, which learns faster, is used again."""
    schedules, chance = learned_schedules(100, low=(5.5, 6.5), high=(24.0, 26.0)), Random(4)
    assert schedules.for_kind("low") is not schedules.shared
    for _ in range(400):
        for kind in ("low", "high"):
            schedules.observe(kind, chance.uniform(10.0, 12.0))
    assert schedules.for_kind("low") is schedules.for_kind("high") is schedules.shared


def test_the_version_only_grows() -> None:
    """Whoever waits for a new plan hears of each, of schedules that come and go, too."""
    schedules, chance, versions = PollSchedules(POLL_INTERVAL_S), Random(5), [0]
    for n in range(3000):
        apart = (n // 1000) % 2 == 0
        for kind, latency_s in (("low", 6.0), ("high", 25.0 if apart else 6.0)):
            schedules.observe(kind, latency_s * chance.uniform(0.9, 1.1), exact=n % 3 > 0)
            schedules.observe_pending(kind, 3.0)
            schedules.withdraw(kind, 3.0)
            versions.append(schedules.version)
    assert versions == sorted(versions)
    assert versions[-1] > versions[1]


@pytest.mark.parametrize(
    ("some", "others", "apart"),
    [
        ([1, 2, 3], [1, 2, 3], 0.0),
        ([1, 2], [3, 4], 1.0),
        ([1, 2, 3, 4], [3, 4, 5, 6], 0.5),
        ([1], [1, 1, 1, 2], 0.25),
    ],
)
def test_the_distance_of_two_samples(some: list[float], others: list[float], apart: float) -> None:
    """By hand."""
    assert ks_distance(deque(some), others) == pytest.approx(apart)
