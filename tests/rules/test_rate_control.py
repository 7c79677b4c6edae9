"""Test rules.rate_control: the rate is kept, and a limit of the gateway is found."""

from __future__ import annotations

import heapq
import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krea_batch.rules.rate_control import (
    DECREASE_TO,
    DISCOVERY_START_PER_S,
    FALLBACK_DECREASE_TO,
    MAX_PAUSE_WITHOUT_RETRY_AFTER_S,
    PAUSE_WITHOUT_RETRY_AFTER_S,
    PROBE_DELAY_S,
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
    """429s and pauses never raise the rate, and no window exceeds it."""
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


@given(rates, st.floats(0, 1000), st.floats(0, 3600))
def test_retry_after_pauses(per_s: float, now_s: float, retry_after_s: float) -> None:
    """After a 429 no submit is allowed before its Retry-After has passed, and one is right after it."""
    controller = RateController(per_s)
    controller.on_rate_limited(now_s, now_s, retry_after_s)
    assert controller.wait_s(now_s) == pytest.approx(retry_after_s)
    assert controller.paused_s(now_s) == pytest.approx(retry_after_s)
    assert controller.wait_s(now_s + retry_after_s + EPSILON_S) == 0
    assert controller.paused_s(now_s + retry_after_s + EPSILON_S) == 0


def test_a_429_without_retry_after_pauses_too() -> None:
    """A 429 without Retry-After pauses all submits, longer each time until one is accepted."""
    controller, now_s = RateController(10), 5.0
    pauses_s: list[float] = []
    for _ in range(10):
        controller.on_sent(now_s)
        controller.on_rate_limited(now_s, now_s, None)
        pauses_s.append(controller.paused_s(now_s))
        now_s += pauses_s[-1] + 1.0
    assert pauses_s[:4] == pytest.approx(
        [
            PAUSE_WITHOUT_RETRY_AFTER_S,
            2 * PAUSE_WITHOUT_RETRY_AFTER_S,
            4 * PAUSE_WITHOUT_RETRY_AFTER_S,
            8 * PAUSE_WITHOUT_RETRY_AFTER_S,
        ]
    )
    assert pauses_s[-1] == pytest.approx(MAX_PAUSE_WITHOUT_RETRY_AFTER_S)
    controller.on_response(now_s, now_s)
    controller.on_sent(now_s)
    controller.on_rate_limited(now_s, now_s, None)
    assert controller.paused_s(now_s) == pytest.approx(PAUSE_WITHOUT_RETRY_AFTER_S)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=20))
def test_the_longest_pause_counts(pauses: list[tuple[float, float]]) -> None:
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


def test_a_pause_keeps_the_rate() -> None:
    """A pause that is not a 429 does not change the rate."""
    controller = RateController(10)
    controller.pause(0.0, 7.0)
    assert (controller.wait_s(0.0), controller.per_s) == (7.0, 10)


@given(st.integers(1, 200), st.floats(0, 30), st.none() | st.floats(0, 60))
def test_a_burst_of_429s_lowers_once(count: int, answer_s: float, retry_after_s: float | None) -> None:
    """However many submits of one burst are refused, and however late, the rate is lowered once."""
    controller = RateController(100)
    for index in range(count):
        controller.on_rate_limited(index / 1000, index / 1000 + answer_s, retry_after_s)
    lowered_in_time = answer_s < count / 1000  # Later submits were sent after the first 429 arrived.
    if not lowered_in_time:
        assert controller.per_s == pytest.approx(100 * FALLBACK_DECREASE_TO)


@given(rates)
def test_one_429_lowers(per_s: float) -> None:
    """The first 429 lowers the rate, unless it is at its minimum; it never raises it."""
    controller = RateController(per_s)
    controller.on_rate_limited(1.0, 1.0, 0.0)
    assert controller.per_s < per_s or per_s <= 0.1
    assert 0 < controller.per_s <= per_s


@pytest.mark.parametrize("per_s", [1 / 60, 0.05, 0.1])
def test_slow_rates_are_not_raised_by_a_429(per_s: float) -> None:
    """A 429 at a configured rate of 1/min does not raise the rate above it."""
    controller = RateController(per_s)
    for now_s in range(0, 600, 60):
        controller.on_rate_limited(now_s, now_s, None)
        assert 0 < controller.per_s <= per_s


def test_accepted_submits_show_the_limit() -> None:
    """If 60 submits of a burst at 500/s are accepted, the limit is 60/s."""
    controller = RateController(500)
    for n in range(70):
        controller.on_sent(n / 500)
        if n < 60:
            controller.on_response(n / 500, n / 500)
        else:
            controller.on_rate_limited(n / 500, n / 500 + 0.01, 1.0)
    assert controller.per_s == pytest.approx(60)


def test_a_single_unexpected_429_is_not_a_limit() -> None:
    """At a low submit rate, a single 429 shows nothing about the limit."""
    controller = RateController(100)
    for now_s in range(20):
        controller.on_sent(now_s)
        controller.on_response(now_s, now_s)
    controller.on_sent(20.0)
    controller.on_rate_limited(20.0, 20.0, 1.0)
    assert 90 <= controller.per_s < 100


def test_the_estimate_is_kept_before_probing() -> None:
    """An estimated limit is kept for a while; then the rate grows, slowly at first, up to the ceiling."""
    controller, now_s = RateController(100), 0.0
    controller.on_sent(now_s)
    controller.on_rate_limited(now_s, now_s, 0.0)
    estimate, history = controller.per_s, []
    while now_s < 60:
        now_s = submit_next(controller, now_s + 0.1)
        history.append((now_s, controller.per_s))
    assert {per_s for at_s, per_s in history if at_s < PROBE_DELAY_S} == {estimate}
    assert history[-1][1] == 100
    assert all(before <= after for (_, before), (_, after) in pairwise(history))


def test_a_failed_probe_is_not_repeated_soon() -> None:
    """After each refused probe the rate returns to an accepted one and stays there twice as long."""
    controller, now_s = RateController(100), 0.0
    refusals_s: list[float] = []
    while len(refusals_s) < 5:
        now_s += 0.01
        if controller.wait_s(now_s) > 0:
            continue
        controller.on_sent(now_s)
        if controller.per_s > 51:
            controller.on_rate_limited(now_s, now_s, 0.0)
            if controller.per_s > 51:
                controller.per_s = controller._limit_estimate_per_s = 50.0
            refusals_s.append(now_s)
        else:
            controller.on_response(now_s, now_s)
    gaps_s = [later - earlier for earlier, later in pairwise(refusals_s)]
    assert all(1.5 < later / earlier < 2.5 for earlier, later in pairwise(gaps_s))


def simulate_limit(
    limit: str,
    configured_per_s: float,
    *,
    retry_after: bool,
    jobs: int,
    response_s: float = 0.02,
    discover: bool = False,
    stall_s: float = 0.0,
    start_s: float = 1000.0,
) -> tuple[float, float]:
    """Submit to a gateway with a limit until `jobs` are accepted.

    Every STALL_INTERVAL_S the network is blocked for `stall_s`: requests sent meanwhile arrive at the end of it.
    Return the accepted submits per second, and the 429s per job.
    """
    gateway, controller, random = parse_limit(limit), RateController(configured_per_s, discover=discover), Random(1)
    assert gateway is not None
    now_s = next_s = start_s
    responses: list[tuple[float, float, float]] = []  # due, sent, wait
    accepted = rate_limited = 0
    while accepted < jobs:
        while responses and responses[0][0] <= now_s:
            due_s, sent_s, wait_s = heapq.heappop(responses)
            if wait_s > 0:
                rate_limited += 1
                controller.on_rate_limited(sent_s, due_s, max(1, math.ceil(wait_s)) if retry_after else None)
            else:
                accepted += 1
                controller.on_response(sent_s, due_s)
        wait_s = max(controller.wait_s(now_s), next_s - now_s)
        if wait_s > 0:
            now_s = min([now_s + max(wait_s, EPSILON_S), *(due_s for due_s, *_ in responses[:1])])
            continue
        controller.on_sent(now_s)
        stalled_s = max(0.0, stall_s - now_s % STALL_INTERVAL_S) + random.uniform(0, 0.003)
        heapq.heappush(responses, (now_s + stalled_s + response_s, now_s, gateway.take(now_s + stalled_s)))
        next_s = now_s + 1 / controller.per_s  # as the leaky bucket spreads them
    return accepted / (now_s - start_s), rate_limited / jobs


STALL_INTERVAL_S = 5.3
LIMIT_KINDS = ["fixed-window", "token-bucket", "sliding-window"]


@pytest.mark.parametrize("retry_after", [True, False], ids=["Retry-After", "none"])
@pytest.mark.parametrize("kind", LIMIT_KINDS)
def test_an_unconfigured_limit(kind: str, retry_after: bool) -> None:
    """With a rate of 500/s and a limit of 60/s, 92 % of the limit is used, with at most 8 % 429s."""
    per_s, refused = simulate_limit(f"{kind}:60/s", 500, retry_after=retry_after, jobs=3000)
    assert per_s >= 0.92 * 60
    assert refused <= 0.08


@pytest.mark.parametrize("retry_after", [True, False], ids=["Retry-After", "none"])
@pytest.mark.parametrize("kind", LIMIT_KINDS)
def test_auto(kind: str, retry_after: bool) -> None:
    """Without a configured rate, 90 % of the limit is used."""
    per_s, refused = simulate_limit(f"{kind}:60/s", 10_000, retry_after=retry_after, jobs=3000, discover=True)
    assert per_s >= 0.9 * 60
    assert refused <= 0.08


def test_auto_whenever_the_windows_start() -> None:
    """When the window of the gateway starts hardly matters: on average 90 % of the limit is used."""
    used = [
        simulate_limit(
            "fixed-window:60/s", 10_000, retry_after=True, jobs=3000, discover=True, start_s=1000 + eighth / 8
        )[0]
        / 60
        for eighth in range(8)
    ]
    assert min(used) >= 0.85
    assert sum(used) / len(used) >= 0.9


def test_auto_fills_a_window_to_find_the_limit() -> None:
    """After the pause of the first 429, a burst shows how many requests a window allows."""
    controller = RateController(10_000, discover=True)
    for n in range(8):
        controller.on_sent(n / 8)
        controller.on_response(n / 8, n / 8)
    controller.on_sent(1.0)
    controller.on_rate_limited(1.0, 1.0, 1.0)
    assert controller.wait_s(1.5) == 0.5
    assert controller.per_s >= 20
    for n in range(10):
        controller.on_sent(2.0 + n / 100)
        controller.on_response(2.0 + n / 100, 2.0 + n / 100)
    controller.on_sent(2.1)
    controller.on_rate_limited(2.1, 2.1, 1.0)
    assert controller.per_s == pytest.approx(10 * DECREASE_TO)


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
