"""The Krea 2 Large gateway and its CDN for offline use: settings in, two loopback ports out.

    async with Simulator(SimulatorSettings(latency="fixed:2")) as simulator:
        ... simulator.gateway_url ...

    submits ─┐                                ┌─ checks    is this body right?          pure
    polls   ─┼─► state: settings, chances, ───┼─ limits    may this request pass?       pure
    cdn     ─┤   limits and the books         ├─ faults    does this fault strike?      pure
    admin   ─┘                                └─ jobs      when and how does a job end? pure
    webhooks, memory: what an accepted POST sets off     pictures, tiny_png: what the CDN gives out

Newcomers: this is also the judge of the engine, so it shares no code with it. It is written from the API document
alone, and what it charged is told at its admin address.
"""

from krea_batch.testing.simulator.server import Simulator
from krea_batch.testing.simulator.settings import SimulatorError, SimulatorSettings

__all__ = ["Simulator", "SimulatorError", "SimulatorSettings"]
