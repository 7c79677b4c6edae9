"""Jobs, limits and latencies come in; how long a run takes, and what it costs, goes out, before anything is sent.

    latency ─► world (a gateway that is a model) ─► outlook: the real engine against it, in virtual time

Newcomers: no formula stands for the engine: its own stages, pace and poll schedule run, on a loop whose clock jumps.
Of many jobs the first some thousand are run, and what then goes on the same is counted on.
"""

from krea_batch.forecast.estimate import Forecast, Question, forecast
from krea_batch.forecast.latency_model import Latencies, latencies_of

__all__ = ["Forecast", "Latencies", "Question", "forecast", "latencies_of"]
