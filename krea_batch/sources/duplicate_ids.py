"""The id of every good line comes in; the numbers of lines whose ids may be the same go out.

Newcomers: only hashes are kept, and of those only some in memory: they go to buckets by their lowest bits, full
buckets go to a temporary file, and at the end one bucket after another is looked at. Two ids that differ may
share a hash, so what comes out are suspects, and whoever reports them reads the lines again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from os import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from krea_batch.errors import InputError

BUCKET_COUNT = 256  # chosen: a bucket of a hundred million lines still fits in the memory that a run needs anyway
BUCKET_ITEMS = 1024  # chosen: 8 KiB each, so 2 MiB in memory, and writes that are worth a call

_MASK = BUCKET_COUNT - 1


def default_id(number: int) -> str:
    """The id of a line without one, by its running number over all files."""
    return f"{number:05d}"  # chosen: five digits keep the usual batches in order in a folder


class DuplicateIdFinder:
    """Collects ids with the running numbers of their lines. To be closed, since it may hold a file."""

    def __init__(self, temp_dir: Path | None = None) -> None:
        self._temp_dir = temp_dir
        self._buckets = [array("q") for _ in range(BUCKET_COUNT)]
        self._chunks: list[list[int]] = [[] for _ in range(BUCKET_COUNT)]  # where each bucket's chunks start
        self._file: IO[bytes] | None = None

    def add(self, job_id: str, number: int) -> None:
        """Remember that the line with this running number has this id."""
        hash_value = hash(job_id)
        bucket = self._buckets[hash_value & _MASK]
        bucket.append(hash_value)
        bucket.append(number)
        if len(bucket) >= BUCKET_ITEMS:
            self._flush(hash_value & _MASK)

    def candidates(self) -> Iterator[array[int]]:
        """For each bucket that has some: the running numbers of the lines whose hash is not theirs alone.

        Lines that share a hash are always in the same bucket. No order is promised.
        """
        for bucket_index in range(BUCKET_COUNT):
            items = self._read_bucket(bucket_index)
            hashes = items[0::2]
            if len(set(hashes)) == len(hashes):
                continue
            counts = Counter(hashes)
            yield array("q", (number for hash_value, number in zip(hashes, items[1::2], strict=True) if counts[hash_value] > 1))

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _flush(self, bucket_index: int) -> None:
        bucket = self._buckets[bucket_index]
        try:
            if self._file is None:
                self._file = TemporaryFile(dir=self._temp_dir, prefix="krea-batch-")  # noqa: SIM115 - see close
            self._chunks[bucket_index].append(self._file.seek(0, SEEK_END))
            self._file.write(bucket)
        except OSError as error:
            raise InputError(
                f"the ids could not be kept in a temporary file ({error.strerror})",
                "point TMPDIR to a folder with room",
            ) from error
        del bucket[:]

    def _read_bucket(self, bucket_index: int) -> array[int]:
        items = array("q")
        if self._file:
            for start in self._chunks[bucket_index]:
                self._file.seek(start)
                items.frombytes(self._file.read(BUCKET_ITEMS * items.itemsize))
        items.extend(self._buckets[bucket_index])
        return items
