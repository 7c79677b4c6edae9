"""What a power loss leaves of the images directory.

It loses what was not synced: bytes that were written but not synced, and file names that were given since the
directory was last synced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from krea_batch.storage import atomic, image_file


class SimulatedDisk:
    """Tracks what a power loss would leave in the images directory. Replaces `os` in the modules that write there."""

    def __init__(self, images: Path, step: Callable[[], None]) -> None:
        self._images = images
        self._step = step
        self._synced_bytes: dict[int, int] = {}  # by inode
        self._pinned_fds: dict[int, int] = {}  # an open file for each inode, so that its number is not reused
        self._synced_names: dict[str, int] = self._list_and_pin()  # as of the last sync of the directory
        self._tracked: set[int] = set()  # descriptors of the images directory and its files
        self._unsynced_changes: list[tuple[str | None, str | None, int]] = []  # (old name, new name, inode)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _is_tracked(self, path: str | Path) -> bool:
        """Return whether a path is the images directory or in it; other files survive every power loss."""
        return self._images in (Path(path), Path(path).parent)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if not self._is_tracked(path):
            fd = os.open(path, flags, mode)
            self._tracked.discard(fd)
            return fd
        self._step()
        fd = os.open(path, flags, mode)
        self._tracked.add(fd)
        if flags & os.O_CREAT:
            inode = os.fstat(fd).st_ino
            self._pinned_fds[inode] = os.open(path, os.O_RDONLY)
            self._synced_bytes[inode] = 0
            self._unsynced_changes.append((None, Path(path).name, inode))
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        self._step()
        return os.write(fd, data)

    def replace(self, old: str, new: str) -> None:
        old_path = Path(old)
        if not self._is_tracked(old_path):
            old_path.replace(new)
            return
        self._step()
        self._unsynced_changes.append((old_path.name, Path(new).name, old_path.stat().st_ino))
        old_path.replace(new)

    def fsync(self, fd: int) -> None:
        if fd not in self._tracked:
            os.fsync(fd)
            return
        self._step()
        stat = os.fstat(fd)
        if stat.st_ino == self._images.stat().st_ino:
            self._synced_names, self._unsynced_changes = self._list_and_pin(), []
        else:
            self._synced_bytes[stat.st_ino] = stat.st_size
        self._step()

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Replace the disk for the code inside the context."""
        unlink = Path.unlink

        def recording_unlink(path: Path, missing_ok: bool = False) -> None:
            if path.parent == self._images and path.exists():
                self._step()
                self._unsynced_changes.append((path.name, None, path.stat().st_ino))
            unlink(path, missing_ok=missing_ok)

        with (
            patch.object(image_file, "os", self),
            patch.object(atomic, "os", self),
            patch.object(Path, "unlink", recording_unlink),
        ):
            try:
                yield
            finally:
                for fd in self._pinned_fds.values():
                    os.close(fd)

    def lose_power(self, copy: Path, random: Random) -> None:
        """Reduce `copy`, a copy of the directory, to what would remain after a power loss."""
        names = dict(self._synced_names)
        kept_changes = random.choice([len(self._unsynced_changes), random.randint(0, len(self._unsynced_changes))])
        for old, new, inode in self._unsynced_changes[:kept_changes]:
            if old is not None:
                names.pop(old, None)
            if new is not None:
                names[new] = inode
        for name in self._list_and_pin():
            (copy / name).unlink()
        for name, inode in names.items():
            data = os.pread(self._pinned_fds[inode], os.fstat(self._pinned_fds[inode]).st_size, 0)
            synced = self._synced_bytes.get(inode, len(data))  # files from before this process are synced
            (copy / name).write_bytes(data[: random.randint(min(synced, len(data)), len(data))])

    def _list_and_pin(self) -> dict[str, int]:
        """Return names and inodes of the files, and keep each inode open."""
        if not self._images.is_dir():
            return {}
        files = [entry for entry in os.scandir(self._images) if entry.is_file(follow_symlinks=False)]
        for entry in files:
            if entry.inode() not in self._pinned_fds:
                self._pinned_fds[entry.inode()] = os.open(entry, os.O_RDONLY)
        return {entry.name: entry.inode() for entry in files}
