"""A sink that stores images in a directory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from pathlib import Path

from krea_batch.storage.atomic import fsync_path
from krea_batch.storage.os_errors import next_step
from krea_batch.storage.run_dir import candidate_names, has_content
from krea_batch.storage.sinks import SinkPermanentError, VerifiedImage


class FolderSink:
    """Stores images as `<path>/<name>.png`; results name them by their full path.

    The run directory does not need it. A file with other content is never overwritten: the image is then
    `<name>~2.png`. The file system must support hard links, which take a name only if it is free.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    async def check(self) -> None:
        """Create the directory. Raises SinkPermanentError if it cannot be written."""
        try:
            await asyncio.to_thread(self._prepare)
        except OSError as error:
            reason = f"cannot store images in {self.path} ({error.strerror})"
            raise SinkPermanentError(reason, f"{next_step(error)}, then run again to resume") from None

    async def put(self, image: VerifiedImage) -> str:
        """Store an image durably. Raises OSError."""
        return str(await asyncio.to_thread(self._store, image))

    def _prepare(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        probe = self.path / f".krea-batch.{os.getpid()}"
        probe.touch()
        probe.unlink()

    def _store(self, image: VerifiedImage) -> Path:
        # The hash distinguishes two jobs with the same image, and fits the longest name that a file system allows.
        unique = hashlib.sha256(f"{image.sha256} {image.name}".encode()).hexdigest()
        part = self.path / f".{unique}.part"
        try:
            shutil.copyfile(image.path, part)
            fsync_path(part)
            final = self._link_free_name(part, image)
        finally:
            part.unlink(missing_ok=True)
        # Every directory is synced, because one that a killed run created may not be durable yet.
        for folder in final.relative_to(self.path).parents:
            fsync_path(self.path / folder)
        return final

    def _link_free_name(self, part: Path, image: VerifiedImage) -> Path:
        """Link `part` to the first free name; a file with the same bytes from an earlier run counts as free."""
        for name in candidate_names(image.name, image.extension):
            final = self.path / name
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                final.hardlink_to(part)
            except FileExistsError:
                if not has_content(final, image.size_bytes, image.sha256):
                    continue
            return final
        raise AssertionError("candidate_names does not end")
