"""Test rules.rate_search: a rate is held, probes are steps, and refusals are described by the right facts."""

from __future__ import annotations

from itertools import pairwise

import pytest

from krea_batch.rules.limit_estimate import MIN_GAP, Estimate
from krea_batch.rules.rate_search import (
    IDLE_S,
    MAX_GROWTH,
    STEPS_TO_GAP,
    RateSearch,
)

ANSWER_S = 0.02


def run(search: RateSearch, now_s: float, until_s: float, use: float = 1.0) -> tuple[float, list[float]]:
    """Send submits evenly at this share of the rate; all are accepted. Return the time, and each new rate."""
    rates_per_s = [search.per_s]
    while now_s < until_s:
        search.on_sent(now_s, now_s, ANSWER_S)
        search.on_accepted(now_s)
        if search.per_s != rates_per_s[-1]:
            rates_per_s.append(search.per_s)
        now_s += 1.0 / (use * search.per_s)
    return now_s, rates_per_s


def refuse(search: RateSearch, now_s: float, pause_s: float = 1.0) -> float:
    """Refuse a submit at this time, with a pause. Return the end of the pause."""
    search.on_sent(now_s, now_s, ANSWER_S)
    search.resume(now_s + pause_s, now_s, now_s, ANSWER_S)
    return now_s + pause_s


class TestProbing:
    def test_an_unknown_limit_doubles(self) -> None:
        """Without a known limit, each step doubles the rate, up to the maximum."""
        _, rates_per_s = run(RateSearch(10.0, 400.0, is_known=False), 0.0, 10.0)
        assert rates_per_s[:5] == [10.0, 20.0, 40.0, 80.0, 160.0]
        assert rates_per_s[-1] == 400.0

    def test_a_known_rate_is_kept(self) -> None:
        """A rate that was configured, and never refused, does not change."""
        _, rates_per_s = run(RateSearch(50.0, 50.0, is_known=True), 0.0, 60.0)
        assert rates_per_s == [50.0]

    def test_a_probe_grows_evenly_and_then_faster(self) -> None:
        """A probe reaches the rate that was refused before in equal steps, and then doubles its steps."""
        search = RateSearch(1000.0, 1000.0, is_known=True)
        search.restart(0.0, Estimate(100.0, gap=0.08, is_first=False, probe_delay_s=5.0))
        now_s, before = run(search, 0.0, 4.9)
        assert before == [100.0]
        _, rates_per_s = run(search, now_s, 12.0)
        steps = [later - earlier for earlier, later in pairwise(rates_per_s)]
        assert steps[:STEPS_TO_GAP] == pytest.approx([2.0] * STEPS_TO_GAP)
        assert steps[STEPS_TO_GAP] == pytest.approx(4.0)
        assert all(later >= 0.99 * earlier for earlier, later in pairwise(steps[STEPS_TO_GAP:-1]))
        assert all(later <= MAX_GROWTH * earlier for earlier, later in pairwise(rates_per_s))

    def test_a_rate_that_is_not_used_is_not_raised(self) -> None:
        """If half of the rate is used, nothing is known about a higher one."""
        _, rates_per_s = run(RateSearch(10.0, 400.0, is_known=False), 0.0, 30.0, use=0.5)
        assert rates_per_s == [10.0]

    def test_steps_wait_for_answers(self) -> None:
        """If answers take two seconds, a step takes longer than that."""
        search, now_s, raised_s = RateSearch(10.0, 400.0, is_known=False), 0.0, [0.0]
        while len(raised_s) < 5:
            before = search.per_s
            search.on_sent(now_s, now_s, 2.0)
            if search.per_s > before:
                raised_s.append(now_s)
            now_s += 1.0 / search.per_s
        assert all(later - earlier > 2.0 for earlier, later in pairwise(raised_s))


class TestRefusals:
    def test_a_window_of_a_minute(self) -> None:
        """300 in a minute, sent in a second: the rate is 5/s once the window is over, and stays there."""
        search = RateSearch(300.0, 300.0, is_known=True)
        now_s, _ = run(search, 0.0, 1.0)
        search.on_sent(now_s, now_s, ANSWER_S)
        search.resume(60.0, now_s, 60.0, ANSWER_S)
        assert search.per_s == pytest.approx(5.0, rel=0.02)
        assert search.memory_s == pytest.approx(60.0, rel=0.02)
        _, rates_per_s = run(search, 60.0, 70.0)
        assert max(rates_per_s) <= 5.0 * (1 + 2 * MIN_GAP)

    def test_a_pause_that_was_too_short_is_counted_again(self) -> None:
        """If nothing was accepted after a pause, the same cycle is judged with its whole pause."""
        search = RateSearch(300.0, 300.0, is_known=True)
        now_s, _ = run(search, 0.0, 1.0)
        now_s = refuse(search, now_s, 5.0)
        assert search.per_s == pytest.approx(300 / 6, rel=0.3)
        for _ in range(3):
            now_s = refuse(search, now_s, 18.0)
        assert 300 / 60 <= search.per_s <= 300 / (60 - 18)

    def test_a_refused_probe_is_followed_by_the_rate_before_it(self) -> None:
        """Of the steps 32, 40, 48, 56 the last is tried when 64 is refused."""
        search = RateSearch(1000.0, 1000.0, is_known=True)
        search.restart(0.0, Estimate(32.0, gap=1.0, is_first=False, probe_delay_s=0.0))
        now_s = 0.0
        while search.per_s < 64.0:
            now_s, _ = run(search, now_s, now_s + 1e-9)
        refuse(search, now_s)
        assert search.per_s == pytest.approx(56.0)

    def test_of_submits_that_are_sent_together_any_one_may_be_accepted(self) -> None:
        """A limiter without any burst is recognised by its second refusal, whichever submit it accepts first."""
        search = RateSearch(500.0, 500.0, is_known=True)
        for sent_s in (0.0, 0.001, 0.002):
            search.on_sent(sent_s, sent_s, ANSWER_S)
        search.on_accepted(0.001)
        search.resume(1.0, 0.0, 0.0, ANSWER_S)
        now_s = 1.0
        while search.per_s < 60.0:
            now_s, _ = run(search, now_s, now_s + 1e-9)
        accepted_per_s = search.per_s / MAX_GROWTH
        refuse(search, now_s)
        assert accepted_per_s <= search.per_s <= MAX_GROWTH * accepted_per_s

    def test_idle_times_do_not_count(self) -> None:
        """A break before the refusal does not lower the estimate."""
        search = RateSearch(100.0, 100.0, is_known=True)
        now_s, _ = run(search, 0.0, 1.0)
        now_s += 600.0 + IDLE_S
        search.on_sent(now_s, now_s - 600.0, ANSWER_S)
        search.on_accepted(now_s)
        now_s, _ = run(search, now_s + 0.01, now_s + 2.0)
        refuse(search, now_s)
        assert search.per_s > 60.0

    def test_other_pauses_do_not_count(self) -> None:
        """A pause during an outage of the gateway starts a new cycle."""
        search = RateSearch(100.0, 100.0, is_known=True)
        run(search, 0.0, 1.0)
        search.restart_cycle()
        now_s, _ = run(search, 300.0, 302.0)
        refuse(search, now_s)
        assert search.per_s > 60.0


def test_an_earlier_limit_above_the_maximum() -> None:
    """A limit that an earlier run has found, and that is above the configured rate now, changes nothing."""
    search = RateSearch(50.0, 50.0, is_known=True)
    search.assume(80.0, 1.0, gap=0.1)
    assert search.per_s == 50.0
    assert search.limit_per_s is None
