"""Limits that the engine has to find, in virtual time: every way in uses them alike, and the next run knows them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from krea_batch import Engine, Event, Job, RateChanged, RateLimiter
from krea_batch.rules.found_limit import MAX_AGE_S, FoundLimit
from krea_batch.testing import run_virtual
from tests.engine_fixtures import query_ledger
from tests.limited_gateway import LimitedGateway
from tests.limiter_judge import START_S, JudgedGateway, LimiterCase, draw_limiter

JOBS = 1500
SHARED: dict[str, Any] = {"max_in_flight": 2000, "poll_interval_s": 1.0}

BUCKET = draw_limiter(0)._replace(
    kind="bucket", per_s=20.0, number=5, window_s=0.25, job_s=4.0, retry_after="seconds",
    counts_refused=False, jitter_s=0.002, latency_s=0.1, lag_s=0.1,
)  # fmt: skip
SPACED = BUCKET._replace(number=1, window_s=0.05, jitter_s=0.0005, latency_s=0.01)
PROCESSED = BUCKET._replace(kind="jobs in process", per_s=5.0, number=20, window_s=4.0)


def used_share(judged: JudgedGateway) -> float:
    """Return how much of the limit was used, from ten seconds after the start to the last acceptance."""
    accepted_s = [at_s for at_s in judged.accepted_s if at_s > START_S + 10.0]
    return len(accepted_s) / (judged.case.per_s * (accepted_s[-1] - START_S - 10.0))


def open_limited(out: Path, judged: JudgedGateway, **options: Any) -> Engine:
    options.setdefault("rate", "200/s")
    return Engine(out, gateway_client=LimitedGateway(judged), random=Random(1), **SHARED | options)


def jobs(count: int = JOBS, name: str = "image") -> list[Job]:
    return [Job(id=f"{name}-{n}", prompt=f"{name} {n}") for n in range(count)]


async def by_run(out: Path, judged: JudgedGateway) -> None:
    async with open_limited(out, judged) as engine:
        await engine.run(jobs())


async def by_stream(out: Path, judged: JudgedGateway) -> None:
    async with open_limited(out, judged) as engine:
        assert len([outcome async for outcome in engine.stream(jobs())]) == JOBS


async def by_enqueue(out: Path, judged: JudgedGateway) -> None:
    async with open_limited(out, judged) as engine:
        for job in jobs():
            await engine.enqueue(job)


async def by_tenants(out: Path, judged: JudgedGateway) -> None:
    async with open_limited(out, judged) as engine:
        for n, job in enumerate(jobs()):
            await engine.enqueue(job, tenant=f"tenant {n % 7}")


async def by_two_engines(out: Path, judged: JudgedGateway) -> None:
    limiter = RateLimiter("200/s")
    options: dict[str, Any] = {"rate": None, "rate_limiter": limiter}
    async with open_limited(out / "a", judged, **options) as one, open_limited(out / "b", judged, **options) as other:
        await asyncio.gather(one.run(jobs(JOBS // 2, "cat")), other.run(jobs(JOBS // 2, "dog")))


async def by_shared_runs(out: Path, judged: JudgedGateway) -> None:
    async with open_limited(out, judged, shared=True) as one, open_limited(out, judged, shared=True) as other:
        await asyncio.gather(one.run(jobs()), other.run(jobs()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "min_share"),
    [(BUCKET, 0.9), (SPACED, 0.9), (PROCESSED, 0.75)],
    ids=["bucket", "no burst", "jobs in process"],
)
@pytest.mark.parametrize("submit_all", [by_run, by_stream, by_enqueue, by_tenants, by_two_engines])
def test_every_way_in_uses_a_limit_alike(
    tmp_path: Path, case: LimiterCase, min_share: float, submit_all: Callable[[Path, JudgedGateway], Awaitable[None]]
) -> None:
    """However jobs are submitted, the engine finds a limit far below its rate of 200/s, and uses 90 % of it.

    It uses less of a limit on jobs in process, since it knows the end of a job of four seconds only at its next poll.
    """
    judged = JudgedGateway(case)

    async def main() -> None:
        await submit_all(tmp_path, judged)

    run_virtual(main())
    assert used_share(judged) >= min_share
    assert judged.rate_limited <= 0.15 * JOBS


@pytest.mark.slow
def test_connections_that_take_different_times(tmp_path: Path) -> None:
    """A limiter without a burst is used as well if each connection takes longer or shorter than the one before it."""
    judged = JudgedGateway(SPACED)

    async def main() -> None:
        async with Engine(
            tmp_path, gateway_client=LimitedGateway(judged, connect_s=0.02), rate="200/s", random=Random(1), **SHARED
        ) as engine:
            await engine.run(jobs())

    run_virtual(main())
    assert used_share(judged) >= 0.9
    assert judged.rate_limited <= 0.05 * JOBS


@pytest.mark.slow
@pytest.mark.parametrize(("case", "min_share"), [(BUCKET, 0.8), (PROCESSED, 0.65)], ids=["bucket", "jobs in process"])
def test_runs_that_share_a_directory_use_a_limit_together(
    tmp_path: Path, case: LimiterCase, min_share: float
) -> None:
    """Two runs find a limit together. Each learns later what the other was refused, so they use less of it."""
    judged = JudgedGateway(case)

    async def main() -> None:
        await by_shared_runs(tmp_path, judged)

    run_virtual(main())
    assert used_share(judged) >= min_share
    assert judged.rate_limited <= 0.15 * JOBS


@pytest.mark.slow
@pytest.mark.parametrize("commit_s", [0.002, 0.02])
def test_runs_that_share_a_configured_rate_are_not_refused(tmp_path: Path, commit_s: float) -> None:
    """A sliding window of a second, the strictest limiter, never refuses two runs whose rate is its limit.

    This holds while the second run joins, and if commits are slow. They use 96 % of the limit, or more.
    """
    judged = JudgedGateway(
        BUCKET._replace(kind="sliding window", per_s=200.0, number=200, window_s=1.0, latency_s=0.005)
    )
    random = Random(2)

    async def main() -> None:
        async with (
            open_limited(tmp_path, judged, shared=True) as one,
            open_limited(tmp_path, judged, shared=True) as other,
        ):
            await asyncio.gather(one.run(jobs(JOBS, "cat")), other.run(jobs(JOBS, "dog")))

    run_virtual(main(), lambda: random.uniform(0.5, 1.5) * commit_s)
    assert judged.rate_limited == 0
    accepted_s = judged.accepted_s
    assert len(accepted_s) == 2 * JOBS
    assert (len(accepted_s) - 1) / (accepted_s[-1] - accepted_s[0]) >= 0.96 * 200


class TestTheNextRun:
    def run_once(
        self, out: Path, case: LimiterCase, name: str, *, count: int = 300, clock_s: float = 0.0
    ) -> tuple[JudgedGateway, list[float]]:
        """Run some jobs. Return what the gateway saw, and the rates that were emitted."""
        judged, rates_per_s = JudgedGateway(case), list[float]()

        def listener(event: Event) -> None:
            if isinstance(event, RateChanged):
                rates_per_s.append(event.per_s)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            clock = lambda: clock_s + loop.time()  # noqa: E731 - of the virtual loop
            async with open_limited(out, judged, clock=clock, listeners=[listener]) as engine:
                await engine.run(jobs(count, name))

        run_virtual(main())
        return judged, rates_per_s

    def test_it_starts_slightly_below_the_limit(self, tmp_path: Path) -> None:
        """A limit that a run has found is known to the next one, which has hardly any 429s."""
        first, _ = self.run_once(tmp_path, BUCKET, "first")
        second, rates_per_s = self.run_once(tmp_path, BUCKET, "second", clock_s=60.0)
        assert first.rate_limited > second.rate_limited
        assert 0.8 * 20 <= rates_per_s[0] <= 20

    def test_it_knows_the_jobs_in_process(self, tmp_path: Path) -> None:
        """A limit on jobs in process is remembered, too, so that the next run has fewer 429s."""
        first, _ = self.run_once(tmp_path, PROCESSED, "first", count=900)
        [(data,)] = query_ledger(tmp_path, "SELECT data FROM found_limit")
        assert msgspec.json.decode(data, type=FoundLimit).max_jobs in range(18, 26)
        second, _ = self.run_once(tmp_path, PROCESSED, "second", clock_s=300.0)
        assert second.rate_limited / 300 < first.rate_limited / 900

    def test_it_knows_that_there_is_no_burst(self, tmp_path: Path) -> None:
        """The next run keeps the time between two submits from its start, and has hardly any 429s."""
        first, _ = self.run_once(tmp_path, SPACED, "first", count=900)
        [(data,)] = query_ledger(tmp_path, "SELECT data FROM found_limit")
        assert msgspec.json.decode(data, type=FoundLimit).is_spaced
        second, _ = self.run_once(tmp_path, SPACED, "second", count=900, clock_s=300.0)
        assert used_share(second) >= 0.93
        assert second.rate_limited < first.rate_limited

    def test_it_forgets_after_a_while(self, tmp_path: Path) -> None:
        """A limit that was found long ago is searched again."""
        self.run_once(tmp_path, BUCKET, "first")
        _, rates_per_s = self.run_once(tmp_path, BUCKET, "second", clock_s=3600.0 + MAX_AGE_S)
        assert rates_per_s[0] == 200.0

    def test_a_killed_run_has_recorded_it(self, tmp_path: Path) -> None:
        """The limit is recorded during a run, so that a kill does not lose it."""
        judged = JudgedGateway(BUCKET)

        async def main() -> None:
            engine = open_limited(tmp_path, judged)
            await engine.start()
            for job in jobs(600):
                await engine.enqueue(job)
            await asyncio.sleep(20.0)
            rows = query_ledger(tmp_path, "SELECT data FROM found_limit")
            assert msgspec.json.decode(rows[0][0], type=FoundLimit).per_s < 30
            await engine.aclose(detach=True)

        run_virtual(main())

    def test_without_a_refusal_nothing_is_recorded(self, tmp_path: Path) -> None:
        """A configured rate that was never refused is no limit of the gateway."""
        self.run_once(tmp_path, BUCKET._replace(per_s=2000.0, number=2000), "first")
        assert query_ledger(tmp_path, "SELECT count(*) FROM found_limit") == [(0,)]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (FoundLimit(59.7), "60/s"),
        (FoundLimit(162.3, 1.05), "162/s"),
        (FoundLimit(5.0, 60.3), "300 per minute"),
        (FoundLimit(6.0, 9.0), "60 per 10 s"),
        (FoundLimit(2.0, 200.0), "600 per 5 minutes"),
        (FoundLimit(0.5), "0.5/s"),
        (FoundLimit(4.0, 1.0, 20), "20 jobs in process"),
    ],
)
def test_the_limit_in_words(found: FoundLimit, text: str) -> None:
    """A limit is expressed in the window over which it is counted."""
    assert str(found) == text


def test_jobs_that_an_engine_leaves_do_not_count(tmp_path: Path) -> None:
    """If an engine leaves jobs in process, another engine with the same rate limiter is not held up by them."""
    judged = JudgedGateway(PROCESSED)
    limiter_jobs: list[int] = []

    async def main() -> None:
        limiter = RateLimiter("200/s")
        options: dict[str, Any] = {"rate": None, "rate_limiter": limiter}
        engine = open_limited(tmp_path / "a", judged, **options)
        await engine.start()
        for job in jobs(15):
            await engine.submit(job)
        await engine.aclose(detach=True)
        async with open_limited(tmp_path / "b", judged, **options) as other:
            await other.run(jobs(40, "dog"))
        limiter_jobs.append(limiter.controller.jobs_in_process)

    run_virtual(main())
    assert limiter_jobs == [0]
