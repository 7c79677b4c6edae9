"""Test rules.submit_log: submits without an answer, and accepted ones in the order in which they were sent."""

from __future__ import annotations

import math

import pytest

from krea_batch.rules.submit_log import KEPT_S, SubmitLog


def accepted_log(*times_s: float) -> SubmitLog:
    """Return a log of accepted submits, whose answers arrived in this order."""
    log = SubmitLog()
    for sent_s in times_s:
        log.on_sent(sent_s)
        log.on_accepted(sent_s)
    return log


def test_accepted_submits_are_counted_in_order() -> None:
    """Answers may arrive in another order than their submits."""
    log = accepted_log(1.0, 3.0, 2.0, 3.0)
    assert [log.count(start_s) for start_s in (0.0, 2.0, 3.0, 3.1)] == [4, 3, 2, 0]
    assert log.count(1.0, 3.0) == 2
    assert list(log.times_s(1.5, math.inf)) == [2.0, 3.0, 3.0]


@pytest.mark.parametrize(("sent_s", "count", "before_s"), [(4.0, 1, 3.0), (3.0, 1, 2.0), (math.inf, 3, 1.0)])
def test_the_submit_so_many_before(sent_s: float, count: int, before_s: float) -> None:
    """`before` counts back from a time, without the submits of that time."""
    assert accepted_log(1.0, 2.0, 3.0).before(sent_s, count) == before_s


def test_none_so_many_before() -> None:
    """If there are fewer submits, it was an infinite time ago."""
    assert accepted_log(1.0, 2.0).before(3.0, 3) == -math.inf


def test_old_submits_are_forgotten() -> None:
    """Those that no limiter remembers are removed from time to time."""
    log = accepted_log(*(float(second) for second in range(5000)))
    assert log.count(0.0) == pytest.approx(KEPT_S, rel=4.0)
    assert log.count(5000 - KEPT_S) == KEPT_S


def test_submits_without_an_answer() -> None:
    """A submit is unanswered until it is accepted, refused or not sent; what is not in the log is ignored."""
    log = SubmitLog()
    for sent_s in (1.0, 2.0, 2.0, 3.0):
        log.on_sent(sent_s)
    log.on_accepted(2.0)
    log.on_not_accepted(1.0)
    log.on_not_accepted(7.0)
    assert log.unanswered_s == [2.0, 3.0]
    assert log.count(0.0) == 1
