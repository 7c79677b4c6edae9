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

BUCKETS = 256  # chosen: a bucket of a hundred million lines still fits in the memory that a run needs anyway
BUCKET_ITEMS = 1024  # chosen: 8 KiB each, so 2 MiB in memory, and writes that are worth a call

_MASK = BUCKETS - 1


def default_id(number: int) -> str:
    """The id of a line without one, by its running number over all files."""
    return f"{number:05d}"  # chosen: five digits keep the usual batches in order in a folder


class DuplicateIdFinder:
    """Collects ids with the running numbers of their lines. To be closed, since it may hold a file."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._buckets = [array("q") for _ in range(BUCKETS)]
        self._chunks: list[list[int]] = [[] for _ in range(BUCKETS)]  # where each bucket's chunks start
        self._file: IO[bytes] | None = None

    def add(self, job_id: str, number: int) -> None:
        """Remember that the line with this running number has this id."""
        code = hash(job_id)
        bucket = self._buckets[code & _MASK]
        bucket.append(code)
        bucket.append(number)
        if len(bucket) >= BUCKET_ITEMS:
            self._flush(code & _MASK)

    def candidates(self) -> Iterator[array[int]]:
        """For each bucket that has some: the running numbers of the lines whose hash is not theirs alone.

        Lines that share a hash are always in the same bucket. No order is promised.
        """
        for place in range(BUCKETS):
            items = self._whole(place)
            codes = items[0::2]
            if len(set(codes)) == len(codes):
                continue
            seen = Counter(codes)
            yield array("q", (number for code, number in zip(codes, items[1::2], strict=True) if seen[code] > 1))

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _flush(self, place: int) -> None:
        bucket = self._buckets[place]
        try:
            if self._file is None:
                self._file = TemporaryFile(dir=self._folder, prefix="krea-batch-")  # noqa: SIM115 - see close
            self._chunks[place].append(self._file.seek(0, SEEK_END))
            self._file.write(bucket)
        except OSError as error:
            raise InputError(
                f"the ids could not be kept in a temporary file ({error.strerror})",
                "point TMPDIR to a folder with room",
            ) from error
        del bucket[:]

    def _whole(self, place: int) -> array[int]:
        items = array("q")
        if self._file:
            for start in self._chunks[place]:
                self._file.seek(start)
                items.frombytes(self._file.read(BUCKET_ITEMS * items.itemsize))
        items.extend(self._buckets[place])
        return items
