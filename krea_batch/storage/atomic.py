"""Replace files atomically: write beside the final place, fsync, rename, fsync the directory.

A reader sees the old file or the new one, whole. After `commit` the new one survives a power failure.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from krea_batch.storage.operating_system import (
    BINARY,
    OPEN_FLAGS,
    SYNC_FLAGS,
    full_sync,
    refuse_link,
    sharing_waits_s,
)

MAX_NAME_BYTES = 255  # the limit of ext4, XFS, Btrfs, APFS and NTFS
_DIRECTORY_ERRORS = (errno.EACCES, errno.EISDIR, errno.EBADF, errno.EINVAL)


def open_file(path: str | Path, flags: int, mode: int = 0o644) -> int:
    """Open a file for bytes and return its descriptor. Fails for a symbolic link, which would lead elsewhere."""
    refuse_link(path)
    return os.open(path, flags | OPEN_FLAGS, mode)


def open_for_writing(path: str | Path, flags: int = 0) -> int:
    """Open a file for writing, as `open_file` does."""
    return open_file(path, os.O_WRONLY | flags)


def part_path(final: Path) -> Path:
    """Return the path of the hidden file in which `final` is written until it is complete.

    A name that would be too long is replaced by its hash.
    """
    name = f".{final.name}.part"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(final.name)).hexdigest()}.part"
    return final.with_name(name)


def sync_fd(fd: int) -> None:
    """Make the bytes of an open file, or the names of a directory, durable. Raises OSError."""
    if not full_sync(fd):
        os.fsync(fd)


def fsync_path(path: str | Path) -> None:
    """Make a file's bytes, or a directory's names, durable. Raises OSError.

    Systems that cannot open or sync directories make names durable by themselves, or have no call for it. PostgreSQL
    ignores the same errors (fsync_fname_ext in fd.c).
    """
    try:
        fd = os.open(path, SYNC_FLAGS | BINARY)
        try:
            sync_fd(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _DIRECTORY_ERRORS or not Path(path).is_dir():
            raise


def replace(source: str | Path, target: str | Path) -> None:
    """Rename a file, replacing any file with the new name. Not durable yet. Raises OSError."""
    try:
        os.replace(source, target)  # noqa: PTH105 - crash tests replace this module's `os`
    except OSError as error:
        for wait_s in sharing_waits_s(error):
            time.sleep(wait_s)
            with suppress(PermissionError):
                os.replace(source, target)  # noqa: PTH105
                return
        raise


def commit(part: Path, final: Path) -> None:
    """Rename a complete file to its final name, replacing any file there. Durable at return. Raises OSError."""
    fsync_path(part)
    replace(part, final)
    fsync_path(final.parent)


@contextmanager
def replacing(final: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces `final` when the block ends without an error; else `final` stays as it is.

    The bytes are in a hidden `.part` file beside `final` until then. Raises OSError.
    """
    part = part_path(final)
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(open_for_writing(part, os.O_CREAT | os.O_EXCL), "wb") as file:
            yield file
        commit(part, final)
    finally:
        part.unlink(missing_ok=True)
