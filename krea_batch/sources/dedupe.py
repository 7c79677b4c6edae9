"""Counts jobs whose request repeats an earlier one, or drops them.

The request is compared as it would be sent, so rows with the same prompt and different seeds are not duplicates. The
repeats of `--repeat` are not duplicates either.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UNSET

from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources.duplicate_ids import default_id
from krea_batch.sources.sweep import REPEAT

OnDropped = Callable[[int, str, str], None]
"""Called with the number of the row, the id of the dropped job, and the id of the job with the same request."""


def hash_of_request(job: Job) -> int:
    """Return 64 bits that are equal for jobs with the same request.

    In a million requests, the probability that two different ones share a hash is 3e-8.
    """
    if job.image_style_references or job.styles or job.moodboards or (job.metadata and REPEAT in job.metadata):
        return hash(_request_key(job))
    if job.seed is UNSET:
        return hash((job.prompt, job.aspect_ratio, job.creativity))
    # The hash of a number cannot be used, because hash(-1) equals hash(-2).
    return hash((job.prompt, job.aspect_ratio, job.creativity, str(job.seed)))


class Deduplicator:
    """Remembers every request, about 200 bytes each. `dropped` counts the jobs that were dropped."""

    def __init__(self, on_dropped: OnDropped | None = None) -> None:
        self.dropped = 0
        self._on_dropped = on_dropped
        self._first_by_request: dict[bytes, str | int] = {}  # the id of the job, or its number if it has none
        self._dropped_jobs: set[tuple[int, str]] = set()

    def filter(self, number: int, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        """Return the jobs of row `number` whose requests are new."""
        return tuple(job for job in jobs if self._is_new(number, job))

    def was_dropped(self, number: int, job: Job) -> bool:
        """Return whether `filter` dropped this job of this row."""
        return (number, job.id) in self._dropped_jobs

    def _is_new(self, number: int, job: Job) -> bool:
        request = _request_key(job)
        first = self._first_by_request.get(request)
        if first is None:
            self._first_by_request[request] = job.id or number
            return True
        self.dropped += 1
        self._dropped_jobs.add((number, job.id))
        if self._on_dropped:
            first_id = first if isinstance(first, str) else default_id(first)
            self._on_dropped(number, job.id or default_id(number), first_id)
        return False


def _request_key(job: Job) -> bytes:
    """Return a key of the request; the number of a repeat is part of it."""
    return wire.fingerprint(job) + str(job.metadata.get(REPEAT, "")).encode()
