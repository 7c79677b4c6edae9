"""Keeps thumbnails in the run directory, so that each is made once.

A thumbnail is named by the SHA-256 of its image, so it never belongs to another image. Losing thumbnails costs time
only: a file that is missing or incomplete is made again, and where nothing can be written, nothing is kept.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

from krea_batch.jobs import StoredFile
from krea_batch.storage.atomic import open_for_writing
from krea_batch.storage.run_dir import THUMBNAILS

MIN_FREE_BYTES = 256 << 20  # chosen: the rest of the disk is left to images, which are paid for
_SHA256 = re.compile(r"[0-9a-f]{64}")  # a ledger of someone else may have any text


class LocalImage(NamedTuple):
    """An image on this disk, and the SHA-256 that the ledger has of it."""

    path: Path
    sha256: str


def local_image_path(out: Path, path: str) -> Path | None:
    """Return the file of an image; None if it is in an object store, or its path leaves the run directory."""
    inside = "://" not in path and not Path(path).is_absolute() and ".." not in Path(path).parts
    return out / path if inside else None


def local_image(out: Path, file: StoredFile) -> LocalImage | None:
    """Return an image of a run; None if it is not in the run directory."""
    path = local_image_path(out, file.path)
    return LocalImage(path, file.sha256) if path else None


class ThumbnailFiles:
    """The thumbnails in the directory of a run. It may be used by many threads and processes."""

    def __init__(self, out: Path) -> None:
        self._directory = out / THUMBNAILS
        self._is_writable = not self._directory.is_symlink()  # a link would lead out of the run directory

    def read(self, sha256: str) -> bytes | None:
        """Return the thumbnail of an image; None if there is no complete one."""
        try:
            data = self._path(sha256).read_bytes()
        except OSError:
            return None
        return data if is_complete_webp(data) else None

    def write(self, sha256: str, data: bytes) -> None:
        """Keep the thumbnail of an image, unless the directory cannot be written or the disk is nearly full."""
        if not (self._is_writable and _SHA256.fullmatch(sha256)):
            return
        path = self._path(sha256)
        part = path.with_name(f".{sha256}-{os.getpid()}-{threading.get_ident()}.part")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            if shutil.disk_usage(self._directory).free < MIN_FREE_BYTES:
                self._is_writable = False
                return
            with os.fdopen(open_for_writing(part, os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(data)
            part.replace(path)  # not synced: it can be made again
        except OSError:  # a read-only disk, another user's run, a full disk
            self._is_writable = False
            _remove(part)

    def _path(self, sha256: str) -> Path:
        return self._directory / f"{sha256 if _SHA256.fullmatch(sha256) else 'none'}.webp"


def is_complete_webp(data: bytes) -> bool:
    """Return whether this is a whole WebP file by its header (RFC 9649, 2.4). After a power failure it may be cut."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) == 8 + int.from_bytes(data[4:8], "little")


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:
        return  # it is hidden, and has the name of no thumbnail
