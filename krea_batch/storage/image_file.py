"""The bytes of one image come in as they stream; a whole, synced file with its final name comes out.

Newcomers: a file under `images/` that ends in `.png` is whole, always: the name is given last, after the walk
through the PNG, the sync of the file, and before the sync of the folder. Everything here blocks, and runs in a
disk thread. Images are finished many at a time, since syncs that follow each other share the disk's work.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import ParamSpec, TypeVar

from krea_batch.jobs import StoredFile
from krea_batch.storage.atomic import fsync_path, open_for_writing
from krea_batch.storage.png import PngError, PngValidator
from krea_batch.storage.run_dir import IMAGES, candidate_names

__all__ = ["ImageFile", "PngError", "commit_many", "remove_stale_parts", "stage"]

P = ParamSpec("P")
T = TypeVar("T")

MEDIA_TYPE = "image/png"

_CLAIMING = Lock()  # two disk threads that find the same name free would both take it


class ImageFile:
    """One image on its way to disk.

    `name` is the file's stem: the job's id, or `<id>-2` for its second. `n` is the job's number in the ledger,
    which keeps the `.part` apart from that of a job whose id is `<id>-2`, or differs in case only. `output` is the
    image's place among those of its job, from 1.
    """

    def __init__(self, out: Path, name: str, n: int, *, job_id: str = "", output: int = 1) -> None:
        self.job_id = job_id or name
        self.output = output
        self.folder = f"{out}/{IMAGES}"  # objects for paths cost as much as the calls that they are for
        self.stem = name
        self._part = f"{self.folder}/{name}.{n}.png.part"
        self._fd = -1  # of the part, from its last bytes until it is synced
        self._walk = PngValidator()
        self._digest = hashlib.sha256()
        self.taken_bytes = 0
        self.is_whole = False  # every byte has come, and was checked

    @property
    def part(self) -> Path:
        """Where its bytes are until it has its name."""
        return Path(self._part)

    def start_over(self) -> None:
        """Forget what has come; the next bytes are the first ones."""
        self._walk, self._digest, self.taken_bytes = PngValidator(), hashlib.sha256(), 0

    def write(self, chunks: Sequence[bytes]) -> None:
        """Write and check the next bytes. Raises PngError where they are no PNG, OSError where the disk fails."""
        with self._opened() as fd:
            self._write(fd, chunks)

    def write_last(self, chunks: Sequence[bytes]) -> None:
        """Take the last bytes; the part stays open until `let_go`. Raises as `take`, and where the image is cut."""
        self._fd = self._open()
        self._write(self._fd, chunks)
        self._walk.finish()
        self.is_whole = True

    def begin_sync(self) -> None:
        """Have the disk begin to write, so that a sync finds its work half done (measured: a third)."""
        if self._fd >= 0 and (advise := getattr(os, "posix_fadvise", None)):  # not on macOS and Windows
            advise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Make the bytes durable. Raises OSError."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the part, where it is open."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def commit_name(self) -> StoredFile:
        """Give the image its name; it is durable once the folder is synced, too. Raises OSError."""
        with _CLAIMING:
            name = self._claim_name()
        return self.to_record(f"{IMAGES}/{name}")

    def to_record(self, path: str) -> StoredFile:
        """What results say of the whole image, kept at `path`."""
        return StoredFile(
            path,
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
        fd = self._open()
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self) -> int:
        """The part, to write where what has come ends."""
        if self.taken_bytes:
            return open_for_writing(self._part, os.O_APPEND)
        try:
            return open_for_writing(self._part, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            self.part.unlink()  # left by a run that was killed
            return open_for_writing(self._part, os.O_CREAT | os.O_EXCL)

    def _claim_name(self) -> str:
        """Rename to the first free name. A file of the same bytes is ours, from a run that was cut short here."""
        for name in candidate_names(self.stem):
            final = f"{self.folder}/{name}"
            if not os.path.lexists(final) or self._is_ours(Path(final)):
                os.replace(self._part, final)  # noqa: PTH105
                return name
        raise AssertionError("count() does not end")

    def _is_ours(self, final: Path) -> bool:
        if final.is_symlink() or not final.is_file() or final.stat().st_size != self.taken_bytes:
            return False
        with final.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == self._digest.digest()


def remove_stale_parts(out: Path) -> None:
    """Delete the parts that an earlier run left in a run's folder. Raises OSError."""
    for part in (out / IMAGES).glob("*.png.part"):
        if part.name.removesuffix(".png.part").rpartition(".")[2].isdecimal():  # others are not ours
            part.unlink()


def stage(image: ImageFile, last: Sequence[bytes]) -> None:
    """Take the last bytes of an image that stays in its `.part`. Raises PngError, OSError."""
    try:
        image.write_last(last)
        image.begin_sync()
    finally:
        image.close()


def commit_many(last: Sequence[tuple[ImageFile, Sequence[bytes]]]) -> list[StoredFile | PngError | OSError]:
    """Take the last bytes of several images of one folder, and make bytes and names durable.

    Gives for each its row, or what went wrong with it. Each step is done for all of them before the next, which costs
    a third less than one image after the other (measured).
    """
    images = [image for image, _ in last]
    try:
        failed = [_tried(image.write_last, chunks) for image, chunks in last]
        for image in images:
            _tried(image.begin_sync)
        failed = [error or _tried(image.sync) for error, image in zip(failed, images, strict=True)]
    finally:
        for image in images:
            image.close()
    named = [
        _tried(image.commit_name) if error is None else error for error, image in zip(failed, images, strict=True)
    ]
    unsynced = _tried(fsync_path, images[0].folder)
    if unsynced is None:
        return named
    return [unsynced if isinstance(answer, StoredFile) else answer for answer in named]


def _tried(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | PngError | OSError:
    """What a step gives, or what went wrong."""
    try:
        return step(*args, **kwargs)
    except (PngError, OSError) as error:
        return error
