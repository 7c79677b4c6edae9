"""The Krea 2 Large gateway and its CDN for offline use, on two loopback ports.

    async with Simulator(SimulatorSettings(latency="fixed:2")) as simulator:
        ... simulator.gateway_url ...

server            starts and stops both servers
settings          what can be configured
state             what all handlers share: settings, randomness, limits, accounting
submit_handler    POST of a job
status_handler    GET of a job's status
cdn               downloads
admin             totals, ledger and settings, for tests
webhooks          calls the webhook URL of a job
responses         the bodies of answers
body_validation   pure: is this body valid?
request_limits    pure: may this request pass?
faults            pure: does a fault occur?
job_planner       pure: when and how a job ends
latency           pure: how long a job takes
accounting        what was accepted and charged
job_log           accepted jobs, kept over restarts
drawing           the images

The simulator also judges the engine, so it shares no code with it. It is written from the API document alone.
"""

from krea_batch.testing.simulator.server import Simulator
from krea_batch.testing.simulator.settings import SimulatorError, SimulatorSettings

__all__ = ["Simulator", "SimulatorError", "SimulatorSettings"]
