"""Tests of forecasts: where the duration of a run is easy to compute, the forecast is close to it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.errors import SettingsError
from krea_batch.forecast import Forecast, ForecastRequest, forecast, parse_latencies
from krea_batch.forecast.latency_model import empirical, scaled

pytestmark = pytest.mark.slow


def run_forecast(jobs: int, latency: str = "10s", limit: float | None = None, **settings: object) -> Forecast:
    return forecast(
        ForecastRequest(jobs=jobs, latencies=parse_latencies(latency), settings=dict(settings), limit_per_s=limit)
    )


def test_limited_by_the_rate() -> None:
    """500 jobs at 10/s are submitted in 50 s, and the last one ends its latency later."""
    result = run_forecast(500, rate="10/s")
    assert 58 < result.seconds < 66
    assert "--rate" in result.bottleneck
    assert result.jobs == result.simulated_jobs == 500
    assert 80 < result.in_flight < 140


def test_limited_by_jobs_in_flight() -> None:
    """With 20 jobs in flight that take 10 s each, two jobs end per second, whatever the rate."""
    result = run_forecast(200, rate="50/s", max_in_flight=20)
    assert 100 < result.seconds < 130
    assert "--max-in-flight" in result.bottleneck
    assert result.in_flight == 20


def test_limited_by_latency() -> None:
    """If all jobs are submitted in a short time, the run takes as long as one job."""
    result = run_forecast(100, "60s", rate="50/s")
    assert 60 < result.seconds < 75  # until the poll that detects the end
    assert "latency" in result.bottleneck


def test_limited_by_the_gateway() -> None:
    """Jobs are submitted at the gateway's rate limit if it is lower than the rate; its 429 responses are counted."""
    result = run_forecast(200, rate="20/s", limit=5.0)
    assert 45 < result.seconds < 75
    assert "gateway's rate limit" in result.bottleneck
    assert result.rate_limited > 0


def test_many_jobs_are_extrapolated() -> None:
    """100,000 jobs at 10/s take 10,000 s, with at least one poll each, although only some of them are simulated."""
    result = run_forecast(100_000, rate="10/s")
    assert result.seconds == pytest.approx(10_000, rel=0.05)
    assert result.simulated_jobs < result.jobs
    assert 100_000 <= result.polls < 200_000


def test_a_maximum_that_is_reached_late() -> None:
    """The maximum in flight limits a run even if the simulated jobs do not reach it.

    1,900 jobs in flight that take 100 s each end at 19 per second.
    """
    result = run_forecast(50_000, "100s", rate="20/s", max_in_flight=1900)
    assert result.seconds == pytest.approx(50_000 / 19, rel=0.1)
    assert "--max-in-flight" in result.bottleneck
    assert 1700 <= result.in_flight <= 1900  # few are submitted until the first image is stored


def test_no_jobs() -> None:
    """A run without jobs takes no time."""
    assert run_forecast(0).seconds == 0


def test_forecasts_are_deterministic() -> None:
    """The same request gives the same forecast."""
    assert run_forecast(50, "lognormal:12,0.3") == run_forecast(50, "lognormal:12,0.3")


@pytest.mark.parametrize(
    ("text", "min_s", "max_s"),
    [
        ("12s", 12, 12),
        ("12", 12, 12),
        ("fixed:1.5", 1.5, 1.5),
        ("5s..30s", 5, 30),
        ("uniform:5,30", 5, 30),
        ("bimodal:5,25,0.3", 5, 25),
        ("lognormal:12,0.3", 2, 60),
    ],
)
def test_latencies(text: str, min_s: float, max_s: float) -> None:
    """Each form draws latencies within its range, and a scaled one within the scaled range."""
    latencies, random = parse_latencies(text), Random(0)
    samples_s = [latencies(random) for _ in range(200)]
    assert min_s <= min(samples_s) <= max(samples_s) <= max_s
    assert max(scaled(latencies, 0.5)(Random(0)) for _ in range(5)) <= max_s / 2


@pytest.mark.parametrize("text", ["", "soon", "-5s", "uniform:5", "lognormal:0,0.3", "5..", "bimodal:1,2"])
def test_an_invalid_latency(text: str) -> None:
    """The error shows the valid forms."""
    with pytest.raises(SettingsError, match=r"write 12s, 5s\.\.30s"):
        parse_latencies(text)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_latencies_of_an_earlier_run(samples_s: list[float]) -> None:
    """An empirical distribution draws only latencies of the earlier run."""
    assert empirical(samples_s)(Random(0)) in samples_s
