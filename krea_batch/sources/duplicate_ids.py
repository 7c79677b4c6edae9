"""Finds lines that may have the same id, in bounded memory.

Only hashes of the ids are kept. Two different ids may share a hash, so the results are candidates, and the caller
reads their lines again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from krea_batch.sources.hash_buckets import HashBuckets


def default_id(number: int) -> str:
    """Return the id of a line without one, by its running number over all files."""
    return f"{number:05d}"  # chosen: five digits keep the usual batches in order in a directory


class DuplicateIdFinder:
    """Collects ids with the running numbers of their lines. Call `close`, since it may hold a temporary file."""

    def __init__(self, temp_dir: Path | None = None) -> None:
        self._hashes = HashBuckets(temp_dir)
        self._add_pair = self._hashes.add_pair

    def add(self, job_id: str, number: int) -> None:
        """Add the id of the line with this running number."""
        self._add_pair(hash(job_id), number)

    def candidates(self) -> Iterator[array[int]]:
        """Yield, for each bucket that has any, the running numbers of lines that share a hash with another line.

        The order is unspecified.
        """
        for items in self._hashes.buckets():
            hashes = items[0::2]
            if len(set(hashes)) == len(hashes):
                continue
            counts = Counter(hashes)
            yield array(
                "q",
                (number for hash_value, number in zip(hashes, items[1::2], strict=True) if counts[hash_value] > 1),
            )

    def close(self) -> None:
        """Delete the temporary file."""
        self._hashes.close()
