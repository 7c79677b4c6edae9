"""Test rules.window_fill: windows are filled, and their length and number are followed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from krea_batch.rules.submit_log import SubmitLog
from krea_batch.rules.window_fill import PROBE_DELAY_S, WindowFill
from krea_batch.testing.simulator.request_limits import (
    FixedWindow,
    JobsInProcess,
    RequestLimit,
    SlidingWindow,
    TokenBucket,
)

ANSWER_S = 0.02
START_S = 1000.0


@dataclass
class FillRun:
    """A backlog that is submitted to a limiter by filling windows. Answers take no time."""

    limit: RequestLimit
    count: int
    whole_seconds: bool = False
    pause_s: float | None = None  # after a 429 without Retry-After
    now_s: float = START_S
    log: SubmitLog = field(default_factory=SubmitLog)
    refused_s: list[float] = field(default_factory=list)
    ended: bool = False
    fill: WindowFill = field(init=False)

    def __post_init__(self) -> None:
        """Fill the first window immediately, and learn its length from the wait."""
        self.limit.take(self.now_s)
        self.log.on_accepted(self.now_s)
        while not (wait_s := self.limit.take(self.now_s)):
            self.log.on_accepted(self.now_s)
        wait_s = self._retry_after_s(wait_s)
        self.fill = WindowFill(self.log, self.count, wait_s - self.whole_seconds, wait_s, self.now_s + wait_s)
        self.now_s += wait_s

    def _retry_after_s(self, wait_s: float) -> float:
        return float(math.ceil(wait_s)) if self.whole_seconds else wait_s

    def run(self, until_s: float) -> int:
        """Submit until a time after the start, and return how many submits were accepted after the first window."""
        accepted = 0
        while self.now_s < START_S + until_s and not self.ended:
            free_s = self.fill.free_s(0, ANSWER_S)
            if free_s > self.now_s:
                self.now_s = free_s
                continue
            accepted += self._submit()
            self.now_s += 1.0 / self.fill.pace_per_s(ANSWER_S)
        return accepted

    def _submit(self) -> bool:
        sent_s = self.now_s
        self.log.on_sent(sent_s)
        wait_s = self.limit.take(sent_s)
        if not wait_s:
            self.limit.on_accepted(sent_s + 30.0)
            self.log.on_accepted(sent_s)
            self.ended = not self.fill.on_accepted(sent_s)
            return True
        self.log.on_not_accepted(sent_s)
        self.refused_s.append(sent_s - START_S)
        self.now_s += self._retry_after_s(wait_s) if self.pause_s is None else self.pause_s
        self.ended = not self.fill.resume(self.now_s, sent_s)
        return False


@pytest.mark.parametrize("limit", [SlidingWindow(30, 10.0), FixedWindow(30, 10.0)], ids=["sliding", "fixed"])
def test_each_window_is_filled(limit: RequestLimit) -> None:
    """All that a window allows is sent in it, without a 429 but for probes."""
    run = FillRun(limit, 30)
    assert run.run(101.0) == 300
    assert len(run.refused_s) <= 2
    assert not run.ended


def test_a_length_in_whole_seconds_is_bisected() -> None:
    """Retry-After is up to a second too long. A few 429s show the length to one percent."""
    run = FillRun(SlidingWindow(30, 9.3), 30, whole_seconds=True)
    run.run(120.0)
    assert run.fill.window_s == pytest.approx(9.3, rel=0.01)
    assert len([at_s for at_s in run.refused_s if at_s < PROBE_DELAY_S]) <= 4


@pytest.mark.parametrize("count", [10, 40])
def test_another_number_is_followed(count: int) -> None:
    """If the limit changes, the new number is found within two minutes."""
    run = FillRun(SlidingWindow(20, 10.0), 20)
    run.run(50.0)
    run.limit = SlidingWindow(count, 10.0)
    run.run(170.0)
    assert run.run(270.0) == pytest.approx(10 * count, abs=count)
    assert run.fill.count == pytest.approx(count, abs=1)


def test_refused_submits_that_count() -> None:
    """If refused submits count, too, windows are filled nevertheless."""
    run = FillRun(SlidingWindow(40, 10.0, counts_refused=True), 40)
    assert run.run(201.0) >= 0.9 * 800
    assert not run.ended


def test_a_window_that_was_tried_too_short_keeps_its_number() -> None:
    """A refusal long after the window was filled shows a longer window, and not a lower number."""
    run = FillRun(SlidingWindow(40, 10.0), 40)
    run.fill = WindowFill(run.log, 40, 5.0, 9.5, run.now_s)
    run.run(130.0)
    assert (run.fill.count, run.ended) == (40, False)
    assert run.fill.window_s == pytest.approx(10.0, rel=0.03)


def test_a_length_that_is_bisected_from_far_below() -> None:
    """However often a window is tried too short while its length is searched, it is still taken for a window."""
    run = FillRun(SlidingWindow(40, 100.0), 40)
    run.fill, run.pause_s = WindowFill(run.log, 40, 55.0, 101.0, START_S + 101.0), 0.5
    run.now_s = START_S + 101.0
    run.run(1000.0)
    assert not run.ended
    assert run.fill.window_s == pytest.approx(100.0, rel=0.02)


@pytest.mark.parametrize("limit", [TokenBucket(0.3, 8), JobsInProcess(8)], ids=["bucket", "jobs in process"])
def test_other_limiters_are_not_filled(limit: RequestLimit) -> None:
    """A limiter that accepts less than half of the number after its pause has no window."""
    for number in range(8):
        assert limit.take(START_S) == 0.0
        limit.on_accepted(START_S + 9.0 + 3 * number)
    run = FillRun(SlidingWindow(8, 10.0), 8)
    run.limit = limit
    run.run(60.0)
    assert run.ended


def test_a_submit_that_may_be_refused_is_sent_alone() -> None:
    """Until the length is known, the next submit waits for the answer to the first one of a window."""
    log = SubmitLog()
    for n in range(10):
        log.on_accepted(START_S + 0.01 * n)
    fill = WindowFill(log, 10, 4.0, 5.0, START_S + 5.0)
    sent_s = START_S + 4.6
    log.on_sent(sent_s)
    assert fill.free_s(0, 0.5) == pytest.approx(sent_s + 0.5)
    log.on_accepted(sent_s)
    assert fill.on_accepted(sent_s)
    log.on_sent(sent_s + 0.5)
    assert fill.free_s(0, 0.5) < sent_s + 0.5


def test_a_window_that_becomes_a_bucket() -> None:
    """If the limiter has no window any more, windows are no longer filled."""
    run = FillRun(SlidingWindow(30, 10.0), 30)
    run.run(45.0)
    was_ended = run.ended
    run.limit, run.pause_s = TokenBucket(1.0, 1.0), 0.2
    run.run(400.0)
    assert (was_ended, run.ended) == (False, True)
    assert run.fill.is_known
