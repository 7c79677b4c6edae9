"""Test pipeline.rate_limiter: when intents are recorded and POSTs leave, in virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from random import Random

import pytest

from krea_batch import RateLimiter
from krea_batch.pipeline.rate_limiter import MAX_LEAD_S, MAX_UNSENT_S
from krea_batch.pipeline.task_pool import TaskPool
from krea_batch.rules.found_limit import RESUMED_SHARE, FoundLimit
from krea_batch.rules.jobs_limit import MAX_FULL_S
from krea_batch.testing import run_virtual


class Submits:
    """Submits an endless backlog; each commit of an intent takes a random time up to `commit_s`."""

    def __init__(self, rate_limiter: RateLimiter, commit_s: float) -> None:
        self.rate_limiter = rate_limiter
        self.acquired_s: list[float] = []
        self.sent_s: list[float] = []
        self.reverted = 0
        self._commit_s = commit_s
        self._random = Random(1)

    async def run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.rate_limiter.bind_loop()
        until_s = loop.time() + seconds
        async with TaskPool() as posts:
            while loop.time() < until_s:
                await self.rate_limiter.acquire()
                self.acquired_s.append(loop.time())
                posts.spawn(self._submit())
            await asyncio.sleep(1.0)

    async def _submit(self) -> None:
        await asyncio.sleep(self._random.random() * self._commit_s)
        sent_s = await self.rate_limiter.confirm()
        if sent_s is None:
            self.reverted += 1
            return
        self.sent_s.append(sent_s)
        self.rate_limiter.controller.on_response(sent_s, sent_s, accepted=False)


def found(per_s: float) -> RateLimiter:
    """Return a rate limiter that uses this rate, below its ceiling."""
    rate_limiter = RateLimiter("500/s")
    rate_limiter.controller.resume(FoundLimit(per_s / RESUMED_SHARE))
    return rate_limiter


@pytest.mark.parametrize("commit_s", [0.0, 0.015, 0.06])
def test_posts_leave_evenly_however_long_a_commit_takes(commit_s: float) -> None:
    """Below the configured rate, POSTs leave evenly and at the full rate, whatever the time of a commit is."""
    submits = Submits(found(60.0), commit_s)
    run_virtual(submits.run(4.0))
    gaps_s = [later - earlier for earlier, later in pairwise(submits.sent_s)]
    assert min(gaps_s) >= 0.95 / 60
    assert len(submits.sent_s) >= 0.95 * 4.0 * 60


def test_the_first_byte_leaves_at_the_send_time() -> None:
    """If the limiter has no burst, a submit connects before it is due, and its first byte waits until then."""
    rate_limiter, random, late_s = RateLimiter("500/s"), Random(1), []
    rate_limiter.controller.resume(FoundLimit(20.0, is_spaced=True))

    async def main() -> None:
        rate_limiter.bind_loop()
        for _ in range(40):
            await rate_limiter.acquire()
            sent_s = await rate_limiter.confirm()
            assert sent_s is not None
            connect_s = random.random() * 0.01
            await asyncio.sleep(connect_s)
            await rate_limiter.hold(sent_s, connect_s)
            late_s.append(asyncio.get_running_loop().time() - sent_s)
            rate_limiter.controller.on_response(sent_s, sent_s + 0.01, accepted=False)

    run_virtual(main())
    assert min(late_s) >= 0
    assert max(late_s[10:]) <= 0.001


@pytest.mark.parametrize("rate", ["60/s", "1/s", "6/min"])
def test_intents_are_recorded_shortly_before_their_posts(rate: str) -> None:
    """An intent is not recorded long before its POST: a crash in between would make its job ambiguous."""
    submits = Submits(RateLimiter(rate), 0.015)
    run_virtual(submits.run(30.0))
    waits_s = [sent_s - acquired_s for acquired_s, sent_s in zip(submits.acquired_s, submits.sent_s, strict=True)]
    assert max(waits_s) <= MAX_LEAD_S + 0.1


def test_a_pause_between_the_two_steps() -> None:
    """A submit whose intent is recorded when a pause starts is not sent; the next ones wait for its end."""
    rate_limiter = RateLimiter("60/s")
    submits = Submits(rate_limiter, 0.015)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.5, lambda: rate_limiter.controller.pause(loop.time(), 2.0))
        await submits.run(5.0)

    run_virtual(main())
    assert 1 <= submits.reverted <= 5
    assert max(later - earlier for earlier, later in pairwise(submits.sent_s)) >= 2.0


def submit_jobs(rate_limiter: RateLimiter, count: int, *, first_ends_s: float | None = None) -> list[float]:
    """Submit jobs, which are accepted, and return when. With `first_ends_s`, a job ends at that time."""
    times_s: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        rate_limiter.bind_loop()
        if first_ends_s is not None:
            loop.call_later(first_ends_s, rate_limiter.on_job_ended)
        for _ in range(count):
            await rate_limiter.acquire()
            sent_s = await rate_limiter.confirm()
            assert sent_s is not None
            rate_limiter.controller.on_response(sent_s, loop.time())
            times_s.append(sent_s - 1000.0)

    run_virtual(main())
    return times_s


def test_a_submit_does_not_wait_for_long_with_its_intent() -> None:
    """If a submit is no longer due when its intent is recorded, it is given up, to be acquired again."""

    async def main() -> None:
        rate_limiter = RateLimiter("0.2/s")
        rate_limiter.bind_loop()
        await rate_limiter.acquire()
        await rate_limiter.acquire()
        assert await rate_limiter.confirm() is not None
        assert await rate_limiter.confirm() is None

    run_virtual(main())


class TestTheCapOnJobs:
    def test_submits_wait_for_room(self) -> None:
        """With a cap of three jobs, the fourth submit waits until a job has ended."""
        rate_limiter = RateLimiter("100/s")
        rate_limiter.controller.resume(FoundLimit(100.0, max_jobs=3))
        times_s = submit_jobs(rate_limiter, 4, first_ends_s=5.0)
        assert times_s[2] < 1.0
        assert 5.0 <= times_s[3] < 5.1

    def test_jobs_that_never_end_do_not_hold_up_others(self) -> None:
        """If no job ends for two minutes, one more is submitted, and then one every two minutes."""
        rate_limiter = RateLimiter("100/s")
        rate_limiter.controller.resume(FoundLimit(100.0, max_jobs=3))
        times_s = submit_jobs(rate_limiter, 5)
        assert times_s[2] < 1.0
        assert MAX_FULL_S <= times_s[3] < MAX_FULL_S + 20.0
        assert 2 * MAX_FULL_S <= times_s[4] < 2 * MAX_FULL_S + 40.0

    def test_resumed_jobs_count(self) -> None:
        """Jobs that an earlier run submitted take room."""
        rate_limiter = RateLimiter("100/s")
        rate_limiter.controller.resume(FoundLimit(100.0, max_jobs=2))
        rate_limiter.on_job_resumed()
        assert rate_limiter.controller.has_room(0.0)
        rate_limiter.on_job_resumed()
        assert not rate_limiter.controller.has_room(0.0)


def test_submits_that_are_given_up_do_not_count() -> None:
    """A submit that was let through and is never confirmed does not hold up the others for long."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        rate_limiter = RateLimiter("1/s")
        rate_limiter.bind_loop()
        await rate_limiter.acquire()
        rate_limiter.give_up()
        started_s = loop.time()
        await rate_limiter.acquire()
        assert loop.time() - started_s < 2.0
        # This one is neither confirmed nor given up.
        started_s = loop.time()
        await rate_limiter.acquire()
        return loop.time() - started_s

    assert run_virtual(main()) <= MAX_UNSENT_S + 1.0


def test_what_a_notebook_shows() -> None:
    """A rate limiter is shown as the call that creates it."""
    assert repr(RateLimiter("10/s")) == "RateLimiter('10/s')"
