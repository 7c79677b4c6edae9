"""Finds lines that may have the same id, in bounded memory.

Only hashes of the ids are kept. They are sorted into buckets by their lowest bits; full buckets are written to a
temporary file, and at the end one bucket after another is examined. Two different ids may share a hash, so the
results are candidates, and the caller reads their lines again.
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
from krea_batch.storage.os_errors import is_out_of_files, next_step

BUCKET_COUNT = 256  # chosen: with a hundred million lines, a bucket still takes less memory than a run
BUCKET_ITEMS = 1024  # chosen: 8 KiB each, so 2 MiB in memory, and writes of a useful size

_MASK = BUCKET_COUNT - 1


def default_id(number: int) -> str:
    """Return the id of a line without one, by its running number over all files."""
    return f"{number:05d}"  # chosen: five digits keep the usual batches in order in a directory


class DuplicateIdFinder:
    """Collects ids with the running numbers of their lines. Call `close`, since it may hold a temporary file."""

    def __init__(self, temp_dir: Path | None = None) -> None:
        self._temp_dir = temp_dir
        self._buckets = [array("q") for _ in range(BUCKET_COUNT)]
        self._chunks: list[list[int]] = [[] for _ in range(BUCKET_COUNT)]  # for each bucket: offsets in the file
        self._file: IO[bytes] | None = None

    def add(self, job_id: str, number: int) -> None:
        """Add the id of the line with this running number."""
        hash_value = hash(job_id)
        bucket = self._buckets[hash_value & _MASK]
        bucket.append(hash_value)
        bucket.append(number)
        if len(bucket) >= BUCKET_ITEMS:
            self._flush(hash_value & _MASK)

    def candidates(self) -> Iterator[array[int]]:
        """Yield, for each bucket that has any, the running numbers of lines that share a hash with another line.

        Lines that share a hash are always in the same bucket. The order is unspecified.
        """
        for bucket_index in range(BUCKET_COUNT):
            items = self._read_bucket(bucket_index)
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
                f"cannot write ids to a temporary file ({error.strerror})",
                next_step(error) if is_out_of_files(error) else "set TMPDIR to a directory with free space",
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
