"""Test rules.jobs_limit: a limit on the jobs in process is recognised, held by a cap, and followed."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import cycle, pairwise
from random import Random

import pytest

from krea_batch.rules.jobs_limit import (
    DISTRUST_S,
    DROP_BELOW,
    LARGEST_CUT,
    MAX_FULL_S,
    MAX_UNEXPLAINED,
    RAISE_AFTER_JOBS,
    REFUSALS,
    JobsLimit,
    Submit,
)


class LimitedJobs:
    """Accepts jobs as a rule allows, each for about ten seconds, and tells a `JobsLimit` what happens."""

    def __init__(self, is_accepted: Callable[[int], bool]) -> None:
        self.limit = JobsLimit()
        self.accepts = is_accepted
        self._ends_s: list[float] = []
        self._random = Random(1)
        self.now_s = 0.0
        self._accepted_since_pause = 0
        self.accepted = self.refused = 0

    def submit(self, per_s: float) -> None:
        """Submit the next job at this rate, if there is room. A refusal causes a pause of half a second."""
        self.now_s += 1.0 / per_s
        self._end_jobs()
        if not self.limit.has_room():
            return
        self.limit.on_sent(self.now_s, per_s)
        if self.accepts(len(self._ends_s)):
            self.limit.on_accepted(self.now_s)
            self._accepted_since_pause += 1
            self.accepted += 1
            heapq.heappush(self._ends_s, self.now_s + self._random.uniform(7.0, 13.0))
            return
        submit = self.limit.on_not_accepted(self.now_s)
        assert submit is not None
        self.refused += 1
        sent_s = self.now_s
        self.now_s += 0.5
        self._end_jobs()
        self.limit.explains(submit, sent_s, self.now_s, self._accepted_since_pause)
        self._accepted_since_pause = 0

    def _end_jobs(self) -> None:
        while self._ends_s and self._ends_s[0] <= self.now_s:
            heapq.heappop(self._ends_s)
            self.limit.on_ended()


def test_a_limit_on_jobs_is_recognised() -> None:
    """If jobs are refused whenever twenty are in process, at whatever rate, twenty become the cap."""
    gateway = LimitedJobs(lambda jobs: jobs < 20)
    rates = Random(2)
    while gateway.limit.cap is None and gateway.now_s < 120:
        gateway.submit(rates.choice((3.0, 6.0, 12.0)))
    assert gateway.limit.cap in (19, 20, 21)
    assert gateway.refused <= 5 * REFUSALS


def test_refusals_at_the_same_number_are_enough() -> None:
    """If only probes are refused, their rates are the highest, too; but their numbers of jobs are all the same."""
    gateway = LimitedJobs(lambda jobs: jobs < 6)
    rates = cycle([0.4] * 30 + [2.0] * 4)
    while gateway.limit.cap is None and gateway.now_s < 1000:
        gateway.submit(next(rates))
    assert gateway.limit.cap == 6


def test_a_window_that_is_filled_fast_is_not_taken_for_one() -> None:
    """If thirty jobs are accepted in the first seconds of each minute, thirty are in process at each refusal."""
    limit, minutes = JobsLimit(), range(3 * REFUSALS)
    for minute in minutes:
        for n in range(30):
            limit.on_sent(60.0 * minute + n / 10, 10.0)
            limit.on_accepted(60.0 * minute + n / 10)
        limit.on_sent(60.0 * minute + 3.0, 12.0)
        submit = limit.on_not_accepted(60.0 * minute + 3.0)
        assert submit == Submit(30, 12.0)
        for _ in range(30):
            limit.on_ended()
        assert not limit.explains(submit, 60.0 * minute + 3.0, 60.0 * minute + 60.0, 30)


def test_a_rate_limit_is_not_taken_for_one() -> None:
    """If one job in thirty is refused, however many are in process, there is no cap."""
    random = Random(3)
    gateway = LimitedJobs(lambda _: random.random() > 1 / 30)
    rates = Random(2)
    for _ in range(3000):
        gateway.submit(rates.choice((3.0, 6.0, 12.0)))
    assert gateway.refused > 50
    assert gateway.limit.cap is None


def test_the_start_of_a_run_shows_no_limit_on_jobs() -> None:
    """While no job has ended, their number only grows, so refusals do not come at the same number."""
    limit = JobsLimit()
    for group in range(20):
        for n in range(7):
            limit.on_sent(group + n / 10, 10.0)
            limit.on_accepted(group + n / 10)
        limit.on_sent(group + 0.8, 10.0)
        submit = limit.on_not_accepted(group + 0.8)
        assert submit == Submit(7 * (group + 1), 10.0)
        assert not limit.explains(submit, group + 0.8, group + 0.9, 7)


class TestTheCap:
    @pytest.fixture
    def gateway(self) -> LimitedJobs:
        """Return a gateway whose limit of twenty jobs has been recognised."""
        gateway, rates = LimitedJobs(lambda jobs: jobs < 20), Random(2)
        while gateway.limit.cap is None:
            gateway.submit(rates.choice((3.0, 6.0, 12.0)))
        return gateway

    def test_it_is_held(self, gateway: LimitedJobs) -> None:
        """With the cap, hardly any submit is refused, and the jobs in process stay near the limit."""
        gateway.accepted = gateway.refused = 0
        started_s = gateway.now_s
        for _ in range(2000):
            gateway.submit(8.0)
        assert gateway.refused <= gateway.accepted / RAISE_AFTER_JOBS
        assert gateway.accepted >= 0.9 * 20 * (gateway.now_s - started_s) / 10.0

    def test_it_follows_a_higher_limit(self, gateway: LimitedJobs) -> None:
        """When the limit doubles, the cap grows by steps that double."""
        gateway.accepts = lambda jobs: jobs < 40
        started_s = gateway.now_s
        while gateway.limit.jobs < 36:
            gateway.submit(8.0)
        assert gateway.now_s - started_s < 60

    def test_it_follows_a_lower_limit(self, gateway: LimitedJobs) -> None:
        """When the limit halves, the cap sinks with the jobs in process, and stays."""
        gateway.accepts = lambda jobs: jobs < 10
        for _ in range(400):
            gateway.submit(8.0)
        assert gateway.limit.cap is not None
        assert 9 <= gateway.limit.cap <= 13

    def test_steps_that_raise_it_do_not_make_refusals_unexplained(self, gateway: LimitedJobs) -> None:
        """A cap that was raised too far is lowered by a refusal at the old number, and not given up."""
        cap = gateway.limit.cap
        assert cap is not None
        gateway.limit.cap = cap + 8
        for _ in range(MAX_UNEXPLAINED):
            assert gateway.limit.explains(Submit(cap, 8.0), gateway.now_s, gateway.now_s, 20)
        assert gateway.limit.cap is not None
        assert gateway.limit.cap <= cap

    def test_refusals_far_below_it(self, gateway: LimitedJobs) -> None:
        """If submits are refused with far fewer jobs in process, the cap was a mistake; it does not return soon."""
        for _ in range(MAX_UNEXPLAINED):
            assert not gateway.limit.explains(Submit(5, 8.0), gateway.now_s, gateway.now_s, 10)
        assert gateway.limit.cap is None
        refused_at_20 = Submit(20, 8.0)
        for second in range(int(DISTRUST_S)):
            assert not gateway.limit.explains(refused_at_20, gateway.now_s, gateway.now_s + second, 10)

    def test_refusals_that_go_on(self, gateway: LimitedJobs) -> None:
        """If refusals follow each other, the cap is lowered by larger steps, and given up if that does not help."""
        cap = gateway.limit.cap
        assert cap is not None
        caps = [cap]
        while gateway.limit.cap is not None:
            gateway.limit.explains(Submit(gateway.limit.cap, 8.0), gateway.now_s, gateway.now_s, 2)
            caps.append(gateway.limit.cap or 0)
        assert caps[-1] == 0
        assert max(before - after for before, after in pairwise(caps[:-1])) <= cap // LARGEST_CUT
        assert min(caps[:-1]) >= DROP_BELOW * cap

    def test_a_full_cap_is_raised_when_no_job_ends(self, gateway: LimitedJobs) -> None:
        """The cap is raised by one if submits wait for two minutes without the end of a job, and not sooner."""
        limit, cap = gateway.limit, gateway.limit.cap
        assert cap is not None
        caps = []
        for seconds in (0.0, MAX_FULL_S - 1.0, MAX_FULL_S, MAX_FULL_S + 1.0):
            limit.on_full(gateway.now_s + seconds)
            caps.append(limit.cap)
        assert caps == [cap, cap, cap + 1, cap + 1]
        limit.on_ended()
        limit.on_full(gateway.now_s + 10 * MAX_FULL_S)
        assert limit.cap == cap + 1

    def test_jobs_that_are_about_to_be_submitted_count(self, gateway: LimitedJobs) -> None:
        """There is no room for more than the cap, including submits whose intent is being recorded."""
        cap, jobs = gateway.limit.cap, gateway.limit.jobs
        assert cap is not None
        assert gateway.limit.has_room(cap - jobs - 1)
        assert not gateway.limit.has_room(cap - jobs)


def test_two_submits_at_the_same_time() -> None:
    """Submits that are sent at the same time are counted separately; an unknown one changes nothing."""
    limit = JobsLimit()
    limit.on_sent(5.0, 10.0)
    limit.on_sent(5.0, 10.0)
    assert limit.jobs == 2
    assert limit.on_not_accepted(5.0) is not None
    limit.on_accepted(5.0)
    assert limit.on_not_accepted(5.0) is None
    assert limit.jobs == 1
    limit.on_ended()
    limit.on_resumed()
    assert limit.jobs == 1
