"""Runs that share a rate agree about it, and together keep to what one run would keep to."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from krea_batch.rules.found_limit import FoundLimit
from krea_batch.rules.rate_log import (
    HORIZON_S,
    Answered,
    JobsEnded,
    JobsResumed,
    Late,
    Paused,
    RateLimited,
    RateLog,
    Restart,
    Unused,
    recent_slots,
)
from tests.window_stats import max_in_window

ANSWER_S = 0.05


class SharedLog:
    """The rate logs of several runs, and the rows that they have added."""

    def __init__(self, count: int, per_s: float, *, discover: bool = False) -> None:
        self.logs = [RateLog(per_s, discover=discover) for _ in range(count)]
        self.rows: list[bytes] = []
        self._applied = [0] * count

    def exchange(self, n: int, change: Callable[[RateLog], object]) -> None:
        """Let run `n` apply what it does not know yet, then make a change that the others will apply."""
        log = self.logs[n]
        for row in self.rows[self._applied[n] :]:
            log.apply(row)
        change(log)
        self.rows.append(log.take_events())
        self._applied[n] = len(self.rows)

    def take(self, n: int, now_s: float, count: int) -> list[float]:
        taken: list[float] = []
        self.exchange(n, lambda log: taken.extend(log.take_slots(now_s, count, 0)[0]))
        return taken

    def views(self, now_s: float) -> list[object]:
        """Return what each run sees once it has applied every row."""
        for n in range(len(self.logs)):
            self.exchange(n, lambda log: None)
        for n in range(len(self.logs)):
            self.exchange(n, lambda log: None)
        return [log.view(now_s) for log in self.logs]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_window_of_a_second_has_more_slots_than_the_rate(count: int) -> None:
    """However many runs take slots, and whenever they do, the rate is kept, and it is used."""
    shared, random = SharedLog(count, 50.0), Random(count)
    slots, now_s = [], 100.0
    while now_s < 130.0:
        slots += shared.take(random.randrange(count), now_s, 5)
        now_s += random.uniform(0.0, 2 * 5 / 50 / 2)
    assert max_in_window(sorted(slots)) <= 51
    assert len(slots) >= 0.9 * 50 * 30


def test_slots_are_spread_evenly() -> None:
    """Slots that are taken together are as far apart as the rate says."""
    first = SharedLog(1, 10.0).take(0, 100.0, 5)
    assert first == pytest.approx([100.0, 100.08, 100.18, 100.28, 100.38])


def test_slots_are_not_taken_long_before_their_time() -> None:
    """At a low rate, the next run has to wait until the slot is near, so that a refusal can stop it."""
    shared = SharedLog(2, 1.0)
    assert shared.take(0, 100.0, 1) == [100.0]
    assert shared.take(1, 100.1, 1) == []
    assert shared.take(1, 101.0 - HORIZON_S + 0.1, 1) == pytest.approx([101.0], abs=0.05)


def test_all_runs_apply_the_same_events() -> None:
    """After random events of several runs, all of them see the same rate."""
    shared, random = SharedLog(3, 500.0, discover=True), Random(7)
    now_s = 100.0
    for step in range(2000):
        now_s += random.uniform(0.0, 0.05)
        n = random.randrange(3)
        for slot_s in shared.take(n, now_s, 3):
            event = random.choices(
                [
                    Answered(slot_s, slot_s + ANSWER_S, True),
                    RateLimited(slot_s, slot_s + ANSWER_S, random.choice([None, 1.0])),
                    Unused(slot_s),
                    Late(slot_s, 0.1),
                    Paused(now_s, 0.2),
                ],
                [200, 1, 5, 5, 1],
            )[0]
            shared.exchange(n, lambda log, event=event: log.add(event))  # type: ignore[misc]
            if isinstance(event, Answered):
                shared.exchange(random.randrange(3), lambda log: log.add(JobsEnded(1)))
        if step == 1000:
            shared.exchange(n, lambda log: log.add(Restart(FoundLimit(30.0, 1.0), [])))
            shared.exchange(n, lambda log: log.add(JobsResumed(4)))
    first, *others = shared.views(now_s)
    assert others == [first, first]
    assert all(log.restarts == 1 for log in shared.logs)


def test_a_refusal_pauses_all_runs() -> None:
    """A 429 with Retry-After for one run keeps every run from taking slots until then."""
    shared = SharedLog(2, 50.0)
    (slot_s,) = shared.take(0, 100.0, 1)
    shared.exchange(0, lambda log: log.add(RateLimited(slot_s, slot_s + ANSWER_S, 3.0)))
    assert shared.take(1, 100.1, 5) == []
    assert shared.take(1, 103.1, 1) != []


def test_a_limit_on_jobs_holds_for_all_runs() -> None:
    """With a limit on the jobs in process, the jobs of every run count."""
    shared = SharedLog(2, 50.0)
    shared.exchange(0, lambda log: log.add(Restart(FoundLimit(50.0, 0.0, max_jobs=3), [])))
    shared.exchange(0, lambda log: log.add(JobsResumed(2)))
    assert len(shared.take(1, 100.0, 5)) == 1
    assert shared.take(0, 100.2, 5) == []
    shared.exchange(0, lambda log: log.add(JobsEnded(1)))
    assert len(shared.take(0, 100.4, 5)) == 1


def test_slots_before_a_restart_still_count() -> None:
    """After a restart, no window of a second has more slots than the rate, those before it included."""
    shared = SharedLog(2, 10.0)
    before = [slot_s for n in range(10) for slot_s in shared.take(0, 100.0 + n / 10, 1)]
    shared.exchange(1, lambda log: log.add(Restart(None, before)))
    after = [slot_s for n in range(20) for slot_s in shared.take(1, 101.0 + n / 10, 1)]
    assert max_in_window(sorted(before + after)) <= 11


@pytest.mark.parametrize("count", [1, 3])
def test_no_two_slots_are_equal(count: int) -> None:
    """Submits that catch up after a break have slots of their own too, so that each can be counted and delayed."""
    shared = SharedLog(count, 200.0)
    slots = [slot_s for at in range(4) for n in range(count) for slot_s in shared.take(n, 100.0 + at, 10)]
    assert len(set(slots)) == len(slots) == 40 * count
    assert recent_slots(shared.rows, 0.0) == sorted(slots)


def test_the_slots_that_runs_have_taken() -> None:
    """`recent_slots` finds the slots of all requests, and those of the last restart; late ones count as later."""
    log = RateLog(10.0, discover=False)
    log.take_slots(98.0, 2, 0)
    log.add(Restart(None, [99.0, 99.1]))
    slots, others = log.take_slots(100.0, 2, 1)
    rows = [log.take_events()]
    log.add(Late(slots[0], 0.5))
    log.add(Late(1.0, 0.5))
    rows.append(log.take_events())
    assert recent_slots(rows, 99.05) == sorted([99.1, slots[0] + 0.5, slots[1], *others])


def test_what_is_not_paused() -> None:
    """A view is compared with a clock that may be some milliseconds off; only a pause must make submits wait."""
    log = RateLog(10.0, discover=False)
    log.add(Restart(None, []))
    assert log.view(5.0).paused_until_s == -math.inf
    log.add(Paused(5.0, 2.0))
    assert log.view(5.0).paused_until_s == 7.0
    assert log.view(7.5).paused_until_s == -math.inf
