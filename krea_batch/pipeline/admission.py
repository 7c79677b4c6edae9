"""Flights of callers come in, each with its tenant; they go out to the submitter in turn, as slots become free.

Newcomers: whose turn it is is decided as late as can be, when a slot is free and the submitter has next to nothing to
do. What waits at the submitter has had its turn; so little may wait there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio

from krea_batch.pipeline.context import RunContext
from krea_batch.pipeline.in_flight_job import InFlightJob
from krea_batch.rules.round_robin import RoundRobinQueue


class AdmissionQueue:
    """Where flights wait for their slots. `room` waits until the submitter can do with more, `out` takes a flight."""

    def __init__(
        self,
        run: RunContext,
        wait_for_capacity: Callable[[], Awaitable[None]],
        next_stage: Callable[[InFlightJob], None],
        on_deferred: Callable[[InFlightJob], None],
    ) -> None:
        self._run = run
        self._room = wait_for_capacity
        self._out = next_stage
        self._left = on_deferred
        self._waiting: RoundRobinQueue[InFlightJob] = RoundRobinQueue()
        self._some = asyncio.Event()
        self._empty = anyio.Event()
        self._empty.set()
        run.on_stopping(self._stop)

    def put(self, flight: InFlightJob) -> None:
        """Take a flight, to be submitted when its tenant's turn comes."""
        if self._run.stopped:
            self._left(flight)
            return
        self._waiting.put(flight.tenant, flight)
        self._run.stats.jobs_queued += 1
        self._some.set()
        if self._empty.is_set():
            self._empty = anyio.Event()

    async def work(self) -> None:
        """Let flights board, for ever."""
        while True:
            await self._some.wait()
            await self._room()
            await self._run.in_flight_limit.acquire()
            if not self._waiting:  # the run stopped meanwhile
                self._run.in_flight_limit.release()
                continue
            flight = self._waiting.pop()
            self._count()
            self._out(flight)

    async def wait_idle(self) -> None:
        """Wait until nobody waits."""
        await self._empty.wait()

    def _count(self) -> None:
        self._run.stats.jobs_queued = len(self._waiting)
        if not self._waiting:
            self._some.clear()
            self._empty.set()

    def _stop(self) -> None:
        left = list(self._waiting.drain())
        self._count()
        for flight in left:
            self._left(flight)
