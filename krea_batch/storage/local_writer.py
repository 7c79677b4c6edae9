"""Stores downloaded images in the run directory, several in one group.

Images that arrive while a group is being written, or soon after it was started, share the next one. A sync costs
nearly the same for one image as for ten, and the event loop hands over one group instead of ten images.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

from krea_batch.jobs import StoredFile
from krea_batch.storage.async_io import DiskThreads, MinInterval, resolve_all
from krea_batch.storage.image_file import ImageError, ImageFile, commit_many

MAX_GROUP_IMAGES = 32  # measured: larger groups do not make an image cheaper
MAX_GROUP_BYTES = 8 << 20  # chosen: a disk thread checks and writes this in 20 ms
GROUP_INTERVAL_S = 0.05  # measured: at 200 images a second, a job costs a tenth less than without an interval
MAX_GROUPS = 4  # chosen: machines have few cores and disk queues

_Waiting = tuple[ImageFile, Sequence[bytes], asyncio.Future[StoredFile]]


class LocalImageWriter:
    """Stores the images of one run in groups. `downloads` is how many of them can wait for it at the same time."""

    def __init__(self, disk: DiskThreads, downloads: int) -> None:
        self._disk = disk
        self._downloads = downloads
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._groups = 0
        self._writing = 0  # images in groups that are being written
        self._timer = MinInterval(self._start)

    async def finish(self, image: ImageFile, last_chunks: Sequence[bytes]) -> StoredFile:
        """Write an image's last bytes, and return its record when it is durable. Raises ImageError, OSError."""
        future: asyncio.Future[StoredFile] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, last_chunks, future))
        self._waiting_bytes += _size_bytes(last_chunks)
        self._start_if_due()
        return await future

    def _start_if_due(self) -> None:
        """Start a group if it is full, or if none is being written and the last start was long enough ago."""
        if self._is_full():
            if self._groups < MAX_GROUPS:
                self._start()
        elif self._groups == 0 and not self._timer.is_scheduled:
            self._timer.schedule(GROUP_INTERVAL_S)

    def _is_full(self) -> bool:
        """Return whether there are enough images for a group, or no other image can arrive before one is stored."""
        max_images = min(MAX_GROUP_IMAGES, self._downloads - self._writing)
        return len(self._waiting) >= max_images or self._waiting_bytes >= MAX_GROUP_BYTES

    def _start(self) -> None:
        group, self._waiting = self._waiting[:MAX_GROUP_IMAGES], self._waiting[MAX_GROUP_IMAGES:]
        self._waiting_bytes = sum(_size_bytes(chunks) for _, chunks, _ in self._waiting)
        self._groups += 1
        self._writing += len(group)
        self._timer.record_start()
        work = self._disk.run(commit_many, [(image, chunks) for image, chunks, _ in group])
        work.add_done_callback(functools.partial(self._on_done, group))

    def _on_done(self, group: list[_Waiting], work: asyncio.Future[list[StoredFile | ImageError | OSError]]) -> None:
        self._groups -= 1
        self._writing -= len(group)
        if work.cancelled():
            results: Sequence[StoredFile | BaseException] = [asyncio.CancelledError()] * len(group)
        elif error := work.exception():
            results = [error] * len(group)
        else:
            results = work.result()
        resolve_all((future for _, _, future in group), results)
        if self._waiting:
            self._start_if_due()


def _size_bytes(chunks: Sequence[bytes]) -> int:
    return sum(map(len, chunks))
