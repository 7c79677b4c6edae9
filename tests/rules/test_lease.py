"""A run takes its lease to end before any other run can, and only runs that have stalled are dead."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.rules.lease import BEAT_INTERVAL_S, LEASE_S, FailureDetector, Lease


def test_a_lease_ends_earlier_for_its_own_run() -> None:
    """It is counted from the begin of the commit, and a late answer to an older commit does not shorten it."""
    lease = Lease()
    assert not lease.is_held(0.0)
    lease.renew(100.0)
    lease.renew(90.0)
    assert lease.is_held(107.9)
    assert not lease.is_held(108.0)


def test_a_run_that_stands_still_is_dead() -> None:
    """Another run is dead as soon as its beat has not changed for a lease, and not before."""
    detector = FailureDetector()
    looks_s = [100.0 + n for n in range(11)]
    found = [detector.find_dead(now_s, {1: 7, 2: round(now_s)}) for now_s in looks_s]
    assert found == [[]] * 10 + [[1]]


@pytest.mark.parametrize(
    ("looks", "dead"),
    [
        ([(100.0, {1: 7, 2: 5}, [])], []),
        ([(100.0, {1: 7, 2: 5}, [2])], [2]),
        ([(100.0, {1: 7, 2: 5}, [1, 2])], [1, 2]),
        ([(100.0, {1: 7}, [2])], []),
        ([(100.0, {1: 7}, []), (100.5, {1: 8}, [1])], [1]),
        ([(100.0, {1: 7}, []), (100.5, {1: 7}, [])], []),
        ([(100.0, {1: 7}, []), (500.0, {1: 7}, [1])], [1]),
        ([(100.0, {1: 7}, [1]), (100.5, {1: 8}, [])], []),
    ],
    ids=[
        "none has ended", "one has ended", "both have", "one that is not live", "its beat has changed",
        "its beat stands still", "after a pause of this process", "a last commit came later",
    ],
)  # fmt: skip
def test_a_run_that_has_ended_is_dead(looks: list[tuple[float, dict[int, int], list[int]]], dead: list[int]) -> None:
    """A run whose lock is released is dead immediately, whatever its beat was and for how long it was watched."""
    detector = FailureDetector()
    found = [detector.find_dead(now_s, beats, ended) for now_s, beats, ended in looks]
    assert found[-1] == dead


def test_whoever_did_not_look_begins_anew() -> None:
    """A process that stalled itself must not take the others for dead."""
    detector = FailureDetector()
    detector.find_dead(100.0, {1: 7})
    assert detector.find_dead(100.0 + 3 * LEASE_S, {1: 7}) == []
    assert detector.find_dead(100.0 + 3 * LEASE_S + BEAT_INTERVAL_S, {1: 7}) == []


@given(
    pauses_s=st.lists(st.floats(0.1, 3 * LEASE_S), min_size=1, max_size=30),
    looks_s=st.lists(st.floats(0.1, 3 * LEASE_S), min_size=1, max_size=60),
)
def test_no_run_is_found_dead_while_it_holds_its_lease(pauses_s: list[float], looks_s: list[float]) -> None:
    """Whatever the pauses of both are, a run that is found dead does not hold its lease any more."""
    commits_s = [sum(pauses_s[:n]) for n in range(len(pauses_s) + 1)]
    detector, now_s = FailureDetector(), 0.0
    for look_s in looks_s:
        now_s += look_s
        beat = sum(commit_s <= now_s for commit_s in commits_s)
        if detector.find_dead(now_s, {1: beat}):
            lease = Lease()
            lease.renew(commits_s[beat - 1])
            assert not lease.is_held(now_s)


@given(looks_s=st.lists(st.floats(0.1, 0.49 * LEASE_S), min_size=25, max_size=40))
def test_a_dead_run_is_always_found(looks_s: list[float]) -> None:
    """A process that looks at least twice per lease finds a dead run within a lease and one look."""
    detector, now_s, found_s = FailureDetector(), 0.0, None
    for look_s in looks_s:
        now_s += look_s
        if detector.find_dead(now_s, {1: 1}) and found_s is None:
            found_s = now_s
    if now_s - looks_s[0] >= LEASE_S:
        assert found_s is not None
        assert found_s - looks_s[0] <= LEASE_S + max(earlier_s for earlier_s, _ in pairwise([*looks_s, 0.0]))
