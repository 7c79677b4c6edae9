"""Images whose last bytes have come go in, one a caller; each goes out verified, and kept by the caller's sink.

Newcomers: this is what `Shelf` is for the run's folder. An image is staged in its `.part` under `images/`, so
that it is whole and hashed before the sink hears of it, and so that a sink which fails is tried again without
another download. The part goes once the sink has said that the image is durable: a later run fetches anew, and
the sink finds that it has it. What a killed run left is swept by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from krea_batch.errors import RunStopped
from krea_batch.jobs import StoredFile
from krea_batch.storage.async_io import DiskThreads
from krea_batch.storage.image_file import ImageFile, remove_stale_parts, stage
from krea_batch.storage.sinks import Sink, SinkPermanentError, SinkTransientError, VerifiedImage

PUT_TIMEOUT_S = 300.0  # chosen: 64 MiB, the largest image, at 2 Mbit/s
CHECK_TIMEOUT_S = 60.0  # chosen: a store that takes longer to say a word is none to begin a paid run with

T = TypeVar("T")


class SinkImageWriter:
    """Verifies the images of one run and hands them to a sink.

    `stop` ends the run early. `cancellable` runs a sink's upload so that a stop of the run may cancel it.
    """

    def __init__(
        self,
        out: Path,
        disk: DiskThreads,
        sink: Sink,
        *,
        stop: Callable[[RunStopped], None],
        cancellable: Callable[[Callable[[], Awaitable[str]]], Awaitable[str]],
    ) -> None:
        self._out = out
        self._disk = disk
        self._sink = sink
        self._stop = stop
        self._cancellable = cancellable

    async def prepare(self) -> None:
        """Sweep what a killed run left, and stop this one before it pays where the sink keeps nothing."""
        await self._disk.run(remove_stale_parts, self._out)
        try:
            await _in_time(self._sink.check(), CHECK_TIMEOUT_S)
        except SinkTransientError as error:
            reason = f"images cannot be kept ({error.reason})"
            self._stop(RunStopped(reason, "see to --sink, then run the same command again"))
        except SinkPermanentError as error:
            self._stop(RunStopped(error.reason, error.next_step))

    async def finish(self, image: ImageFile, last: list[bytes]) -> StoredFile:
        """Take an image's last bytes. Raises PngError and OSError as the shelf does, SinkError, SinkRefused."""
        if not image.is_whole:
            await self._disk.run(stage, image, last)
        row = image.to_record("")
        whole = VerifiedImage(
            image.job_id,
            image.output,
            image.stem,
            image.part,
            row.bytes,
            row.sha256,
            row.width,
            row.height,
            row.media_type,
        )
        where = await self._cancellable(lambda: _in_time(self._sink.put(whole), PUT_TIMEOUT_S))
        await self._disk.run(image.part.unlink)
        return image.to_record(where)


async def _in_time(work: Awaitable[T], limit_s: float) -> T:
    """What a sink gives. Its silence and its network's errors become SinkErrors, apart from our own disk's."""
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError:
        raise SinkTransientError(f"the sink gave no answer in {limit_s:.0f} s") from None
    except OSError as error:
        raise SinkTransientError(error.strerror or type(error).__name__) from error
