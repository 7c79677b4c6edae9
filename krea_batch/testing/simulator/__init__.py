"""The Krea 2 Large gateway and its CDN for offline use, on two loopback ports.

    async with Simulator(SimulatorSettings(latency="fixed:2")) as simulator:
        ... simulator.gateway_url ...

server            starts and stops both servers
settings          what can be configured
state             shared by all handlers: settings, randomness, limits, accounting
submit_handler    handles submits
status_handler    handles polls
cdn               handles downloads
admin             totals, ledger and settings, for tests
webhooks          delivers webhooks when jobs end
responses         builds the HTTP responses
body_validation   validates request bodies (pure)
request_limits    rate limits (pure)
faults            decides whether a fault occurs (pure)
job_planner       decides when and how a job ends (pure)
latency           latency distributions (pure)
accounting        counts what was accepted and charged
job_log           stores accepted jobs across restarts
drawing           draws the images

Tests use the simulator's accounting to check the engine, so the two share no code. The simulator is written from
the API document alone.
"""

from krea_batch.testing.simulator.server import Simulator
from krea_batch.testing.simulator.settings import SimulatorError, SimulatorSettings

__all__ = ["Simulator", "SimulatorError", "SimulatorSettings"]
