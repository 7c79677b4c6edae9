"""Selects some of the jobs of a run: the first, or a sample."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from heapq import nsmallest
from itertools import islice

from krea_batch.jobs import Job
from krea_batch.sources.options import InputOptions


class Selection:
    """The jobs that `options` select.

    A sample contains the jobs whose ids have the smallest hashes. So the same seed selects the same jobs in the next
    run, and a job that is added to the files replaces at most one of them.
    """

    def __init__(self, options: InputOptions) -> None:
        self._limit = options.limit
        self._sample = options.sample
        self._key = str(options.sample_seed).encode()[:64]
        self._indexes: array[int] = array("q")

    def read(self, jobs: Iterable[Job]) -> None:
        """Read all jobs, if that is needed to select some."""
        if self._sample is not None:
            hashes = ((self._hash(job), index) for index, job in enumerate(jobs))
            self._indexes = array("q", sorted(index for _, index in nsmallest(self._sample, hashes)))

    def filter(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """Yield the selected jobs in their order. The jobs must be those that `read` got."""
        if self._sample is None:
            yield from islice(jobs, self._limit)
            return
        selected = iter(self._indexes)
        next_index = next(selected, None)
        for index, job in enumerate(jobs):
            if index == next_index:
                yield job
                next_index = next(selected, None)

    def _hash(self, job: Job) -> bytes:
        return blake2b(job.id.encode(), key=self._key, digest_size=8).digest()
