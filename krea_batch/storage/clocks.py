"""Clocks that never go backwards, in seconds, for measuring durations on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from krea_batch.storage.operating_system import suspended_s


def monotonic_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return a clock that advances while callbacks run.

    The clock of uvloop does not, and has a resolution of one millisecond. Send times read from it are too early by
    the time that the loop was busy, so too many requests would be sent.
    """
    is_uvloop = any(base.__module__.partition(".")[0] == "uvloop" for base in type(loop).__mro__)
    return time.monotonic if is_uvloop else loop.time


def boottime_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return a clock as `monotonic_clock` does that also advances while the machine is suspended, on Linux."""
    now_s = monotonic_clock(loop)
    return lambda: now_s() + suspended_s()
