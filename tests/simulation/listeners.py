"""A listener that raises or takes long, as foreign code may."""

from __future__ import annotations

import asyncio
from random import Random

from krea_batch.events import Event
from tests.simulation.process import SimulatedLoop


class ListenerError(Exception):
    """Raised by a listener. The engine must not notice it."""


class FaultyListener:
    """Raises at one event in twenty, and blocks the event loop at one in a hundred unless it `never_blocks`."""

    def __init__(self, random: Random, *, never_blocks: bool) -> None:
        self._random = random
        self._never_blocks = never_blocks

    def __call__(self, event: Event) -> None:
        chance = self._random.random()
        if chance < 0.01:
            if self._never_blocks:
                return
            loop = asyncio.get_running_loop()
            assert isinstance(loop, SimulatedLoop)
            loop.stand_still(self._random.choice([0.05, 0.5, 3.0]))
        elif chance < 0.06:
            raise ListenerError(event)
