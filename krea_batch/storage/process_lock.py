"""Locks that show other processes of the same machine that a run has ended, even if its process was killed.

Each run that shares its run directory has a lock: an flock on an empty file of its own. The name of the file is in
the row of the run in the ledger. A process that gets the lock of another run knows that this run has ended, without
waiting for its lease.

This is safe because a run keeps its lock until all its POSTs have ended, and the operating system releases it only
when the last descriptor of the file is closed. For a killed process, Linux does that after its last thread has
returned from its last system call (`exit_files` in do_exit); a thread that hangs in the kernel keeps the lock. What
such a process sent just before its end may still arrive at the gateway; the intent to send it is in the ledger.

Only a lock that was got proves anything. If the file is missing, the process may be on another machine, in another
container, or of another user, or a program that removes old temporary files has removed it. Then the lease decides.

A forked child shares the lock, so it closes its copy; a child that does not is one more reason to wait for the lease.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from krea_batch.rules.lease import LEASE_S
from krea_batch.storage.directory_lock import try_flock
from krea_batch.storage.operating_system import NO_FOLLOW, OPEN_DIRECTORY, fcntl, user_id

log = logging.getLogger("krea_batch")

NAME_BYTES = 16  # chosen: 128 random bits cannot be guessed
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): a UUID that Linux makes at each boot


class ProcessLock:
    """The lock of one run, which is held from `acquire` to `release`, or until this process has ended."""

    def __init__(self) -> None:
        self.name = ""  # of the file, for `is_released`; "" if there is no lock
        self._fd = -1

    def acquire(self) -> None:
        """Lock a new file, before its name is recorded. If that is not possible, log a warning."""
        try:
            self.name, self._fd = _lock_new_file()
        except OSError as error:
            log.warning("! no lock file (%s): if this process is killed, others notice it after %g s", error, LEASE_S)
        else:
            _HELD.add(self)

    def release(self) -> None:
        """Release the lock. Call it after the last POST of the run has ended. Idempotent.

        The file stays, for others to see that the run has ended; `remove_lock_file` removes it once that is recorded.
        """
        _HELD.discard(self)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


_HELD = WeakSet[ProcessLock]()
"""The locks that this process has acquired."""


def _release_all_after_fork() -> None:
    while _HELD:
        _HELD.pop().release()  # closes the copy of the child; the parent keeps the lock


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_release_all_after_fork)


def is_released(name: str) -> bool:
    """Return whether the run that had acquired this lock has ended. False if this process cannot know it."""
    if not name.isalnum():  # The name comes from the ledger, and must not lead to another folder.
        return False
    try:
        with _open_folder() as folder_fd:
            fd = os.open(_file_name(name), os.O_RDWR | NO_FOLLOW, dir_fd=folder_fd)
            try:
                # A file that was removed meanwhile proves nothing: another process has recorded the end of its run.
                return try_flock(fd) and _is_in_place(fd, name, folder_fd)
            finally:
                os.close(fd)
    except OSError:  # It is missing, or it is not of this user.
        return False


def remove_lock_file(name: str) -> None:
    """Remove the file of a lock, if it is on this machine. Call it once the end of its run is in the ledger."""
    if name.isalnum():
        with suppress(OSError), _open_folder() as folder_fd:
            os.unlink(_file_name(name), dir_fd=folder_fd)


def _lock_new_file() -> tuple[str, int]:
    """Create a file and lock it. Return its name, which is known to this process only, and its descriptor."""
    name = secrets.token_hex(NAME_BYTES)
    with _open_folder(create=True) as folder_fd:
        fd = os.open(_file_name(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o600, dir_fd=folder_fd)
    try:
        if not try_flock(fd):
            raise BlockingIOError(errno.EWOULDBLOCK, "a new file is locked")
    except OSError:
        os.close(fd)
        remove_lock_file(name)
        raise
    return name, fd


@contextmanager
def _open_folder(*, create: bool = False) -> Iterator[int]:
    """Open the folder with the lock files of this user. Raises OSError if others can write or read it."""
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    path = Path(tempfile.gettempdir()) / f"krea-batch-{user_id()}"
    if create:
        with suppress(FileExistsError):
            path.mkdir(0o700)
    fd = os.open(path, os.O_RDONLY | OPEN_DIRECTORY | NO_FOLLOW)
    try:
        status = os.fstat(fd)
        if status.st_uid != user_id() or status.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "not a folder of this user alone", str(path))
        yield fd
    finally:
        os.close(fd)


def _file_name(name: str) -> str:
    """Return the name of a lock's file on this machine.

    If several machines have the folder over a network, each sees its own locks only: some network file systems do not
    tell one machine of the locks of another one.
    """
    try:
        machine = BOOT_ID.read_text("ascii").strip()
    except OSError:  # not on Linux
        machine = platform.node()
    return f"{machine}-{name}.lock"


def _is_in_place(fd: int, name: str, folder_fd: int) -> bool:
    """Return whether an open file is the one that has this name now. Raises OSError if there is none."""
    return os.path.samestat(os.fstat(fd), os.stat(_file_name(name), dir_fd=folder_fd, follow_symlinks=False))
