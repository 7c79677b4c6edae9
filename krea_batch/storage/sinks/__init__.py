"""Where images are stored, other than in the run directory.

folder        FolderSink: a directory
object_store  ObjectStoreSink: S3, Google Cloud Storage, Azure

A sink of your own is a class with the two methods of `Sink`:

    class DatabaseSink:
        async def check(self) -> None:
            await self.database.execute("SELECT 1 FROM images LIMIT 1")

        async def put(self, image: VerifiedImage) -> str:
            sql = "INSERT INTO images VALUES ($1, $2) ON CONFLICT (sha256) DO NOTHING"
            await self.database.execute(sql, image.sha256, await image.read())
            return f"database:{image.sha256}"

    async with Engine("runs/cats", sink=DatabaseSink()) as engine: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from krea_batch.errors import PicklableError, SettingsError
from krea_batch.storage.image_types import EXTENSIONS

__all__ = ["Sink", "SinkPermanentError", "SinkTransientError", "VerifiedImage", "open_sink"]


class VerifiedImage(Struct, frozen=True):
    """A complete image: a PNG with valid checksums, unless there is a `defect`, which says what it is instead.

    `name` is its name without suffix: the job's name, or `<name>-2` for the second image. The name of a job is its
    `image_name`, which may have folders (`cats/1`), or else its id. `output` counts from 1. `path`
    is the file that has the bytes until `put` returns; do not move or change it. `width` and `height` are in pixels,
    0 if unknown.
    """

    job_id: str
    output: int
    name: str
    path: Path
    size_bytes: int
    sha256: str
    width: int
    height: int
    media_type: str
    defect: str = ""

    @property
    def extension(self) -> str:
        """The extension of its type, such as ".png"."""
        return EXTENSIONS[self.media_type]

    async def read(self) -> bytes:
        """Return the bytes."""
        return await asyncio.to_thread(self.path.read_bytes)


class Sink(Protocol):
    """A storage target for images. Several calls run concurrently.

    Both methods raise SinkTransientError for errors that may pass (OSError and TimeoutError count as such), and
    SinkPermanentError for errors that a person must fix. Any other exception is a bug, and ends the run. No error
    leads to another submit.
    """

    async def check(self) -> None:
        """Check that images can be stored. Called once, before the first submit."""
        ...

    async def put(self, image: VerifiedImage) -> str:
        """Store an image, and return where it is: the `path` in the results.

        The image must be durable at return: the engine deletes its own copy. It may be called again with the same
        image after a crash or an error, and must then store it once. It may be cancelled.
        """
        ...


class SinkTransientError(PicklableError):
    """An image could not be stored this time; it is retried."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SinkPermanentError(PicklableError):
    """No image can be stored before a person does `next_step`. The run stops and can be resumed."""

    def __init__(self, reason: str, next_step: str) -> None:
        super().__init__(reason, next_step)
        self.reason = reason
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.reason}; {self.next_step}"


def open_sink(url: str | None) -> Sink | None:
    """Return the sink of a URL, or None for the run directory. Raises SettingsError."""
    if url is None:
        return None
    with obstore_required("sink"):
        from krea_batch.storage.sinks.object_store import ObjectStoreSink  # obstore is optional
    return ObjectStoreSink.from_url(url)


@contextmanager
def obstore_required(parameter: str) -> Iterator[None]:
    """Raise SettingsError if the import in this context fails because obstore is not installed."""
    try:
        yield
    except ModuleNotFoundError:
        hint = "run: pip install 'krea-batch[object-store]'"
        raise SettingsError(parameter, "object stores need obstore, which is not installed", hint) from None
