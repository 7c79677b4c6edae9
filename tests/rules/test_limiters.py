"""The rate rule against random limiters, in virtual time: see `tests.limiter_judge`.

To repeat a run that is too slow, or has too many 429s: python -m benchmarks.limiters --seed 17
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from tests.limiter_judge import (
    KIND_WEIGHTS,
    LIMITERS,
    START_S,
    JudgedGateway,
    LimiterCase,
    ProcessedJobs,
    draw_configured_per_s,
    draw_limiter,
    judge,
    judge_rate_limiter,
)
from tests.window_stats import max_in_window


def limiter(kind: str, number: int, window_s: float, *, change: float = 1.0) -> LimiterCase:
    """Return a limiter of this kind, with answers after 20 ms."""
    return draw_limiter(0)._replace(
        kind=kind,
        per_s=number / window_s,
        number=number,
        window_s=window_s,
        job_s=window_s,
        retry_after="exact",
        counts_refused=False,
        jitter_s=0.0001,
        latency_s=0.02,
        lag_s=0.1,
        change=change,
    )


class TestTheJudge:
    """The judge itself: its limiters allow what they say, and its runs can be repeated."""

    @pytest.mark.parametrize("kind", ["bucket", "fixed window", "sliding window"])
    @pytest.mark.parametrize("gap_s", [0.001, 0.06, 0.4])
    def test_a_limiter_allows_its_rate(self, kind: str, gap_s: float) -> None:
        """However many requests arrive, as many are accepted as the limiter allows, and no more."""
        case = limiter(kind, 30, 3.0)
        taker = LIMITERS[kind](case, Random(1))
        times_s = [START_S + n * gap_s for n in range(round(60 / gap_s))]
        accepted_s = [at_s for at_s in times_s if taker.take(at_s) == 0.0]
        allowed = min(len(times_s), 60 * case.per_s)
        assert allowed <= len(accepted_s) + 30
        assert len(accepted_s) <= allowed + 30
        assert max_in_window(accepted_s, 3.0 - 0.001) <= (30 if kind == "sliding window" else 60)

    @pytest.mark.parametrize("seed", range(20))
    def test_the_wait_is_enough(self, seed: int) -> None:
        """A request after the wait is accepted, if nothing else arrives; shortly before its end it is refused."""
        case = draw_limiter(seed)._replace(counts_refused=False)
        taker, now_s = LIMITERS[case.kind](case, Random(1)), START_S
        for _ in range(3 * case.number):
            if wait_s := taker.take(now_s):
                assert taker.take(now_s + wait_s * 0.99 - 1e-6) > 0
                now_s += wait_s + 1e-6
                assert taker.take(now_s) == 0.0
            if isinstance(taker, ProcessedJobs):
                taker.start(now_s + case.job_s)

    def test_refused_requests_that_count(self) -> None:
        """If refused requests count, a client that does not wait is never accepted again."""
        for kind in ("bucket", "sliding window"):
            case = limiter(kind, 10, 1.0)._replace(counts_refused=True)
            taker = LIMITERS[kind](case, Random(1))
            accepted = [taker.take(START_S + n / 100) == 0.0 for n in range(1000)]
            assert not any(accepted[20:])

    def test_a_seed_repeats_its_run(self) -> None:
        """The same seed gives the same limiter and the same run; all kinds are drawn."""
        case = draw_limiter(8, max_per_s=5.0)
        assert case == draw_limiter(8, max_per_s=5.0)
        assert judge(case, draw_configured_per_s(case)) == judge(case, draw_configured_per_s(case))
        assert {draw_limiter(seed).kind for seed in range(50)} == {*KIND_WEIGHTS}

    def test_a_change_of_the_limit(self) -> None:
        """In the middle of its run, a limit halves or doubles."""
        case = limiter("bucket", 1, 0.1, change=2.0)
        gateway = JudgedGateway(case)
        times_s = [START_S + n * 0.05 for n in range(round((gateway.end_s - START_S) / 0.05))]
        accepted_s = [at_s for at_s in times_s if gateway.submit(at_s)[0] == 0.0]
        gaps_s = [later - earlier for earlier, later in pairwise(accepted_s)]
        assert gaps_s[100] == pytest.approx(0.1, abs=0.01)
        assert gaps_s[-100] == pytest.approx(0.05, abs=0.01)
        assert gateway.result().share == pytest.approx(1.0, abs=0.01)

    @pytest.mark.parametrize("kind", ["bucket", "fixed window", "sliding window"])
    def test_it_agrees_with_the_real_rate_limiter(self, kind: str) -> None:
        """The client of the judge uses as much as tasks with the real rate limiter."""
        case = limiter(kind, 20, 4.0)
        assert judge(case, 50.0).share == pytest.approx(judge_rate_limiter(case, 50.0).share, abs=0.05)
        assert judge(case).share == pytest.approx(judge_rate_limiter(case).share, abs=0.05)


@pytest.mark.parametrize("latency_s", [0.3, 0.7, 1.3])
def test_evenly_spread_requests_whose_answers_take_longer_than_the_next_one(latency_s: float) -> None:
    """A burst of one is used well, though several submits are pending when one of them is refused."""
    result = judge(limiter("bucket", 1, 0.5)._replace(latency_s=latency_s), 16.0)
    assert result.share >= 0.9


@pytest.mark.parametrize("number", [4, 6, 10])
def test_few_jobs_in_process(number: int) -> None:
    """A limit on a few jobs in process is recognised and used well, without a 429 for every ten jobs."""
    result = judge(limiter("jobs in process", number, 6.0)._replace(retry_after="seconds"), 4.0)
    assert result.share >= 0.85
    assert result.rate_limited_per_job <= 0.07


def test_a_window_that_is_filled_is_not_taken_for_a_limit_on_jobs() -> None:
    """Probes of a filled window are refused at the same number of jobs, if about as many end in each window."""
    case = limiter("fixed window", 80, 50.0)._replace(latency_s=0.14, job_s=30.0, retry_after="missing")
    assert judge(case, 13.0).share >= 0.98


def test_a_window_of_a_minute_that_counts_refused_requests() -> None:
    """A refusal while a shorter length is tried shows a longer window, and no lower number."""
    case = limiter("sliding window", 55, 58.0)._replace(latency_s=0.04, job_s=2.0)
    assert judge(case._replace(retry_after="missing", counts_refused=True), 14.0).share >= 0.95


def test_a_sliding_window_without_breaks_that_has_doubled() -> None:
    """A limit that has doubled is followed although answers are awaited all the time."""
    case = limiter("sliding window", 100, 10.0, change=2.0)._replace(latency_s=0.5)
    assert judge(case, 30.0).share >= 0.93


@pytest.mark.parametrize("change", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["fixed window", "sliding window"])
def test_the_rate_limiter_fills_windows_of_a_changed_limit(kind: str, change: float) -> None:
    """With tasks and the real rate limiter, windows of 10 s are filled, also after their number has changed."""
    result = judge_rate_limiter(limiter(kind, 60, 10.0, change=change), 100.0)
    assert result.share >= 0.9
    assert result.rate_limited_per_job <= 0.05
