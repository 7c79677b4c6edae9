"""The bytes of one picture come in as they stream; a whole, synced file with its final name comes out.

Newcomers: a file under `images/` that ends in `.png` is whole, always: the name is given last, after the walk
through the PNG, the sync of the file, and before the sync of the folder. Everything here blocks, and runs in a
disk thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Lock

from krea_batch.gateway.png import PngError, PngWalk
from krea_batch.jobs import StoredFile

__all__ = ["Picture", "PngError", "sync_folder"]

IMAGES = "images"
MEDIA_TYPE = "image/png"

_CLAIMING = Lock()  # two disk threads that find the same name free would both take it


class Picture:
    """One picture on its way to disk.

    `name` is the file's stem: the job's id, or `<id>-2` for its second. `n` is the job's number in the ledger,
    which keeps the `.part` apart from that of a job whose id is `<id>-2`, or differs in case only.
    """

    def __init__(self, out: Path, name: str, n: int) -> None:
        self._folder = out / IMAGES
        self._name = name
        self._part = self._folder / f"{name}.{n}.png.part"
        self._walk = PngWalk()
        self._digest = hashlib.sha256()
        self.taken_bytes = 0

    def start_over(self) -> None:
        """Forget what has come; the next bytes are the first ones."""
        self._walk, self._digest, self.taken_bytes = PngWalk(), hashlib.sha256(), 0

    def take(self, chunks: Sequence[bytes]) -> None:
        """Write and check the next bytes. Raises PngError where they are no PNG, OSError where the disk fails."""
        with self._opened() as fd:
            self._write(fd, chunks)

    def finish(self, chunks: Sequence[bytes]) -> StoredFile:
        """Take the last bytes, sync the picture and give it its name. Raises as `take`, and where it is cut.

        The name is durable once `sync_folder` has returned, too; one call serves many pictures.
        """
        with self._opened() as fd:
            self._write(fd, chunks)
            self._walk.finish()
            os.fsync(fd)
        with _CLAIMING:
            final = self._claim_name()
        return StoredFile(
            f"{IMAGES}/{final.name}",
            self.taken_bytes,
            self._digest.hexdigest(),
            self._walk.width,
            self._walk.height,
            MEDIA_TYPE,
        )

    def _write(self, fd: int, chunks: Sequence[bytes]) -> None:
        data = b"".join(chunks)
        self._walk.feed(data)
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        self.taken_bytes += len(data)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The part, open for what comes next; never for longer, so that a download may be dropped at any time."""
        flags = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
        if self.taken_bytes:
            fd = os.open(self._part, flags | os.O_APPEND)
        else:
            self._part.unlink(missing_ok=True)  # of a run that was cut short
            fd = os.open(self._part, flags | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            yield fd
        finally:
            os.close(fd)

    def _claim_name(self) -> Path:
        """Rename to the first free name. A file of the same bytes is ours, from a run that was cut short here."""
        for name in _names(self._name):
            final = self._folder / name
            if not os.path.lexists(final) or self._is_ours(final):
                self._part.replace(final)
                return final
        raise AssertionError("count() does not end")

    def _is_ours(self, final: Path) -> bool:
        if final.is_symlink() or not final.is_file() or final.stat().st_size != self.taken_bytes:
            return False
        with final.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == self._digest.digest()


def _names(stem: str) -> Iterator[str]:
    yield f"{stem}.png"
    for n in count(2):
        yield f"{stem}~{n}.png"  # somebody else's file has the name: it stays, and so does the picture


def sync_folder(out: Path) -> None:
    """Make the names of all finished pictures durable."""
    fd = os.open(out / IMAGES, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
