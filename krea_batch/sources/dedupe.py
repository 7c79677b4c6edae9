"""Drops jobs whose request duplicates an earlier one.

The request is compared as it would be sent, so rows with one prompt and different seeds are not duplicates, nor are
the repeats of `--repeat`.
"""

from __future__ import annotations

from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources.sweep import REPEAT


class Deduplicator:
    """Remembers every request, about 150 bytes each. `dropped` counts the jobs that were dropped."""

    def __init__(self) -> None:
        self.dropped = 0
        self._requests: set[bytes] = set()
        self._dropped_jobs: set[tuple[int, str]] = set()

    def filter(self, number: int, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        """Return the jobs of row `number` whose requests are new."""
        return tuple(job for job in jobs if self._is_new(number, job))

    def was_dropped(self, number: int, job: Job) -> bool:
        """Return whether `filter` dropped this job of this row."""
        return (number, job.id) in self._dropped_jobs

    def _is_new(self, number: int, job: Job) -> bool:
        request = _request_key(job)
        if request in self._requests:
            self.dropped += 1
            self._dropped_jobs.add((number, job.id))
            return False
        self._requests.add(request)
        return True


def _request_key(job: Job) -> bytes:
    """Return a key of the request; the number of a repeat is part of it."""
    return wire.fingerprint(job) + str(job.metadata.get(REPEAT, "")).encode()
