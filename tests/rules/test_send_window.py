"""Test rules.send_window and rules.answer_latency: windows of a second, and requests that were delayed."""

from __future__ import annotations

import math
from random import Random

import pytest

from krea_batch.rules.answer_latency import ABSORBED_S, MAX_DELAY_S, MAX_MEAN_DELAY, MAX_MEAN_LATE_S, AnswerLatency
from krea_batch.rules.send_window import COLD_MARGIN_S, MARGIN_S, MAX_MARGIN_S, WARM_UP_S, SendWindow


class TestTheWindow:
    @pytest.mark.parametrize(
        ("per_s", "sent_s", "free_s"),
        [
            (3.0, [], -math.inf),
            (3.0, [0.0, 0.1], -math.inf),
            (3.0, [0.0, 0.1, 0.2], 1.0 + COLD_MARGIN_S),
            (3.0, [0.0, 0.1, 5.0, 5.1, 5.2], 6.0 + MARGIN_S),
            (2.5, [0.0, 5.0, 5.0, 5.0], 6.2 + MARGIN_S),  # three in 1.2 s
            (0.5, [0.0, 9.0], 11.0 + MARGIN_S),
        ],
    )
    def test_when_the_next_request_is_free(self, per_s: float, sent_s: list[float], free_s: float) -> None:
        """As many requests as the rate allows are free at any time, the next one a window later."""
        window = SendWindow(per_s)
        for at_s in sent_s:
            window.add(at_s)
        assert window.free_s() == pytest.approx(free_s)

    def test_a_delayed_request_counts_when_it_arrives(self) -> None:
        """A request that was late counts as sent later; one that does not count any more changes nothing."""
        window = SendWindow(2.0)
        for at_s in (0.0, WARM_UP_S, 1.0):
            window.add(at_s)
        window.delay(0.0, 9.0)
        window.delay(WARM_UP_S, 0.3)
        assert window.free_s() == pytest.approx(WARM_UP_S + 0.3 + 1.0 + MARGIN_S)

    def test_a_request_may_be_delayed_more_than_once(self) -> None:
        """A request that was sent late, and whose answer was late as well, counts with both delays."""
        window = SendWindow(2.0)
        for at_s in (0.0, 5.0, 6.0):
            window.add(at_s)
        window.delay(5.0, 0.3)
        window.add(6.1)
        window.add(6.2)
        window.delay(6.1, 0.2)
        window.delay(6.1, 0.4)
        assert window.free_s() == pytest.approx(6.2 + 1.0 + MARGIN_S)
        window.add(7.3)
        assert window.free_s() == pytest.approx(6.7 + 1.0 + MARGIN_S)

    def test_the_margin_is_doubled_up_to_a_limit(self) -> None:
        """Windows get longer if requests arrive too close to each other, but not without end."""
        window, widened = SendWindow(1.0), 0
        while window.widen():
            widened += 1
        assert MAX_MARGIN_S / 2 < MARGIN_S * 2 ** (widened - 1) <= 2 * MAX_MARGIN_S


class TestLateAnswers:
    def test_an_answer_that_takes_far_longer_is_late(self) -> None:
        """After answers that vary, one that takes three times as long is late by the difference."""
        latency = AnswerLatency()
        assert not any([latency.observe(0.1 + n % 3 * 0.03, 50.0) for n in range(200)][100:])
        assert latency.observe(0.4, 50.0) == pytest.approx(0.27, abs=0.01)
        assert latency.usual_s == pytest.approx(0.13, abs=0.01)
        assert latency.long_s > latency.usual_s

    def test_a_small_delay_counts_if_that_costs_little(self) -> None:
        """Among answers that take about as long, one that takes longer than the fastest and the margin is late."""
        latency, random = AnswerLatency(), Random(1)
        late_s = [latency.observe(0.001 + 0.01 * random.random() ** 2, 800.0) for _ in range(2000)]
        assert sum(late_s) / len(late_s) <= MAX_MEAN_LATE_S
        assert latency.observe(0.011, 800.0) == pytest.approx(0.01 - ABSORBED_S, abs=0.001)

    def test_a_stall_does_not_make_late_answers_usual(self) -> None:
        """All requests of a stall are late, and a following one that is fast may be sent too early otherwise."""
        latency = AnswerLatency()
        for _ in range(1000):
            latency.observe(0.002, 800.0)
        late_s = [latency.observe(0.022, 800.0) for _ in range(16)]
        assert min(late_s) == pytest.approx(0.02 - ABSORBED_S, abs=0.001)

    def test_a_delay_among_very_different_answers(self) -> None:
        """If the time that answers take varies by much, one is late only if it takes far longer."""
        latency, random = AnswerLatency(), Random(1)
        late_s = [latency.observe(0.5 + 0.1 * random.random(), 800.0) for _ in range(2000)]
        assert not any(late_s[1000:])

    def test_slower_answers_become_usual(self) -> None:
        """If all answers get slower, they are not late for long."""
        latency = AnswerLatency()
        for _ in range(50):
            latency.observe(0.1, 10.0)
        late = [latency.observe(0.5, 10.0) > 0 for _ in range(50)]
        assert late[0]
        assert not any(late[25:])

    @pytest.mark.parametrize("spacing_s", [0.015, 0.05])
    def test_a_delay_that_an_answer_shows(self, spacing_s: float) -> None:
        """Of answers that take about as long as usual, one that takes longer shows a delay, up to 5 ms."""
        latency = AnswerLatency()
        for n in range(64):
            latency.delay_s(0.001 + n % 2 * 0.0002, spacing_s)
        assert latency.delay_s(0.001, spacing_s) == 0.0
        assert latency.delay_s(0.004, spacing_s) == pytest.approx(0.003, abs=0.0002)
        assert latency.delay_s(0.014, spacing_s) == MAX_DELAY_S

    def test_answers_before_requests_were_spaced(self) -> None:
        """The answers to a burst take longer, so they do not tell how long answers usually take afterwards."""
        latency = AnswerLatency()
        for _ in range(64):
            latency.observe(0.01, 500.0)
        for _ in range(8):
            latency.delay_s(0.001, 0.02)
        assert latency.delay_s(0.004, 0.02) == pytest.approx(0.003)

    def test_an_answer_after_the_next_request(self) -> None:
        """A request that does not wait for the answer to the one before it is not delayed by it."""
        latency = AnswerLatency()
        latency.delay_s(0.01, 0.02)
        assert latency.delay_s(0.02, 0.02) == 0.0

    def test_answers_that_take_very_different_times(self) -> None:
        """Waiting for delayed requests costs a small share of the rate, whatever the latencies are."""
        latency, random = AnswerLatency(), Random(1)
        latencies_s = [0.001 + 0.03 * random.random() for _ in range(64)]
        for latency_s in latencies_s:
            latency.delay_s(latency_s, 0.05)
        delays_s = [latency.delay_s(latency_s, 0.05) for latency_s in latencies_s]
        assert 0.0 < sum(delays_s) / len(delays_s) <= MAX_MEAN_DELAY * 0.05
