"""Replace files atomically: write beside the final place, fsync, rename, fsync the directory.

A reader sees the old file or the new one, whole. After `commit` the new one survives a power failure.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MAX_NAME_BYTES = 255  # the limit of ext4, XFS, Btrfs, APFS and NTFS
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # not on Windows
_NOT_SUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)  # of F_FULLFSYNC


def open_for_writing(path: str | Path, flags: int = 0) -> int:
    """Open a file for writing and return its descriptor. Fails for a symbolic link, which would lead elsewhere."""
    return os.open(path, os.O_WRONLY | NO_FOLLOW | flags, 0o644)


def part_path(final: Path) -> Path:
    """Return the path of the hidden file in which `final` is written until it is complete.

    A name that would be too long is replaced by its hash.
    """
    name = f".{final.name}.part"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(final.name)).hexdigest()}.part"
    return final.with_name(name)


def sync_fd(fd: int) -> None:
    """Make the bytes of an open file, or the names of a directory, durable. Raises OSError.

    On macOS, fsync leaves them in the cache of the drive; F_FULLFSYNC does not (fsync(2) of macOS). File systems that
    have nothing better than fsync refuse F_FULLFSYNC.
    """
    if os.name != "nt":
        import fcntl

        if full_sync := getattr(fcntl, "F_FULLFSYNC", 0):
            try:
                fcntl.fcntl(fd, full_sync)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
            else:
                return
    os.fsync(fd)


def fsync_path(path: str | Path) -> None:
    """Make a file's bytes, or a directory's names, durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        sync_fd(fd)
    finally:
        os.close(fd)


def commit(part: Path, final: Path) -> None:
    """Rename a complete file to its final name, replacing any file there. Durable at return. Raises OSError."""
    fsync_path(part)
    os.replace(part, final)  # noqa: PTH105 - crash tests replace this module's `os`
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
