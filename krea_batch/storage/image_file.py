"""Partial downloads: bytes are written to a `.part` file, validated, synced, and renamed when they are complete.

A file with the name of an image is always complete: it is renamed after it is validated and synced, and the directory
is synced after that. Everything here blocks and runs in a disk thread. Images are committed several at a time, since
consecutive syncs share the disk's work.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import ParamSpec, TypeVar

from krea_batch.jobs import StoredFile
from krea_batch.storage.atomic import fsync_path, open_for_writing, replace, sync_fd
from krea_batch.storage.image_types import EXTENSIONS, PNG, ImageValidator, measure_image
from krea_batch.storage.operating_system import start_writing
from krea_batch.storage.png import ImageError
from krea_batch.storage.run_dir import IMAGES, candidate_names, has_content, local_name

__all__ = ["ImageError", "ImageFile", "commit_many", "remove_stale_parts", "stale_parts", "write_to_part"]

P = ParamSpec("P")
T = TypeVar("T")

PART_SUFFIX = ".png.part"
_NAME_LOCK = Lock()  # without it, two disk threads could take the same free name


class ImageFile:
    """The partial download of one image.

    `name` is the path below images/ without suffix: the job's name, or `<name>-2` for its second image. Its folders
    are created when the image gets its name. The `.part` file is in images/ itself and named by the job's id; the
    job's number in the ledger (`job_no`) distinguishes it from that of a job whose id is `<id>-2`, or differs in case
    only. If several runs share the directory, `run_no` distinguishes it from that of another run, which may have
    stalled while it downloaded the same image. `output` is the number of the image in its job, from 1. With
    `keep_surplus`, a PNG is kept although bytes follow its end. Set `is_sized` if the response announced the image's
    size; see `ImageValidator`.
    """

    def __init__(
        self,
        out: Path,
        name: str,
        job_no: int,
        *,
        job_id: str = "",
        output: int = 1,
        keep_surplus: bool = False,
        run_no: int = 0,
    ) -> None:
        self.job_id = job_id or name
        self.output = output
        self.images_dir = f"{out}/{IMAGES}"  # Path objects would cost as much as the calls
        self.stem = local_name(name)
        part_name = local_name(self.job_id if output == 1 else f"{self.job_id}-{output}")
        run = f".{run_no}" if run_no else ""
        self._part = f"{self.images_dir}/{part_name}.{job_no}{run}{PART_SUFFIX}"
        self._move = _link_and_unlink if run_no else replace
        self._fd = -1  # open from the last bytes until the sync
        self._validator = ImageValidator()
        self._size_px = 0, 0
        self._digest = hashlib.sha256()
        self.is_sized = False
        self._keep_surplus = keep_surplus
        self.written_bytes = 0
        self.is_complete = False  # every byte is written and validated

    @property
    def part(self) -> Path:
        """The file in which the bytes are until the commit."""
        return Path(self._part)

    @property
    def folders(self) -> Iterator[str]:
        """The directories between images/ and the image, from the outermost."""
        parts = self.stem.split("/")[:-1]
        return (f"{self.images_dir}/{folder}" for folder in accumulate(parts, "{}/{}".format))

    def start_over(self) -> None:
        """Discard everything; the next bytes are the first ones."""
        self._validator, self._digest, self.written_bytes = ImageValidator(), hashlib.sha256(), 0

    def write(self, chunks: Sequence[bytes]) -> None:
        """Write and validate the next bytes. Raises ImageError, OSError."""
        with self._open_for_write() as fd:
            self._write(fd, chunks)

    def write_last(self, chunks: Sequence[bytes]) -> None:
        """Write the last bytes, and keep the file open until `close`. Raises ImageError if it is incomplete."""
        self._fd = self._open()
        self._write(self._fd, chunks)
        self._validator.finish(is_sized=self.is_sized, keep_surplus=self._keep_surplus)
        is_png = self._validator.media_type == PNG
        self._size_px = (self._validator.width, self._validator.height) if is_png else measure_image(self.part)
        self.is_complete = True

    def start_sync(self) -> None:
        """Make the disk start writing, which shortens the sync (measured: by a third)."""
        if self._fd >= 0:
            start_writing(self._fd)

    def sync(self) -> None:
        """Make the bytes durable. Raises OSError."""
        sync_fd(self._fd)

    def close(self) -> None:
        """Close the file if it is open."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def commit_name(self) -> StoredFile:
        """Rename the file to its final name, which is durable once its directories are synced. Raises OSError."""
        for folder in self.folders:
            if os.path.islink(folder):  # noqa: PTH114 - it would lead elsewhere
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), folder)
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        with _NAME_LOCK:
            name = self._claim_name()
        return self.to_record(f"{IMAGES}/{name}")

    def to_record(self, path: str) -> StoredFile:
        """Return the record of the complete image, stored at `path`."""
        return StoredFile(
            path,
            self.written_bytes,
            self._digest.hexdigest(),
            *self._size_px,
            self._validator.media_type,
            self._validator.defect,
        )

    def _write(self, fd: int, chunks: Sequence[bytes]) -> None:
        data = b"".join(chunks)
        self._validator.feed(data)
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        self.written_bytes += len(data)

    @contextmanager
    def _open_for_write(self) -> Iterator[int]:
        """Open the file for a single write, so that a download can be dropped at any time."""
        fd = self._open()
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self) -> int:
        """Open the file at its end, or create it."""
        if self.written_bytes:
            return open_for_writing(self._part, os.O_APPEND)
        try:
            return open_for_writing(self._part, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            self.part.unlink()  # left by a run that was killed
            return open_for_writing(self._part, os.O_CREAT | os.O_EXCL)

    def _claim_name(self) -> str:
        """Rename to the first free name. A file with the same bytes was left by a run that was killed here."""
        for name in candidate_names(self.stem, EXTENSIONS[self._validator.media_type]):
            final = f"{self.images_dir}/{name}"
            # Many images may have the same preferred name, so a name that is taken costs a single call.
            try:
                is_free = os.lstat(final).st_size == self.written_bytes and self._has_content(final)
            except FileNotFoundError:
                is_free = True
            if is_free:
                try:
                    self._move(self._part, final)
                except FileExistsError:  # another run has taken the name in this moment, perhaps for the same image
                    if not self._has_content(final):
                        continue
                    self.part.unlink()
                return name
        raise AssertionError("candidate_names does not end")

    def _has_content(self, path: str) -> bool:
        return has_content(Path(path), self.written_bytes, self._digest.hexdigest())


def _link_and_unlink(part: str, final: str) -> None:
    """Rename a file unless the new name exists. Raises FileExistsError then, and other OSErrors."""
    try:
        os.link(part, final)
    except FileExistsError:
        raise
    except OSError:  # The file system has no hard links, so another run may take the name in this moment.
        replace(part, final)
    else:
        os.unlink(part)  # noqa: PTH108


def stale_parts(out: Path) -> Iterator[Path]:
    """Yield the `.part` files of an earlier run. Raises OSError."""
    for part in (out / IMAGES).glob(f"*{PART_SUFFIX}"):
        if part.name.removesuffix(PART_SUFFIX).rpartition(".")[2].isdecimal():  # no other names are ours
            yield part


def remove_stale_parts(out: Path) -> None:
    """Delete the `.part` files of an earlier run. Raises OSError."""
    for part in stale_parts(out):
        part.unlink()


def write_to_part(image: ImageFile, last_chunks: Sequence[bytes]) -> None:
    """Write the last bytes of an image that stays in its `.part` file. Raises ImageError, OSError."""
    try:
        image.write_last(last_chunks)
        image.start_sync()
    finally:
        image.close()


def commit_many(last_chunks: Sequence[tuple[ImageFile, Sequence[bytes]]]) -> list[StoredFile | ImageError | OSError]:
    """Write the last bytes of several images of one run, and make bytes and names durable.

    Return a record or an error for each. Each step is done for all images before the next one, which costs a third
    less than one image after the other (measured).
    """
    images = [image for image, _ in last_chunks]
    try:
        errors = [_result_or_error(image.write_last, chunks) for image, chunks in last_chunks]
        for image in images:
            _result_or_error(image.start_sync)
        errors = [error or _result_or_error(image.sync) for error, image in zip(errors, images, strict=True)]
    finally:
        for image in images:
            image.close()
    results = [
        _result_or_error(image.commit_name) if error is None else error
        for error, image in zip(errors, images, strict=True)
    ]
    # Every directory is synced, because one that another group or a killed run created may not be durable yet.
    folders = {folder for image, result in zip(images, results, strict=True) if isinstance(result, StoredFile)
               for folder in image.folders}  # fmt: skip
    sync_errors = [_result_or_error(fsync_path, folder) for folder in (*folders, images[0].images_dir)]
    sync_error = next((error for error in sync_errors if error), None)
    if sync_error is None:
        return results
    return [sync_error if isinstance(result, StoredFile) else result for result in results]


def _result_or_error(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ImageError | OSError:
    """Return the result of a step, or its error."""
    try:
        return step(*args, **kwargs)
    except (ImageError, OSError) as error:
        return error
