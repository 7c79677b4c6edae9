"""Stores downloaded images in the run directory, several in one group.

Images that arrive while a group is being written share the next one. A sync costs nearly the same for one image as
for ten, and the event loop hands over one group instead of ten images.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

from krea_batch.jobs import StoredFile
from krea_batch.storage.async_io import DiskThreads, resolve_all
from krea_batch.storage.image_file import ImageError, ImageFile, commit_many

MAX_GROUP_IMAGES = 32  # measured: larger groups do not make an image cheaper
MAX_GROUP_BYTES = 8 << 20  # chosen: a disk thread checks and writes this in 20 ms
MAX_GROUPS = 4  # chosen: machines have few cores and disk queues

_Waiting = tuple[ImageFile, Sequence[bytes], asyncio.Future[StoredFile]]


class LocalImageWriter:
    """Stores the images of one run in groups."""

    def __init__(self, disk: DiskThreads) -> None:
        self._disk = disk
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._groups = 0

    async def finish(self, image: ImageFile, last_chunks: Sequence[bytes]) -> StoredFile:
        """Write an image's last bytes, and return its record when it is durable. Raises ImageError, OSError."""
        future: asyncio.Future[StoredFile] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, last_chunks, future))
        self._waiting_bytes += _size_bytes(last_chunks)
        if self._groups == 0 or (self._groups < MAX_GROUPS and self._is_full()):
            self._start()
        return await future

    def _is_full(self) -> bool:
        return len(self._waiting) >= MAX_GROUP_IMAGES or self._waiting_bytes >= MAX_GROUP_BYTES

    def _start(self) -> None:
        group, self._waiting = self._waiting[:MAX_GROUP_IMAGES], self._waiting[MAX_GROUP_IMAGES:]
        self._waiting_bytes = sum(_size_bytes(chunks) for _, chunks, _ in self._waiting)
        self._groups += 1
        work = self._disk.run(commit_many, [(image, chunks) for image, chunks, _ in group])
        work.add_done_callback(functools.partial(self._on_done, group))

    def _on_done(self, group: list[_Waiting], work: asyncio.Future[list[StoredFile | ImageError | OSError]]) -> None:
        self._groups -= 1
        if work.cancelled():
            results: Sequence[StoredFile | BaseException] = [asyncio.CancelledError()] * len(group)
        elif error := work.exception():
            results = [error] * len(group)
        else:
            results = work.result()
        resolve_all((future for _, _, future in group), results)
        if self._waiting:
            self._start()


def _size_bytes(chunks: Sequence[bytes]) -> int:
    return sum(map(len, chunks))
