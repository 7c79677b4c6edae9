"""The forecast of `krea-batch plan`: how long a run takes, with how many polls, before anything is sent.

estimate       runs the real engine in virtual time and extrapolates
model_gateway  the gateway that it runs against
latency_model  how long jobs take: a distribution, or an earlier run's latencies

The forecast is a simulation, not a formula: the engine's own stages, rate limiter and poll schedule run in virtual
time. Of many jobs, the first few thousand are simulated.
"""

from krea_batch.forecast.estimate import Forecast, ForecastRequest, forecast
from krea_batch.forecast.latency_model import Latencies, parse_latencies

__all__ = ["Forecast", "ForecastRequest", "Latencies", "forecast", "parse_latencies"]
