"""Test rules.rate_control: the rate is kept, pauses are obeyed, and a limit of the gateway is found."""

from __future__ import annotations

import heapq
import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.found_limit import FoundLimit
from krea_batch.rules.rate_control import (
    DISCOVERY_START_PER_S,
    LATE_S,
    MAX_CATCH_UP,
    MAX_PAUSE_WITHOUT_RETRY_AFTER_S,
    PAUSE_GROWTH,
    PAUSE_WITHOUT_RETRY_AFTER_S,
    RateController,
)
from krea_batch.testing.simulator.request_limits import parse_limit
from tests.window_stats import max_in_window

EPSILON_S = 1e-6  # above the resolution of a clock

rates = st.one_of(st.sampled_from([0.1, 0.5, 1.0, 2.5, 10.0, 10.5, 100.0]), st.floats(0.05, 300, allow_nan=False))


def submit_next(controller: RateController, now_s: float) -> float:
    """Wait as long as the controller requires, submit, and return the send time."""
    while (wait_s := controller.wait_s(now_s)) > 0:
        now_s += max(wait_s, EPSILON_S)
    controller.on_sent(now_s)
    controller.on_response(now_s, now_s)
    return now_s


def refuse_next(controller: RateController, now_s: float, retry_after_s: float | None = None) -> float:
    """Wait as long as the controller requires, submit, be refused, and return the end of the pause."""
    while (wait_s := controller.wait_s(now_s)) > 0:
        now_s += max(wait_s, EPSILON_S)
    controller.on_sent(now_s)
    controller.on_rate_limited(now_s, now_s, retry_after_s)
    while controller.paused_s(now_s) > 0:
        now_s += controller.paused_s(now_s) + EPSILON_S
    controller.wait_s(now_s)
    return now_s


@settings(deadline=None)
@given(rates, st.lists(st.floats(0, 3) | st.just(0.0), min_size=1, max_size=300), st.floats(0, 1e6))
def test_no_window_holds_more_than_the_rate(per_s: float, gaps_s: list[float], now_s: float) -> None:
    """Whether callers arrive in bursts or after silence, no window of one second exceeds rate + 1."""
    controller = RateController(per_s)
    times_s = []
    for gap_s in gaps_s:
        now_s = submit_next(controller, now_s + gap_s)
        times_s.append(now_s)
    assert max_in_window(times_s, 1.0 - 2 * EPSILON_S) <= per_s + 1


@settings(deadline=None)
@given(
    rates,
    st.lists(
        st.tuples(st.floats(0, 2), st.none() | st.floats(0, 5), st.booleans()),
        min_size=1,
        max_size=200,
    ),
)
def test_refusals_never_open_the_window(per_s: float, steps: list[tuple[float, float | None, bool]]) -> None:
    """429s and pauses never raise the rate above the configured one, and no window exceeds it."""
    controller = RateController(per_s)
    now_s, times_s = 0.0, []
    for gap_s, retry_after_s, refused in steps:
        now_s = submit_next(controller, now_s + gap_s)
        times_s.append(now_s)
        if refused:
            controller.on_rate_limited(now_s, now_s, retry_after_s)
        elif retry_after_s:
            controller.pause(now_s, retry_after_s)
        assert 0 < controller.per_s <= per_s
    assert max_in_window(times_s, 1.0 - 2 * EPSILON_S) <= per_s + 1


@settings(deadline=None)
@given(st.floats(1, 300), st.integers(0, 1000), st.floats(0.0, 0.3))
def test_a_found_limit_never_opens_the_window(per_s: float, seed: int, refused_share: float) -> None:
    """While a limit below the configured rate is searched, too, no window of one second exceeds rate + 1."""
    controller, random = RateController(per_s), Random(seed)
    now_s, times_s = 0.0, []
    for _ in range(300):
        while (wait_s := controller.wait_s(now_s)) > 0:
            now_s += max(wait_s, EPSILON_S)
        controller.on_sent(now_s)
        times_s.append(now_s)
        if random.random() < refused_share:
            controller.on_rate_limited(now_s, now_s, random.choice((None, 0.0, 0.3, 1.0)))
        else:
            controller.on_response(now_s, now_s)
        now_s += random.choice((0.0, 0.0, 0.1))
    assert max_in_window(times_s, 1.0 - 2 * EPSILON_S) <= per_s + 1


@pytest.mark.parametrize("per_s", [2.5, 6 / 60, 1.0, 10.0, 10.5, 600 / 60, 5000 / 3600, 99.9, 1500.0])
def test_the_rate_is_reached(per_s: float) -> None:
    """A caller with a backlog uses the rate to within 1 %, whole or not, per second or per minute."""
    controller = RateController(per_s)
    count = max(400, math.ceil(per_s) * 20)
    now_s = first_s = submit_next(controller, 0.0)
    for _ in range(count):
        now_s = submit_next(controller, now_s)
    burst = math.ceil(per_s)  # the first window starts full
    assert count / (now_s - first_s) == pytest.approx(per_s, rel=0.01 + burst / count)
    assert (count - burst) / (now_s - first_s) <= per_s * 1.001


@pytest.mark.parametrize("per_s", [2.5, 7.7, 50.0])
def test_late_callers_still_reach_the_rate(per_s: float) -> None:
    """A caller with a backlog that is late in each window still gets the whole rate."""
    controller = RateController(per_s)
    times_s = []
    for tick in range(1, 200):  # It wakes every 0.3 s and sends as much as allowed.
        while controller.wait_s(tick * 0.3) <= 0:
            controller.on_sent(tick * 0.3)
            times_s.append(tick * 0.3)
    min_per_s = math.ceil(per_s) / (math.ceil(per_s) / per_s + 0.3)
    assert len(times_s) / (200 * 0.3) >= min_per_s * 0.99


class TestPauses:
    @given(rates, st.floats(0, 1000), st.floats(0, 3600))
    def test_retry_after_pauses(self, per_s: float, now_s: float, retry_after_s: float) -> None:
        """After a 429 no submit is allowed before its Retry-After has passed, and one is right after it."""
        controller = RateController(per_s)
        controller.on_sent(now_s)
        controller.on_rate_limited(now_s, now_s, retry_after_s)
        assert controller.wait_s(now_s) >= retry_after_s - EPSILON_S
        assert controller.paused_s(now_s) == pytest.approx(retry_after_s)
        assert controller.wait_s(now_s + retry_after_s + max(EPSILON_S, 2 / per_s)) == 0
        assert controller.paused_s(now_s + retry_after_s + EPSILON_S) == 0

    def test_a_429_without_retry_after_pauses_too(self) -> None:
        """A 429 without Retry-After pauses all submits, longer each time until one is accepted."""
        controller, now_s = RateController(10), 5.0
        pauses_s: list[float] = []
        for _ in range(20):
            controller.on_sent(now_s)
            controller.on_rate_limited(now_s, now_s, None)
            pauses_s.append(controller.paused_s(now_s))
            now_s += pauses_s[-1] + 1.0
            controller.wait_s(now_s)
        assert pauses_s[:4] == pytest.approx([PAUSE_WITHOUT_RETRY_AFTER_S * PAUSE_GROWTH**n for n in range(4)])
        assert pauses_s[-1] == pytest.approx(MAX_PAUSE_WITHOUT_RETRY_AFTER_S)
        controller.on_sent(now_s)
        controller.on_response(now_s, now_s)
        controller.on_sent(now_s + 1)
        controller.on_rate_limited(now_s + 1, now_s + 1, None)
        assert controller.paused_s(now_s + 1) == pytest.approx(PAUSE_WITHOUT_RETRY_AFTER_S)

    @given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=20))
    def test_the_longest_pause_counts(self, pauses: list[tuple[float, float]]) -> None:
        """Of several pauses the one that ends last counts; a shorter one never shortens it."""
        controller, now_s, until_s = RateController(10), 0.0, 0.0
        for index, (gap_s, wait_s) in enumerate(pauses):
            now_s += gap_s
            until_s = max(until_s, now_s + wait_s)
            if index % 2:
                controller.pause(now_s, wait_s)
            else:
                controller.on_rate_limited(now_s, now_s, wait_s)
            assert controller.paused_s(now_s) == pytest.approx(max(0.0, until_s - now_s))

    def test_a_pause_keeps_the_rate(self) -> None:
        """A pause that is not a 429 does not change the rate."""
        controller = RateController(10)
        controller.pause(0.0, 7.0)
        assert (controller.wait_s(0.0), controller.per_s) == (7.0, 10)


class TestTheRateAfterA429:
    @pytest.mark.parametrize("answer_s", [0.0, 0.3, 5.0])
    def test_a_burst_of_429s_lowers_once(self, answer_s: float) -> None:
        """However many submits of one burst are refused, and however late, the rate is lowered once."""
        lowered: set[float] = set()
        for count in (1, 20):
            controller = RateController(100)
            for n in range(50):
                controller.on_sent(n / 100)
                if n < 50 - count:
                    controller.on_response(n / 100, n / 100 + answer_s)
            for n in range(50 - count, 50):
                controller.on_rate_limited(n / 100, n / 100 + answer_s, 1.0)
            controller.wait_s(10.0)
            lowered.add(round(controller.per_s / (50 - count), 1))
        assert len(lowered) == 1

    @given(rates)
    def test_one_429_lowers(self, per_s: float) -> None:
        """The first 429 lowers the rate, unless it is at its minimum; it never raises it."""
        controller = RateController(per_s)
        now_s = submit_next(controller, 0.0)
        refuse_next(controller, now_s, 1.0)
        assert 0 < controller.per_s <= per_s
        assert controller.per_s < per_s or per_s <= 1.0

    @pytest.mark.parametrize("per_s", [1 / 60, 0.05, 0.1])
    def test_slow_rates_are_not_raised_by_a_429(self, per_s: float) -> None:
        """A 429 at a configured rate of 1/min does not raise the rate above it."""
        controller, now_s = RateController(per_s), 0.0
        for _ in range(10):
            now_s = refuse_next(controller, now_s)
            assert 0 < controller.per_s <= per_s

    def test_accepted_submits_show_the_limit(self) -> None:
        """If 60 submits of a burst at 500/s are accepted, and a second has passed, the limit is 60/s."""
        controller = RateController(500)
        for n in range(70):
            controller.on_sent(n / 500)
            if n < 60:
                controller.on_response(n / 500, n / 500)
            else:
                controller.on_rate_limited(n / 500, n / 500 + 0.01, 1.0)
        controller.wait_s(1.2)
        assert controller.per_s == pytest.approx(60, rel=0.1)

    def test_a_single_unexpected_429_is_not_a_limit(self) -> None:
        """At a low submit rate, a single 429 shows nothing about the limit."""
        controller = RateController(100)
        for now_s in range(20):
            controller.on_sent(now_s)
            controller.on_response(now_s, now_s)
        refuse_next(controller, 20.0, 1.0)
        assert 90 <= controller.per_s < 100

    def test_a_limit_that_was_a_mistake(self) -> None:
        """If nothing is refused any more, the rate grows back to the configured one within a minute and a half."""
        controller, now_s = RateController(100), 0.0
        for _ in range(50):
            now_s = submit_next(controller, now_s)
        now_s = refuse_next(controller, now_s, 1.0)
        lowered_per_s, rates_per_s = controller.per_s, [controller.per_s]
        until_s = now_s + 90.0
        while now_s < until_s:
            now_s = submit_next(controller, now_s)
            rates_per_s.append(controller.per_s)
        assert lowered_per_s < 60
        assert rates_per_s[-1] == 100
        assert all(before <= after for before, after in pairwise(rates_per_s))

    def test_the_configured_rate_was_accepted(self) -> None:
        """A 429 after as many submits as configured does not lower the rate: they arrived closer together."""
        controller, now_s = RateController(100), 0.0
        for _ in range(500):
            now_s = submit_next(controller, now_s + 0.01)
        refuse_next(controller, now_s, 1.0)
        assert controller.per_s == 100

    def test_late_429s_show_nothing_new(self) -> None:
        """429s that arrive after the pause, for submits before it, pause again but do not change the rate."""
        controller = RateController(100)
        for n in range(40):
            controller.on_sent(n / 100)
            if n < 30:
                controller.on_response(n / 100, n / 100)
        controller.on_rate_limited(0.3, 0.4, 0.5)
        controller.wait_s(1.0)
        lowered_per_s = controller.per_s
        for n in range(31, 40):
            controller.on_rate_limited(n / 100, 1.1, 0.5)
        assert controller.paused_s(1.1) == 0.5
        controller.wait_s(2.0)
        assert controller.per_s == lowered_per_s

    def test_late_timers_do_not_lower_the_rate(self) -> None:
        """If each submit is sent a millisecond after it is due, the next ones are soon due as if it were not."""
        controller, late_s = RateController(100), 0.001
        controller.resume(FoundLimit(50.0))
        now_s = started_s = submit_next(controller, 0.0)
        for _ in range(200):
            now_s = submit_next(controller, now_s + controller.wait_s(now_s) + late_s)
        assert now_s - started_s == pytest.approx(200 / controller.per_s, abs=10 * late_s)

    @given(st.lists(st.floats(0, LATE_S), min_size=100, max_size=100))
    def test_a_late_submit_is_not_followed_closely(self, late_s: list[float]) -> None:
        """However late single submits are, no two are sent much closer than at an even rate."""
        controller, now_s = RateController(100), 0.0
        controller.resume(FoundLimit(50.0))
        times_s = [submit_next(controller, now_s)]
        for each_s in late_s:
            now_s = submit_next(controller, now_s + controller.wait_s(now_s) + each_s)
            times_s.append(now_s)
        gap_s = (1.0 - MAX_CATCH_UP) / controller.per_s
        assert all(later - earlier >= gap_s - EPSILON_S for earlier, later in pairwise(times_s))

    def test_a_break_is_not_caught_up(self) -> None:
        """After a break, submits are spread as before it."""
        controller = RateController(100)
        controller.resume(FoundLimit(50.0))
        now_s = submit_next(controller, submit_next(controller, 0.0) + 1.0)
        assert submit_next(controller, now_s) - now_s >= 1.0 / controller.per_s - EPSILON_S

    def test_submits_that_were_pending_at_a_refusal_are_not_followed_too_closely(self) -> None:
        """If a submit was sent shortly before the end of a pause, the next one is due as long after it as usual."""
        controller = RateController(100)
        controller.resume(FoundLimit(2.0))
        gap_s = 1.0 / controller.per_s
        for n in range(3):
            controller.on_sent(n * gap_s)
        controller.on_response(0.0, 2.1 * gap_s)
        controller.on_rate_limited(gap_s, 2.1 * gap_s, 0.1)  # The third one may have been accepted after it.
        now_s = submit_next(controller, 2.1 * gap_s)
        assert now_s - 2 * gap_s >= 1.0 / controller.per_s - EPSILON_S

    def test_a_cap_on_jobs_is_lowered_before_the_next_submit(self) -> None:
        """At the end of a pause, no submit uses the room that the cap had before the refusal."""
        controller = RateController(100)
        controller.resume(FoundLimit(100.0, max_jobs=10))
        for n in range(9):
            controller.on_sent(n / 10)
            controller.on_response(n / 10, n / 10)
        controller.on_sent(0.9)
        controller.on_rate_limited(0.9, 1.0, 0.5)  # The tenth job was one too many.
        assert controller.has_room(1.4)
        assert not controller.has_room(1.6)

    def test_submits_are_spread_below_the_configured_rate(self) -> None:
        """Once a lower limit is found, submits are evenly spread, since its bursts are unknown."""
        controller, now_s = RateController(100), 0.0
        for _ in range(50):
            now_s = submit_next(controller, now_s)
        now_s = refuse_next(controller, now_s, 1.0) + 10.0
        times_s = []
        for _ in range(20):
            now_s = submit_next(controller, now_s)
            times_s.append(now_s)
        assert all(later - earlier >= 0.9 / controller.per_s for earlier, later in pairwise(times_s))


# ---- limits of a second ----------------------------------------------------------------------------------


def simulate_limit(
    limit: str,
    configured_per_s: float,
    *,
    retry_after: bool,
    jobs: int,
    response_s: float = 0.02,
    discover: bool = False,
    stall_s: float = 0.0,
    busy_s: float = 0.0,
    start_s: float = 1000.0,
) -> tuple[float, float]:
    """Submit to a gateway with a limit until `jobs` are accepted.

    Every STALL_INTERVAL_S the network is blocked for `stall_s`: requests sent meanwhile arrive at the end of it. Each
    request is delayed by up to 3 ms. On a busy machine, those of one BUSY_INTERVAL_S are delayed more, by `busy_s` on
    average.

    Return the accepted submits per second, and the 429s per job.
    """
    gateway, controller, random = parse_limit(limit), RateController(configured_per_s, discover=discover), Random(1)
    assert gateway is not None
    now_s = next_s = accepted_s = start_s
    events: list[tuple[float, float, float]] = []  # when, sent, wait; -1: the request arrives
    accepted = rate_limited = 0
    while accepted < jobs:
        while events and events[0][0] <= now_s:
            at_s, sent_s, wait_s = heapq.heappop(events)
            if wait_s < 0:
                heapq.heappush(events, (at_s + response_s, sent_s, gateway.take(at_s)))
            elif wait_s > 0:
                rate_limited += 1
                controller.on_rate_limited(sent_s, at_s, max(1, math.ceil(wait_s)) if retry_after else None)
            else:
                accepted, accepted_s = accepted + 1, at_s
                controller.on_response(sent_s, at_s)
        wait_s = max(controller.wait_s(now_s), next_s - now_s)
        if wait_s > 0:
            now_s = min([now_s + max(wait_s, EPSILON_S), *(at_s for at_s, *_ in events[:1])])
            continue
        controller.on_sent(now_s)
        stalled_s = max(0.0, stall_s - now_s % STALL_INTERVAL_S) + random.uniform(0, 0.003)
        stalled_s += Random(now_s // BUSY_INTERVAL_S).expovariate(1 / busy_s) if busy_s else 0.0
        heapq.heappush(events, (now_s + stalled_s, now_s, -1.0))
        next_s = now_s + 1 / controller.pace_per_s  # as the leaky bucket spreads them
    return accepted / (accepted_s - start_s), rate_limited / jobs


STALL_INTERVAL_S = 5.3
BUSY_INTERVAL_S = 0.01
LIMIT_KINDS = ["fixed-window", "token-bucket", "sliding-window"]


@pytest.mark.parametrize("retry_after", [True, False], ids=["Retry-After", "none"])
@pytest.mark.parametrize("kind", LIMIT_KINDS)
def test_an_unconfigured_limit(kind: str, retry_after: bool) -> None:
    """With a rate of 500/s and a limit of 60/s, 92 % of the limit is used from the start, with at most 8 % 429s."""
    per_s, refused = simulate_limit(f"{kind}:60/s", 500, retry_after=retry_after, jobs=3000)
    assert per_s >= 0.92 * 60
    assert refused <= 0.08


@pytest.mark.parametrize("retry_after", [True, False], ids=["Retry-After", "none"])
@pytest.mark.parametrize("kind", LIMIT_KINDS)
def test_auto(kind: str, retry_after: bool) -> None:
    """Without a configured rate, 90 % of the limit is used from the start."""
    per_s, refused = simulate_limit(f"{kind}:60/s", 10_000, retry_after=retry_after, jobs=3000, discover=True)
    assert per_s >= 0.9 * 60
    assert refused <= 0.08


@pytest.mark.parametrize(
    ("limit", "configured_per_s", "jobs", "per_s", "burst", "min_used"),
    [
        ("token-bucket:60/s", 500, 4000, 60.0, 60, 0.95),
        ("token-bucket:60/s,10", 500, 4000, 60.0, 10, 0.92),
        ("gcra:60/s", 500, 4000, 60.0, 1, 0.72),
        ("sliding-window:60/10s", 500, 600, 6.0, 60, 0.92),
        ("fixed-window:300/m", 500, 900, 5.0, 300, 0.92),
        ("sliding-window:300/m", 500, 900, 5.0, 300, 0.92),
        ("token-bucket:2/s,5", 20, 240, 2.0, 5, 0.96),
        ("token-bucket:60/s,10", None, 4000, 60.0, 10, 0.92),
    ],
)
@pytest.mark.parametrize("eighth", [0, 3])
def test_short_runs(
    limit: str, configured_per_s: float | None, jobs: int, per_s: float, burst: int, min_used: float, eighth: int
) -> None:
    """Runs of one or two minutes use most of a limit of any shape, beyond what it lets through at first.

    Requests arrive up to 3 ms early or late, so a limit without any burst accepts 51/s of 60/s at most.
    """
    window_s = 60 if limit.endswith("/m") else 1
    accepted_per_s, _ = simulate_limit(
        limit,
        configured_per_s or 10_000,
        retry_after=True,
        jobs=jobs,
        discover=configured_per_s is None,
        start_s=1200 + window_s * eighth / 8,
    )
    assert (jobs - burst) / per_s * accepted_per_s / jobs >= min_used


@pytest.mark.parametrize(
    ("discover", "min_used", "min_mean"), [(False, 0.92, 0.93), (True, 0.88, 0.9)], ids=["configured", "auto"]
)
@pytest.mark.parametrize("response_s", [0.02, 0.06, 0.15])
def test_whenever_the_windows_start(discover: bool, min_used: float, min_mean: float, response_s: float) -> None:
    """With windows of a second, and Retry-After in whole seconds, most of a limit is used from the start.

    Without a configured rate, there are more pauses, each of which may be nearly a second longer than necessary.
    """
    used = [
        simulate_limit(
            "fixed-window:60/s",
            500,
            retry_after=True,
            jobs=3000,
            response_s=response_s,
            discover=discover,
            start_s=1000 + eighth / 8,
        )[0]
        / 60
        for eighth in range(8)
    ]
    assert min(used) >= min_used
    assert sum(used) / len(used) >= min_mean


@pytest.mark.parametrize("answer_s", [0.005, 0.2, 1.0])
@pytest.mark.parametrize("kind", LIMIT_KINDS)
def test_a_configured_limit_is_kept(kind: str, answer_s: float) -> None:
    """With the limit configured, nothing is refused, although requests are delayed; 98.5 % is used."""
    per_s, refused = simulate_limit(f"{kind}:200/s", 200, retry_after=True, jobs=3000, response_s=answer_s)
    assert refused == 0
    assert 0.985 * 200 * (1 - answer_s / 15) <= per_s <= 1.01 * 200


@pytest.mark.parametrize("answer_s", [0.005, 0.2])
@pytest.mark.parametrize("stall_s", [0.02, 0.04, 0.06])
@pytest.mark.parametrize("kind", LIMIT_KINDS)
def test_delayed_requests_count_when_they_arrive(kind: str, stall_s: float, answer_s: float) -> None:
    """If machine or network stall now and then, almost nothing is refused, and the limit is used."""
    per_s, refused = simulate_limit(
        f"{kind}:200/s", 200, retry_after=True, jobs=6000, response_s=answer_s, stall_s=stall_s
    )
    assert refused <= 0.001
    assert 0.97 * 200 * (1 - answer_s / 30) <= per_s <= 1.01 * 200


@pytest.mark.parametrize("kind", LIMIT_KINDS)
def test_a_configured_limit_on_a_busy_machine(kind: str) -> None:
    """If most requests are delayed by some milliseconds, and some by tens, nothing is refused; 97 % is used."""
    per_s, refused = simulate_limit(f"{kind}:800/s", 800, retry_after=True, jobs=12_000, busy_s=0.005)
    assert refused == 0
    assert 0.97 * 800 <= per_s <= 1.01 * 800


@pytest.mark.parametrize("answer_s", [0.5, 1.5, 4.0])
def test_slow_answers(answer_s: float) -> None:
    """If answers take seconds, the limit is found, too."""
    per_s, refused = simulate_limit("token-bucket:5/s", 40, retry_after=True, jobs=600, response_s=answer_s)
    assert per_s >= 0.6 * 5
    assert refused <= 0.6


def test_auto_starts_low() -> None:
    """Before anything is known, auto submits slowly, and grows only while the rate is used."""
    controller = RateController(10_000, discover=True)
    assert controller.per_s == DISCOVERY_START_PER_S
    for now_s in range(100):
        controller.on_sent(now_s)
        controller.on_response(now_s, now_s)
    assert controller.per_s == DISCOVERY_START_PER_S


def test_requests_that_share_the_limit_count() -> None:
    """Polls on a shared quota count in the window."""
    controller = RateController(10)
    for _ in range(4):
        controller.on_other_request(0.0)
    for _ in range(6):
        assert controller.wait_s(0.0) == 0
        controller.on_sent(0.0)
    assert controller.wait_s(0.0) > 0.99


def test_an_earlier_limit_comes_too_late() -> None:
    """A limit that an earlier run has found does not change the rate once a submit was sent."""
    controller, late = RateController(100.0, discover=True), RateController(100.0, discover=True)
    found = FoundLimit(50.0, 1.0, None)
    controller.resume(found)
    submit_next(late, 0.0)
    before_per_s = late.per_s
    late.resume(found)
    assert late.per_s == before_per_s != controller.per_s
