"""Test rules.round_robin: tenants take turns."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.rules.round_robin import RoundRobinQueue


def test_one_tenant_is_a_queue() -> None:
    """With one tenant, items are served in the order in which they were added."""
    queue: RoundRobinQueue[int] = RoundRobinQueue()
    for n in range(5):
        queue.put("", n)
    assert list(queue.drain()) == [0, 1, 2, 3, 4]
    assert len(queue) == 0


def test_a_late_small_tenant_does_not_wait_for_large_ones() -> None:
    """Three items of a tenant that comes last are served in the next three rounds."""
    queue: RoundRobinQueue[str] = RoundRobinQueue()
    for n in range(100):
        queue.put("ann", f"a{n}")
    assert queue.pop() == "a0"
    for n in range(3):
        queue.put("bob", f"b{n}")
    assert [queue.pop() for _ in range(7)] == ["a1", "b0", "a2", "b1", "a3", "b2", "a4"]


def test_an_empty_queue() -> None:
    """Popping from an empty queue is an IndexError."""
    with pytest.raises(IndexError):
        RoundRobinQueue[int]().pop()


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcd")), max_size=80))
def test_nothing_is_lost_and_each_tenants_order_is_kept(steps: list[str | None]) -> None:
    """Every item is served once, those of a tenant in order, and each round serves every tenant."""
    queue: RoundRobinQueue[tuple[str, int]] = RoundRobinQueue()
    added: Counter[str] = Counter()
    taken: list[tuple[str, int]] = []
    for tenant in steps:
        if tenant is not None:
            queue.put(tenant, (tenant, added[tenant]))
            added[tenant] += 1
        elif len(queue):
            taken.append(queue.pop())
        assert len(queue) == added.total() - len(taken)
    last = list(queue.drain())
    for tenant, count in added.items():
        assert [n for owner, n in taken + last if owner == tenant] == list(range(count))
    waiting = Counter(owner for owner, _ in last)
    first_round = last[: len(waiting)]
    assert {owner for owner, _ in first_round} == set(waiting)
