"""Test rules.limit_estimate: what a refusal shows about a limit, as tables of facts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.rules.limit_estimate import (
    MAX_PROBE_DELAY_S,
    MIN_CONFIDENCE,
    MIN_GAP,
    MIN_RATE_PER_S,
    Cycle,
    Estimate,
    after_refusal,
)


def refused_cycle(**facts: Any) -> Cycle:
    """Return a cycle at 100/s that was refused after ten seconds and cost a pause of a second."""
    return Cycle(
        **{
            "refused_per_s": 100.0,
            "previous_per_s": 100.0,
            "is_probe": False,
            "was_used": True,
            "base_held_s": 10.0,
            "held_s": 10.0,
            "duration_s": 11.0,
            "accepted": 1000,
            "unproven_s": 0.0,
            "refused_count": 100,
            "achieved_per_s": 1000 / 11,
            "memory_s": 1.0,
            "step_s": 0.25,
        }
        | facts
    )


def known(per_s: float = 100.0, **facts: Any) -> Estimate:
    """Return an estimate that is not the first."""
    return Estimate(per_s, is_first=False, **facts)


@pytest.mark.parametrize(
    ("duration_s", "accepted", "unproven_s", "lower_per_s", "upper_per_s"),
    [
        (60.0, 300, 0.0, 5.0, 5.0),  # a window of a minute, with an exact Retry-After
        (60.5, 300, 1.0, 300 / 60.5, 300 / 59.5),  # with a Retry-After that may be a second too long
        (1.2, 3, 1.1, 2.5, 30.0),  # a bucket with a small burst: nearly nothing is known
        (1.2, 60, 1.2, 50.0, 100.0),  # never above the rate that was refused
        (2.0, 0, 0.0, 0.25, 0.25),  # nothing accepted counts as half a submit
    ],
)
def test_two_rates_frame_the_limit(
    duration_s: float, accepted: int, unproven_s: float, lower_per_s: float, upper_per_s: float
) -> None:
    """The limit is between what was accepted over the whole cycle, and over its part that was certainly refused."""
    cycle = refused_cycle(duration_s=duration_s, accepted=accepted, unproven_s=unproven_s)
    assert cycle.lower_per_s == pytest.approx(lower_per_s)
    assert cycle.upper_per_s == pytest.approx(upper_per_s)


class TestTheFirstRefusal:
    @pytest.mark.parametrize(
        ("facts", "per_s"),
        [
            # 300 in a minute, sent in a second
            ({"duration_s": 60.0, "accepted": 300, "refused_count": 300, "memory_s": 60.0}, 5.0),
            # 60 in a second, with a Retry-After of a second
            ({"duration_s": 1.16, "accepted": 60, "refused_count": 60, "unproven_s": 1.02}, 60.0),
            # a bucket of 1,000 that refills at 20/s
            ({"duration_s": 8.0, "accepted": 1160, "refused_count": 170}, 1.25 * 145),
            # a bucket with a burst of one
            ({"duration_s": 1.05, "accepted": 3, "refused_count": 3, "unproven_s": 1.02}, 3.0),
        ],
    )
    def test_it_shows_a_rate(self, facts: dict[str, Any], per_s: float) -> None:
        """However far too high the configured rate is, what was accepted is the first estimate."""
        after, is_over = after_refusal(Estimate(500.0), refused_cycle(refused_per_s=500.0, held_s=0.1, **facts))
        assert after.per_s == pytest.approx(per_s, rel=0.25)
        assert is_over

    def test_what_is_unknown_is_probed_at_once(self) -> None:
        """If the limit may be much higher, the first probe follows immediately; if it is known, later."""
        facts = {"refused_per_s": 500.0, "held_s": 0.1}
        bucket = refused_cycle(duration_s=1.05, accepted=3, refused_count=3, unproven_s=1.02, **facts)
        window = refused_cycle(duration_s=60.0, accepted=300, refused_count=300, memory_s=60.0, **facts)
        assert after_refusal(Estimate(500.0), bucket)[0].probe_delay_s < 1.0
        assert after_refusal(Estimate(500.0), window)[0].probe_delay_s > 10.0

    def test_a_closed_limiter(self) -> None:
        """If nothing at all was accepted, the rate is halved, and may be twice as high again."""
        after, _ = after_refusal(Estimate(500.0), refused_cycle(accepted=0, refused_count=0))
        assert after.per_s == 250.0
        assert after.gap > 1.0


class TestWindows:
    def test_the_same_count_at_another_rate(self) -> None:
        """Sixty submits at 500/s and sixty at 90/s until the refusal: the limit is sixty in this time."""
        before = Estimate(50.0, refused_per_s=500.0, refused_count=60)
        cycle = refused_cycle(refused_per_s=90.0, is_probe=True, refused_count=60, held_s=0.5)
        after, _ = after_refusal(before, cycle)
        assert after.per_s == pytest.approx(60.0, rel=MIN_GAP)
        assert after.gap == MIN_GAP

    @pytest.mark.parametrize(
        ("refused_per_s", "refused_count", "before_count"),
        [
            (90.0, 45, 3),  # more at a lower rate: a bucket with a small burst
            (490.0, 60, 60),  # the rates are nearly the same
            (300.0, 6, 6),  # six may be five or seven
        ],
    )
    def test_other_counts_show_no_window(self, refused_per_s: float, refused_count: int, before_count: int) -> None:
        """Different counts, equal rates and small counts show nothing of the kind."""
        before = Estimate(50.0, refused_per_s=500.0, refused_count=before_count)
        cycle = refused_cycle(
            refused_per_s=refused_per_s, previous_per_s=80.0, is_probe=True, refused_count=refused_count
        )
        after, _ = after_refusal(before, cycle)
        assert after.per_s == pytest.approx(min(refused_per_s, max(80.0, cycle.lower_per_s)))

    def test_the_count_of_a_growing_rate_is_not_compared(self) -> None:
        """At the end of the discovery the rate has doubled several times, so its count is that of no rate."""
        cycle = refused_cycle(refused_per_s=160.0, previous_per_s=80.0, is_probe=True, refused_count=45)
        after, _ = after_refusal(Estimate(10.0, gap=math.inf), cycle)
        assert after.refused_count == 0


class TestProbes:
    def test_the_rate_before_the_refused_one_is_tried(self) -> None:
        """With trust in trials, the last accepted rate follows; the rate before the probe is remembered."""
        cycle = refused_cycle(refused_per_s=64.0, previous_per_s=56.0, is_probe=True, duration_s=2.0, accepted=50)
        after, _ = after_refusal(known(32.0), cycle)
        assert (after.per_s, after.fallback_per_s) == (56.0, 32.0)
        assert after.gap == pytest.approx(64 / 56 - 1)

    def test_trials_get_cautious(self) -> None:
        """With little trust, or with a long memory, the trial is near the rate that was held."""
        facts = {"refused_per_s": 64.0, "previous_per_s": 56.0, "is_probe": True, "duration_s": 2.0, "accepted": 50}
        distrusted, _ = after_refusal(known(32.0, confidence=MIN_CONFIDENCE), refused_cycle(**facts))
        assert 32.0 < distrusted.per_s < 34.0
        forgetful, _ = after_refusal(known(32.0), refused_cycle(**facts | {"memory_s": 60.0, "step_s": 3.75}))
        assert 32.0 < forgetful.per_s < 40.0

    FAILED = (
        refused_cycle(
            refused_per_s=56.0, held_s=0.5, base_held_s=0.5, duration_s=1.6, accepted=28, achieved_per_s=20.0
        ),
        refused_cycle(
            refused_per_s=56.0, held_s=1.2, base_held_s=1.2, duration_s=3.0, accepted=67, achieved_per_s=22.0
        ),
    )

    @pytest.mark.parametrize("cycle", FAILED, ids=["refused soon", "achieves less"])
    def test_a_trial_that_fails(self, cycle: Cycle) -> None:
        """After a trial that fails, the middle between it and the rate before it is tried, with half the trust."""
        after, _ = after_refusal(known(56.0, fallback_per_s=32.0, gap=0.14), cycle)
        assert after.per_s == pytest.approx(math.sqrt(32.0 * 56.0))
        assert after.per_s * (1.0 + after.gap) == pytest.approx(56.0)
        assert (after.fallback_per_s, after.confidence) == (32.0, 0.5)

    @pytest.mark.parametrize("cycle", FAILED, ids=["refused soon", "achieves less"])
    def test_a_trial_that_fails_above_a_rate_that_was_held(self, cycle: Cycle) -> None:
        """If the rate before the trial was accepted for as long as the limiter remembers, it follows."""
        trial = known(56.0, fallback_per_s=32.0, gap=0.14, held_per_s=32.0)
        after, _ = after_refusal(trial, cycle)
        assert (after.per_s, after.fallback_per_s, after.confidence) == (32.0, None, 0.5)
        assert after.gap < trial.gap

    def test_a_trial_that_was_held(self) -> None:
        """A trial that was accepted for long doubles the trust, and is the new estimate."""
        trial = known(56.0, fallback_per_s=32.0, confidence=0.25)
        cycle = refused_cycle(refused_per_s=59.0, previous_per_s=58.0, is_probe=True, held_s=30.0, accepted=560)
        after, _ = after_refusal(trial, cycle)
        assert after.confidence == 0.5
        assert 56.0 <= after.per_s <= 59.0


class TestARefusedEstimate:
    def test_soon_after_a_pause(self) -> None:
        """While the limiter may remember what was before the cycle, the rate is lowered by 2 %, 4 %, 8 %."""
        before = known(100.0)
        rates_per_s = []
        for _ in range(3):
            cycle = refused_cycle(duration_s=5.0, held_s=4.0, memory_s=60.0, achieved_per_s=50.0)
            before, is_over = after_refusal(before, cycle)
            assert not is_over
            rates_per_s.append(before.per_s)
        assert rates_per_s == pytest.approx([100 / 1.02, 100 / 1.02 / 1.04, 100 / 1.02 / 1.04 / 1.08])

    def test_not_below_what_was_achieved(self) -> None:
        """What was accepted over the whole memory is not given up for a refusal soon after a pause."""
        cycle = refused_cycle(duration_s=5.0, held_s=4.0, memory_s=60.0, achieved_per_s=99.0)
        assert after_refusal(known(100.0), cycle)[0].per_s == 99.0

    def test_a_narrow_frame(self) -> None:
        """If both rates nearly agree, the limit is between them."""
        cycle = refused_cycle(duration_s=30.0, accepted=2700, unproven_s=1.0)
        assert after_refusal(known(100.0), cycle)[0].per_s == pytest.approx(91.5, abs=0.1)

    def test_a_wide_frame(self) -> None:
        """If they do not, the rate approaches one that was held; without one it is lowered by growing steps."""
        cycle = refused_cycle(
            refused_per_s=64.0, held_s=1.0, base_held_s=1.0, duration_s=2.1, accepted=64, unproven_s=1.1
        )
        after, _ = after_refusal(known(64.0, held_per_s=50.0), cycle)
        assert after.per_s == pytest.approx(math.sqrt(64.0 * 50.0))
        first, _ = after_refusal(known(64.0), cycle)
        second, _ = after_refusal(first, cycle._replace(refused_per_s=first.per_s, accepted=round(first.per_s)))
        assert 64.0 / first.per_s < first.per_s / second.per_s

    def test_rates_that_are_not_used(self) -> None:
        """If submits are sent now and then, a refusal lowers the rate by 2 % only."""
        cycle = refused_cycle(was_used=False, duration_s=20.0, accepted=20, achieved_per_s=1.0)
        assert after_refusal(Estimate(100.0), cycle)[0].per_s == pytest.approx(100 / 1.02)


class TestTheNextProbe:
    def test_it_waits_longer_if_it_is_dear_or_finds_little(self) -> None:
        """The delay grows with what a refusal costs, and with the precision of the estimate."""
        cheap = refused_cycle(duration_s=11.0, accepted=1090, is_probe=True)
        dear = refused_cycle(duration_s=11.0, accepted=1000, is_probe=True)
        unknown, certain = known(100.0, gap=1.0), known(100.0, gap=MIN_GAP)
        delays_s = [
            after_refusal(estimate, cycle._replace(refused_per_s=refused_per_s))[0].probe_delay_s
            for estimate, cycle, refused_per_s in (
                (unknown, cheap, 200.0), (unknown, dear, 200.0), (certain, cheap, 101.0), (certain, dear, 101.0),
            )
        ]  # fmt: skip
        assert delays_s == sorted(delays_s)
        assert delays_s[-1] <= MAX_PROBE_DELAY_S

    def test_answers_that_take_seconds(self) -> None:
        """If a refused probe costs four seconds, probes are at least a hundred seconds apart."""
        cycle = refused_cycle(refused_per_s=101.0, is_probe=True, duration_s=14.0, accepted=1000)
        assert after_refusal(known(100.0), cycle)[0].probe_delay_s >= 95.0


numbers = st.floats(0.0, 500.0, allow_nan=False)


@given(
    before=st.builds(
        Estimate,
        per_s=st.floats(0.05, 1000.0),
        gap=st.floats(MIN_GAP, 100.0) | st.just(math.inf),
        is_first=st.booleans(),
        confidence=st.floats(MIN_CONFIDENCE, 1.0),
        decrease=st.floats(0.0, 4.0),
        fallback_per_s=st.none() | st.floats(0.05, 1000.0),
        held_per_s=st.floats(0.0, 1000.0),
        refused_per_s=st.floats(0.05, 1000.0),
        refused_count=st.integers(0, 10_000),
    ),
    cycle=st.builds(
        Cycle,
        refused_per_s=st.floats(0.05, 1000.0),
        previous_per_s=st.floats(0.05, 1000.0),
        is_probe=st.booleans(),
        was_used=st.booleans(),
        base_held_s=numbers,
        held_s=numbers,
        duration_s=st.floats(1e-3, 600.0),
        accepted=st.integers(0, 100_000),
        unproven_s=numbers,
        refused_count=st.integers(0, 10_000),
        achieved_per_s=numbers,
        memory_s=st.floats(1.0, 300.0),
        step_s=st.floats(0.25, 20.0),
        fitted_per_s=st.none() | st.tuples(st.floats(0.2, 10.0), st.floats(10.0, 1000.0)),
    ),
)
def test_any_cycle_gives_a_rate(before: Estimate, cycle: Cycle) -> None:
    """Whatever happened, the next rate is positive and at most what was used, and the next probe is not forgotten."""
    after, _ = after_refusal(before, cycle)
    assert MIN_RATE_PER_S <= after.per_s <= max(before.per_s, cycle.refused_per_s, MIN_RATE_PER_S)
    assert after.gap >= MIN_GAP
    assert MIN_CONFIDENCE <= after.confidence <= 1.0
    assert 0.0 <= after.probe_delay_s < 100_000.0
