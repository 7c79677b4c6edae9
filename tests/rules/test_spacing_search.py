"""Test rules.spacing_search: the time between two submits that a limiter without any burst requires."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from krea_batch.rules.spacing_search import (
    FEW_SUBMITS,
    MARGIN_SHARE,
    MAX_FAILURES,
    PROBE_PAUSES,
    WIDER_SHARE,
    SpacingSearch,
    start_spacing,
)
from krea_batch.rules.window_fill import PROBE_DELAY_S

ANSWER_S = 0.002
MIN_S = 0.002
PAUSE_S = 1.0


class Client:
    """Sends submits at the spacing of a search to a limiter without any burst, which accepts one each `limit_s`.

    `delay_s` returns the delay of a submit, which its answer shows. `answer_delay_s` returns that of the answer
    itself, which looks the same.
    """

    def __init__(
        self, limit_s: float, *, delay_s: Callable[[], float] = float, answer_delay_s: Callable[[], float] = float
    ) -> None:
        self.limit_s = limit_s
        self._delay_s = delay_s
        self._answer_delay_s = answer_delay_s
        search = start_spacing([0.0], 0.001, PAUSE_S, MIN_S)
        assert search is not None
        self.search, self.now_s, self._latest_s = search, PAUSE_S, 0.0
        self.pauses_s: list[float] = []  # when submits were refused

    @property
    def pauses(self) -> int:
        """The number of pauses, with the one before the search."""
        return 1 + len(self.pauses_s)

    def submit(self) -> bool:
        """Send a submit. Return whether the search goes on; a refused submit is followed by a pause."""
        search, sent_s, delay_s = self.search, self.now_s, self._delay_s()
        search.on_sent(sent_s, ANSWER_S)
        shown_s = delay_s + self._answer_delay_s()
        search.on_answered(sent_s, shown_s)
        self.now_s += search.spacing_s + shown_s
        refused_s = self.limit_s - (sent_s + delay_s - self._latest_s)
        if refused_s <= 0.0:
            self._latest_s = sent_s + delay_s
            return True
        self.pauses_s.append(sent_s)
        self.now_s = sent_s + max(PAUSE_S, refused_s)
        return search.resume(self.now_s, sent_s)

    def run(self, duration_s: float) -> None:
        """Send submits for some time."""
        end_s = self.now_s + duration_s
        while self.now_s < end_s:
            assert self.submit()


class TestTheStart:
    def test_a_refused_submit_between_accepted_ones_that_are_further_apart(self) -> None:
        """The search starts at the shortest time after which a submit was accepted."""
        search = start_spacing([0.0, 0.1, 0.15], 0.17, 1.0, MIN_S)
        assert search is not None
        assert search.spacing_s == pytest.approx(0.05)

    def test_one_accepted_submit(self) -> None:
        """The range from the refused time to the end of the pause is wide, so the search starts in its middle."""
        search = start_spacing([0.0], 0.01, 0.99 + 0.01, MIN_S)
        assert search is not None
        assert search.spacing_s == pytest.approx((0.01 * 1.0) ** 0.5)

    def test_a_burst(self) -> None:
        """Submits that were accepted closer together show that another limiter refused this one."""
        assert start_spacing([0.0, 0.005, 0.010], 0.015, 1.0, MIN_S) is None

    @pytest.mark.parametrize("accepted_s", [[], [5.0]], ids=["none", "much later"])
    def test_no_accepted_submit_before(self, accepted_s: list[float]) -> None:
        """Without an accepted submit before it, a refused one shows nothing."""
        assert start_spacing(accepted_s, 1.0, 2.0, MIN_S) is None

    def test_the_first_of_submits_that_are_sent_together(self) -> None:
        """Not always the first one is accepted, so one that was sent a millisecond later counts."""
        assert start_spacing([1.001], 1.0, 2.0, MIN_S) is not None


@pytest.mark.parametrize("limit_s", [0.005, 1 / 60, 0.1, 0.4, 3.0])
def test_the_limit_is_found_with_few_pauses(limit_s: float) -> None:
    """After the sweep, submits are sent at nearly the time that the limiter requires, and none is refused."""
    client = Client(limit_s)
    client.run(60.0 * limit_s + 5.0)
    assert limit_s <= client.search.spacing_s <= 1.04 * limit_s
    pauses = client.pauses
    assert pauses <= 5
    client.run(PROBE_DELAY_S)
    assert client.pauses == pauses


def test_an_answer_that_is_late_itself() -> None:
    """After a late answer, a spacing below the limit is accepted, because the next submit is sent later."""
    limit_s = 0.0168
    client = Client(limit_s, answer_delay_s=lambda: 0.002 * (0.98 * limit_s < client.search.spacing_s < limit_s))
    client.run(2.5)
    assert client.pauses == 2
    assert client.search.spacing_s >= limit_s


def test_a_limit_above_the_configured_rate() -> None:
    """The spacing is never shorter than the configured rate allows."""
    client = Client(0.0001)
    client.run(30.0)
    assert client.search.spacing_s == MIN_S


def test_the_first_submit_after_an_earlier_run_is_refused() -> None:
    """Others have used the limit, which shows nothing about the time between two submits."""
    search = SpacingSearch((), 0.02, 0.0, MIN_S)
    search.on_sent(0.1, ANSWER_S)
    assert search.resume(1.1, 0.1)
    assert search.spacing_s == 0.02


def test_a_probe_without_success() -> None:
    """Every 75 pauses, a closer spacing is tried, and given up when it is refused."""
    client = Client(1 / 60)
    client.run(400.0)
    intervals_s = [later_s - earlier_s for earlier_s, later_s in pairwise(client.pauses_s[1:])]
    assert min(intervals_s) >= max(PROBE_DELAY_S, PROBE_PAUSES * PAUSE_S)
    assert 1 / 60 <= client.search.spacing_s <= 1.03 / 60


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.4, 2.0])
def test_a_limit_that_changes(factor: float) -> None:
    """A lower limit is followed immediately, and a higher one after the next probe."""
    client = Client(1 / 60)
    client.run(100.0)
    client.limit_s *= factor
    client.run(90.0)
    assert client.limit_s <= client.search.spacing_s <= 1.04 * client.limit_s


def test_delays_that_no_answer_shows() -> None:
    """Submits that arrive too close together are spaced wider, until hardly any is refused."""
    random, client = Random(1), Client(0.02)
    limit_s = client.limit_s
    for _ in range(20):
        client.run(10.0)
        client.limit_s = limit_s + 0.002 * random.random()
    assert limit_s + 0.0015 <= client.search.spacing_s <= limit_s + 0.003


def test_a_delay_that_an_answer_shows_is_no_reason() -> None:
    """The time between two submits is that between their arrivals, so a late one is no evidence."""
    random = Random(1)
    client = Client(0.02, delay_s=lambda: 0.004 * random.random())
    client.run(60.0)
    assert client.search.spacing_s <= 1.05 * 0.02


def refuse(client: Client, after: int) -> bool:
    """Refuse a submit after some accepted ones, whatever its spacing is. Return whether the search goes on."""
    limit_s, client.limit_s = client.limit_s, 0.0
    for _ in range(after):
        client.submit()
    client.limit_s = 10.0
    goes_on = client.submit()
    client.limit_s = limit_s
    return goes_on


def test_refused_after_many_accepted_submits() -> None:
    """A refusal that is rare is answered with a small step."""
    client = Client(0.02)
    client.run(10.0)
    spacing_s = client.search.spacing_s
    assert refuse(client, after=FEW_SUBMITS)
    assert client.search.spacing_s == pytest.approx((1 + 2 * MARGIN_SHARE) * spacing_s)


def test_refused_soon() -> None:
    """Submits that are refused soon are spaced wider, by more each time. In the end, there may be a burst."""
    client = Client(0.02)
    client.run(10.0)
    refuse(client, after=2)
    for failure in range(1, MAX_FAILURES + 1):
        spacing_s = client.search.spacing_s
        assert refuse(client, after=2)
        assert client.search.spacing_s == pytest.approx((1 + failure * WIDER_SHARE) * spacing_s)
    assert not refuse(client, after=2)


def test_another_request_that_is_refused() -> None:
    """A refused poll that counts against the same limit is no submit; the search goes on."""
    client = Client(0.02)
    client.run(10.0)
    assert client.search.resume(client.now_s + 1.0, client.now_s)
    assert client.search.spacing_s >= 0.02
