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
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from krea_batch.errors import SettingsError

__all__ = ["Sink", "SinkPermanentError", "SinkTransientError", "VerifiedImage", "open_sink"]


class VerifiedImage(Struct, frozen=True):
    """An image whose every byte has come: its PNG was walked to the end, its checksums are right.

    `name` is the stem that names it: the job's id, or `<id>-2` for its second. `output` counts from 1. `staged` is
    the file that holds the bytes until `put` returns; it is not to be moved or changed.
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

    async def read(self) -> bytes:
        """All of its bytes."""
        return await asyncio.to_thread(self.path.read_bytes)


class Sink(Protocol):
    """Where images are kept. Several calls run at once.

    Both methods raise SinkError for trouble that may pass (so do OSError and TimeoutError), and SinkRefused for
    what only a person can mend; any other exception is a bug, and ends the run. No error leads to another submit.
    """

    async def check(self) -> None:
        """Find out whether images could be kept; asked once, before the first submit is paid."""
        ...

    async def put(self, image: VerifiedImage) -> str:
        """Keep an image, and return where it is: the `path` of its row in the results.

        When it returns, the image is durable: the engine forgets its own copy. It may be called again with the
        same image, after a crash or an error, and then keeps it once. It may be cancelled.
        """
        ...


class SinkTransientError(Exception):
    """An image could not be kept this time; it is tried again."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SinkPermanentError(Exception):
    """No image can be kept before a person has done `next_step`. The run stops, and can be resumed."""

    def __init__(self, reason: str, next_step: str) -> None:
        super().__init__(reason, next_step)
        self.reason = reason
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.reason}: {self.next_step}"


def open_sink(url: str | None) -> Sink | None:
    """The sink that a URL of the settings names; None for the run's folder. Raises SettingsError."""
    if url is None:
        return None
    try:
        from krea_batch.storage.sinks.object_store import ObjectStoreSink  # obstore: only where it is needed
    except ModuleNotFoundError:
        problem, hint = "object stores need obstore, which is not installed", "pip install 'krea-batch[object-store]'"
        raise SettingsError("sink", problem, hint) from None
    return ObjectStoreSink.from_url(url)
