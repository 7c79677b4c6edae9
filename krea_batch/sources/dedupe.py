"""Jobs come in; those that ask for nothing new go out no more.

Newcomers: what is compared is the request as it would be sent, so two rows of one prompt with different seeds are no
twins, and repeats that were asked for are not, either.
"""

from __future__ import annotations

from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources.sweep import REPEAT


class Deduplicator:
    """Remembers what every job asked for, some 150 bytes each. `found` counts those that were left out."""

    def __init__(self) -> None:
        self.dropped = 0
        self._seen: set[bytes] = set()
        self._left_out: set[tuple[int, str]] = set()

    def filter(self, number: int, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        """The jobs of the row of this number that ask for what no earlier job did."""
        return tuple(job for job in jobs if self._is_new(number, job))

    def was_dropped(self, number: int, job: Job) -> bool:
        """Whether `without` left out this job of this row."""
        return (number, job.id) in self._left_out

    def _is_new(self, number: int, job: Job) -> bool:
        asked = _asked(job)
        if asked in self._seen:
            self.dropped += 1
            self._left_out.add((number, job.id))
            return False
        self._seen.add(asked)
        return True


def _asked(job: Job) -> bytes:
    """What a job asks for; its place among repeats counts as part of it."""
    return wire.fingerprint(job) + str(job.metadata.get(REPEAT, "")).encode()
