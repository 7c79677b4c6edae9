"""Collects 64-bit hashes in bounded memory.

Hashes are sorted into buckets by their lowest bits; full buckets are written to a temporary file. At the end one
bucket after another is examined. Equal hashes are always in the same bucket.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from os import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from krea_batch.errors import InputError
from krea_batch.storage.os_errors import is_out_of_files, next_step

BUCKET_COUNT = 256  # chosen: with a hundred million lines, a bucket still takes less memory than a run
BUCKET_ITEMS = 512  # chosen: 20 KiB each in memory, so 5 MiB together, and writes of 4 KiB

_MASK = BUCKET_COUNT - 1


class HashBuckets:
    """Collects hashes, or pairs of a hash and a number. Call `close`, since it may hold a temporary file."""

    def __init__(self, temp_dir: Path | None = None) -> None:
        self._temp_dir = temp_dir
        self._buckets: list[list[int]] = [[] for _ in range(BUCKET_COUNT)]  # appending to arrays takes far longer
        self._chunks = [array("q") for _ in range(BUCKET_COUNT)]  # offset in the file and size of each, alternating
        self._file: IO[bytes] | None = None

    def add_pair(self, hash_value: int, number: int) -> None:
        """Add a hash with a number."""
        bucket = self._buckets[hash_value & _MASK]
        bucket.append(hash_value)
        bucket.append(number)
        if len(bucket) >= BUCKET_ITEMS:
            self._flush(hash_value & _MASK)

    def add_all(self, hash_values: Iterable[int]) -> None:
        """Add many hashes, without numbers."""
        buckets = self._buckets
        for hash_value in hash_values:
            buckets[hash_value & _MASK].append(hash_value)
        for bucket_index, bucket in enumerate(buckets):
            if len(bucket) >= BUCKET_ITEMS:
                self._flush(bucket_index)

    def buckets(self) -> Iterator[list[int]]:
        """Yield the items of each bucket in the order in which they were added."""
        for bucket_index in range(BUCKET_COUNT):
            items: list[int] = []
            for part in self._parts(bucket_index):
                items.extend(part)
            yield items

    def count_repeats(self) -> int:
        """Return how many of the hashes, added without numbers, are equal to an earlier one."""
        repeats = 0
        for bucket_index in range(BUCKET_COUNT):
            distinct: set[int] = set()
            for part in self._parts(bucket_index):
                distinct.update(part)
                repeats += len(part)
            repeats -= len(distinct)
        return repeats

    def close(self) -> None:
        """Delete the temporary file."""
        if self._file:
            self._file.close()

    def _flush(self, bucket_index: int) -> None:
        bucket = self._buckets[bucket_index]
        try:
            if self._file is None:
                self._file = TemporaryFile(dir=self._temp_dir, prefix="krea-batch-")  # noqa: SIM115 - see close
            self._chunks[bucket_index].extend((self._file.seek(0, SEEK_END), len(bucket)))
            self._file.write(struct.pack(f"{len(bucket)}q", *bucket))
        except OSError as error:
            raise InputError(
                f"cannot write hashes to a temporary file ({error.strerror})",
                next_step(error) if is_out_of_files(error) else "set TMPDIR to a directory with free space",
            ) from error
        bucket.clear()

    def _parts(self, bucket_index: int) -> Iterator[Sequence[int]]:
        """Yield the items of a bucket: those in the file, part by part, and those in memory."""
        if self._file:
            chunks = self._chunks[bucket_index]
            for start, count in zip(chunks[0::2], chunks[1::2], strict=True):
                items = array("q")
                self._file.seek(start)
                items.frombytes(self._file.read(count * items.itemsize))
                yield items
        yield self._buckets[bucket_index]
