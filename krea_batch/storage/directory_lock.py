"""Locks on directories, which end with the process, even if it is killed.

With flock, the directory itself is locked, so no file is left behind. Such a lock belongs to the open file
description. A forked child shares the description and would keep the directory locked after its parent has ended, so
a child closes its copy (`close_after_fork`).

Systems without flock, such as Windows, get a file in the directory, which filelock locks and removes again. Such a
lock cannot be shared.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from krea_batch.storage.operating_system import fcntl

CAN_SHARE = fcntl is not None
LOCK_FILE = ".lock"
MAX_LOCK_ATTEMPTS, LOCK_RETRY_S = 10, 0.01  # chosen: `is_free` of other processes holds its lock for an instant


class DirectoryLock(Protocol):
    """A directory that can be locked, from its construction, which raises OSError, to `release`."""

    def try_lock(self, *, shared: bool = False) -> bool:
        """Lock the directory exclusively, or `shared` with others. Return False if another process has it.

        A lock that this object has is changed; if that fails, it is lost. Raises OSError if the file system has no
        locks: some network file systems, and some in user space.
        """
        ...

    def release(self) -> None:
        """Release the lock, if there is one, for every process that shares it."""
        ...

    def close_after_fork(self) -> None:
        """Close the copy of a forked child. The parent keeps its lock."""
        ...


def try_flock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file or directory. Return False if another process has it. Raises OSError; only with `fcntl`."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Flock:
    """A lock on the directory itself."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory, os.O_RDONLY)

    def try_lock(self, *, shared: bool = False) -> bool:
        """See `DirectoryLock`."""
        for n in range(MAX_LOCK_ATTEMPTS):
            if n:
                time.sleep(LOCK_RETRY_S)
            if try_flock(self._fd, shared=shared):
                return True
        return False

    def release(self) -> None:
        """See `DirectoryLock`."""
        with suppress(OSError):  # There is no lock, because the file system has none.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)

    def close_after_fork(self) -> None:
        """See `DirectoryLock`."""
        os.close(self._fd)


class LockFile:
    """A lock on a file in the directory, which is always exclusive."""

    def __init__(self, directory: Path) -> None:
        from filelock import FileLock  # Only systems without flock need it.

        self._lock = FileLock(directory / LOCK_FILE, thread_local=False)

    def try_lock(self, *, shared: bool = False) -> bool:
        """See `DirectoryLock`. A lock that this object has is kept."""
        from filelock import Timeout

        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(timeout=MAX_LOCK_ATTEMPTS * LOCK_RETRY_S, poll_interval=LOCK_RETRY_S)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """See `DirectoryLock`."""
        self._lock.release(force=True)

    def close_after_fork(self) -> None:
        """Do nothing: filelock does it."""


def open_lock(directory: Path) -> DirectoryLock:
    """Return the lock of a directory, which is not locked yet. Raises OSError."""
    return Flock(directory) if CAN_SHARE else LockFile(directory)


def is_free(directory: Path, *, shared: bool = False) -> bool:
    """Return whether a directory could be locked now, or there is none, or it cannot be locked at all."""
    if not CAN_SHARE and not (directory / LOCK_FILE).exists():
        return True
    try:
        lock = open_lock(directory)
    except OSError:
        return True
    try:
        return lock.try_lock(shared=shared)
    except OSError:
        return True
    finally:
        lock.release()
