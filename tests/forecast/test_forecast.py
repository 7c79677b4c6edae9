"""A forecast says what anybody could reckon where that is simple, and what the engine would do where it is not."""

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


def test_bound_by_the_rate() -> None:
    """500 jobs at 10/s are submitted in 50 s, and the last one takes its latency more."""
    found = run_forecast(500, rate="10/s")
    assert 58 < found.seconds < 66
    assert "--rate" in found.bottleneck
    assert found.jobs == found.simulated_jobs == 500
    assert 80 < found.in_flight < 140


def test_bound_by_the_cap() -> None:
    """20 jobs in flight of 10 s each are two a second, whatever the rate."""
    found = run_forecast(200, rate="50/s", max_in_flight=20)
    assert 100 < found.seconds < 130
    assert "--max-in-flight" in found.bottleneck
    assert found.in_flight == 20


def test_bound_by_latency() -> None:
    """A hundred jobs are submitted in a moment, and then waited for."""
    found = run_forecast(100, "60s", rate="50/s")
    assert 60 < found.seconds < 75  # and seen to be done at the next poll
    assert "latency" in found.bottleneck


def test_bound_by_the_gateway() -> None:
    """A gateway that takes 5/s is submitted to at 5/s; what it refuses is counted."""
    found = run_forecast(200, rate="20/s", limit=5.0)
    assert 45 < found.seconds < 75
    assert "gateway's rate limit" in found.bottleneck
    assert found.rate_limited > 0


def test_many_jobs_are_extrapolated() -> None:
    """A hundred thousand jobs at 10/s take 10,000 s, and each its polls."""
    found = run_forecast(100_000, rate="10/s")
    assert found.seconds == pytest.approx(10_000, rel=0.05)
    assert found.simulated_jobs < found.jobs
    assert 100_000 <= found.polls < 200_000


def test_a_cap_that_is_met_late() -> None:
    """A cap that the first jobs do not reach binds the later ones: 1,900 of 100 s each are 19 a second."""
    found = run_forecast(50_000, "100s", rate="20/s", max_in_flight=1900)
    assert found.seconds == pytest.approx(50_000 / 19, rel=0.1)
    assert "--max-in-flight" in found.bottleneck
    assert found.in_flight == 1900


def test_nothing_to_do() -> None:
    """No job takes no time."""
    assert run_forecast(0).seconds == 0


def test_the_same_each_time() -> None:
    """A forecast is not a matter of luck."""
    assert run_forecast(50, "lognormal:12,0.3") == run_forecast(50, "lognormal:12,0.3")


@pytest.mark.parametrize(
    ("text", "least", "most"),
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
def test_latencies(text: str, least: float, most: float) -> None:
    """Each form draws what it says."""
    latencies, chance = parse_latencies(text), Random(0)
    drawn = [latencies(chance) for _ in range(200)]
    assert least <= min(drawn) <= max(drawn) <= most
    assert max(scaled(latencies, 0.5)(Random(0)) for _ in range(5)) <= most / 2


@pytest.mark.parametrize("text", ["", "soon", "-5s", "uniform:5", "lognormal:0,0.3", "5..", "bimodal:1,2"])
def test_what_is_no_latency(text: str) -> None:
    """The error shows how to write one."""
    with pytest.raises(SettingsError, match=r"write 12s, 5s\.\.30s"):
        parse_latencies(text)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_latencies_of_an_earlier_run(seen: list[float]) -> None:
    """Only what was seen is drawn."""
    assert empirical(seen)(Random(0)) in seen
