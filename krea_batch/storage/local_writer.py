"""Images whose last bytes have come go in, one a caller; each goes out whole, synced and named.

Newcomers: those who come while one group is on its way to the disk share the next. A sync costs the disk nearly the
same for one image as for ten, and the loop pays for one hop to a thread instead of ten.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

from krea_batch.jobs import StoredFile
from krea_batch.storage.async_io import DiskThreads, resolve_all
from krea_batch.storage.image_file import ImageFile, PngError, commit_many

MAX_GROUP_IMAGES = 32  # chosen: more in one group make none of them cheaper (measured)
MAX_GROUP_BYTES = 8 << 20  # chosen: what a disk thread checks and writes in 20 ms
MAX_GROUPS = 4  # chosen: cores that check, and queues of a disk, are few

_Waiting = tuple[ImageFile, Sequence[bytes], asyncio.Future[StoredFile]]


class LocalImageWriter:
    """Finishes the images of one run, many at a time."""

    def __init__(self, disk: DiskThreads) -> None:
        self._disk = disk
        self._waiting: list[_Waiting] = []
        self._groups = 0

    async def finish(self, image: ImageFile, last: Sequence[bytes]) -> StoredFile:
        """Take an image's last bytes. Returns the file's row once it is durable. Raises PngError, OSError."""
        future: asyncio.Future[StoredFile] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, last, future))
        if self._groups == 0 or (self._groups < MAX_GROUPS and self._is_full()):
            self._start()
        return await future

    def _is_full(self) -> bool:
        waiting = self._waiting
        return (
            len(waiting) >= MAX_GROUP_IMAGES
            or sum(len(data) for _, last, _ in waiting for data in last) >= MAX_GROUP_BYTES
        )

    def _start(self) -> None:
        group, self._waiting = self._waiting[:MAX_GROUP_IMAGES], self._waiting[MAX_GROUP_IMAGES:]
        self._groups += 1
        work = self._disk.run(commit_many, [(image, last) for image, last, _ in group])
        work.add_done_callback(functools.partial(self._done, group))

    def _done(self, group: list[_Waiting], work: asyncio.Future[list[StoredFile | PngError | OSError]]) -> None:
        self._groups -= 1
        if work.cancelled():
            answers: Sequence[StoredFile | BaseException] = [asyncio.CancelledError()] * len(group)
        elif error := work.exception():
            answers = [error] * len(group)
        else:
            answers = work.result()
        resolve_all((future for _, _, future in group), answers)
        if self._waiting:
            self._start()
