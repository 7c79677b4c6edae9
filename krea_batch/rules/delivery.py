"""Hold all submits while images that are paid for cannot be stored.

If images cannot be stored, further ones would be paid for and not stored either: for example if the CDN has an
address that is refused, if images have another format, or if a proxy changes them. Downloads continue, and the first
stored image ends the hold.
"""

from __future__ import annotations

FAILED_JOBS = 10  # chosen: this many different jobs failed to store an image, and none succeeded in between
UNPROVEN_JOBS = (
    100  # chosen: jobs in flight until a run directory has its first image; ten seconds at the default rate
)
UNPROVEN_S = 10.0  # chosen: or this many seconds of submits, if that is more, since a fast run waits for an image


class DeliveryGuard:
    """Whether the downloads show that images can be stored. `proven`: an earlier run has stored an image."""

    __slots__ = ("_failed_jobs", "_proven", "reason")

    def __init__(self, *, proven: bool) -> None:
        self._proven = proven
        self._failed_jobs: set[int] = set()  # numbers of jobs that failed since the last stored image
        self.reason = ""  # of the latest failure

    def record_stored(self) -> None:
        """Record that a complete image is stored."""
        self._proven = True
        self._failed_jobs.clear()

    def record_failure(self, job_no: int, reason: str) -> None:
        """Record that an image of a job could not be downloaded or stored."""
        if len(self._failed_jobs) < FAILED_JOBS:
            self._failed_jobs.add(job_no)
        self.reason = reason

    @property
    def is_failing(self) -> bool:
        """Whether so many jobs failed in a row that submits are held."""
        return len(self._failed_jobs) >= FAILED_JOBS

    def may_submit(self, in_flight: int, rate_per_s: float) -> bool:
        """Return whether another job may be submitted, with so many jobs in flight."""
        if self.is_failing:
            return in_flight == 0  # All have ended, so one more job tries whether images can be stored again.
        return self._proven or in_flight < max(UNPROVEN_JOBS, UNPROVEN_S * rate_per_s)
