"""Replace files atomically: write beside the final place, fsync, rename, fsync the directory.

A reader sees the old file or the new one, whole. After `commit` the new one survives a power failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # not on Windows


def open_for_writing(path: str | Path, flags: int = 0) -> int:
    """Open a file for writing and return its descriptor. A symbolic link is not followed: it would lead elsewhere."""
    return os.open(path, os.O_WRONLY | NO_FOLLOW | flags, 0o644)


def fsync_path(path: str | Path) -> None:
    """Make a file's bytes, or a directory's names, durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def commit(part: Path, final: Path) -> None:
    """Give a complete file its final name, replacing what has it; both are durable at return. Raises OSError."""
    fsync_path(part)
    os.replace(part, final)  # noqa: PTH105 - crash tests replace this module's `os`
    fsync_path(final.parent)


@contextmanager
def replacing(final: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces `final` when the block ends without an error; else `final` stays as it is.

    The bytes are in a hidden `.part` file beside `final` until then. Raises OSError.
    """
    part = final.with_name(f".{final.name}.part")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(open_for_writing(part, os.O_CREAT | os.O_EXCL), "wb") as file:
            yield file
        commit(part, final)
    finally:
        part.unlink(missing_ok=True)
