"""Track whether the gateway delivers callbacks reliably.

A callback is never trusted; a poll confirms each one. This rule only decides how late polls may be. If callbacks
arrived for nearly all recent jobs, the first poll of a job waits for its callback. If they do not arrive, jobs are
polled as if there were no callbacks.
"""

from __future__ import annotations

from collections import deque

RECENT_JOBS = 20  # chosen: a gateway that stops sending callbacks is noticed within this many jobs
MIN_JOBS = 5  # chosen: this many callbacks in a row are no coincidence
MAX_MISSED_SHARE = 0.1  # chosen: of the recent jobs; if more are missing, waiting costs more than polling
CALLBACK_GRACE_S = 2.0  # chosen: a callback may arrive this long after a poll has found the job ended


class CallbackReliability:
    """Whether callbacks arrived for the most recent jobs."""

    __slots__ = ("_delivered",)

    def __init__(self) -> None:
        self._delivered: deque[bool] = deque(maxlen=RECENT_JOBS)

    def record(self, *, delivered: bool) -> None:
        """Record whether a callback arrived for a job that ended."""
        self._delivered.append(delivered)

    @property
    def reliable(self) -> bool:
        """Whether callbacks can be relied upon."""
        missed = self._delivered.count(False)
        return len(self._delivered) >= MIN_JOBS and missed <= MAX_MISSED_SHARE * len(self._delivered)
