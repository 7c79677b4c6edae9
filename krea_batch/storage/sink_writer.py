"""Verifies downloaded images and hands them to a sink.

An image is first written to its `.part` file in `images/`, so that it is complete and hashed before the sink gets it,
and so that a failed upload is retried without another download. The file is deleted when the sink has made the image
durable. If the process is killed in between, the next run deletes the file and downloads the image again, and the
sink finds that it already has the image.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from krea_batch.errors import RunStopped
from krea_batch.jobs import StoredFile
from krea_batch.storage.async_io import DiskThreads
from krea_batch.storage.image_file import ImageFile, remove_stale_parts, write_to_part
from krea_batch.storage.sinks import Sink, SinkPermanentError, SinkTransientError, VerifiedImage

PUT_TIMEOUT_S = 300.0  # chosen: 64 MiB, the largest image, at 2 Mbit/s
CHECK_TIMEOUT_S = 60.0  # chosen: fail before charging if the store is this slow

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
        shared: bool = False,
    ) -> None:
        self._out = out
        self._disk = disk
        self._sink = sink
        self._stop = stop
        self._cancellable = cancellable
        self._shared = shared

    async def prepare(self) -> None:
        """Delete files of a killed run, and stop the run before anything is charged if the sink does not work."""
        if not self._shared:  # Else they may be downloads of other runs.
            await self._disk.run(remove_stale_parts, self._out)
        try:
            await _with_timeout(self._sink.check(), CHECK_TIMEOUT_S)
        except SinkTransientError as error:
            reason = f"images cannot be stored ({error.reason})"
            self._stop(RunStopped(reason, "check the sink, then run again to resume"))
        except SinkPermanentError as error:
            self._stop(RunStopped(error.reason, error.next_step))

    async def finish(self, image: ImageFile, last_chunks: list[bytes]) -> StoredFile:
        """Write an image's last bytes, and return its record when the sink has it.

        Raises ImageError, OSError, SinkTransientError, SinkPermanentError.
        """
        if not image.is_complete:
            await self._disk.run(write_to_part, image, last_chunks)
        record = image.to_record("")
        verified = VerifiedImage(
            image.job_id,
            image.output,
            image.stem,
            image.part,
            record.bytes,
            record.sha256,
            record.width,
            record.height,
            record.media_type,
            record.defect,
        )
        path = await self._cancellable(lambda: _with_timeout(self._sink.put(verified), PUT_TIMEOUT_S))
        await self._disk.run(image.part.unlink)
        return image.to_record(path)


async def _with_timeout(work: Awaitable[T], timeout_s: float) -> T:
    """Await a sink's result.

    Raises SinkTransientError after `timeout_s` seconds, and for the sink's own TimeoutErrors and OSErrors. An OSError
    of the local disk is not changed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise SinkTransientError(f"the sink did not answer within {timeout_s:.0f} s") from None
    except OSError as error:
        raise SinkTransientError(error.strerror or type(error).__name__) from error
