"""What differs between operating systems. No other module asks which one it runs on.

Linux has everything that is used here. Windows has no fcntl, no resource and few signals, and cannot open a
directory; macOS lacks some system calls. What may be missing is looked up by its name, so tests can hide it on Linux:
see `tests/portability`. Only what has no name depends on the system itself (`IS_WINDOWS`).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any


def _optional(module: str) -> Any:
    """Return a module of the standard library, None if this system does not have it."""
    try:
        return import_module(module)
    except ImportError:
        return None


fcntl = _optional("fcntl")
resource = _optional("resource")

IS_WINDOWS = sys.platform == "win32"
HAS_UNIX_NAMES = not IS_WINDOWS  # a name may contain everything but a slash and a null byte
SYNC_FLAGS = os.O_RDWR if IS_WINDOWS else os.O_RDONLY  # Windows lets only those sync a file who may write it
BINARY = getattr(os, "O_BINARY", 0)  # without it, Windows changes the ends of lines
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
OPEN_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
OPEN_FLAGS = NO_FOLLOW | BINARY
NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # do not wait for the reader of a named pipe


def _signals(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


INTERRUPTS = _signals("SIGINT", "SIGBREAK")
"""Ctrl-C, and Ctrl-Break of Windows, which also stands for a console that is closed."""
STOP_SIGNALS = (*INTERRUPTS, *_signals("SIGTERM", "SIGHUP"))
"""Also `kill`, and a terminal that is closed."""

_ERROR_ACCESS_DENIED, _ERROR_SHARING_VIOLATION = 5, 32  # Windows, System Error Codes
_SHARING_WAITS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # chosen: a virus scanner is done within a second
_NOT_SUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)  # of F_FULLFSYNC
MAX_OPEN_FILES = (65_536, 10_240)  # chosen: more than a run opens; and OPEN_MAX of macOS, which may refuse more
LOWEST_PRIORITY = 19  # nice(2)
_PROC_STATUS = Path("/proc/self/status")


# ---- files -----------------------------------------------------------------------------------------------


def refuse_link(path: str | Path) -> None:
    """Raise OSError for a symbolic link if the system cannot refuse it while it opens a file (`OPEN_FLAGS`)."""
    if not hasattr(os, "O_NOFOLLOW") and Path(path).is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def read_at(fd: int, size_bytes: int, offset: int) -> bytes:
    """Return bytes of a file. Its position changes, which does not matter for a file that is open for appending."""
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size_bytes)


def make_private(fd: int) -> None:
    """Let only the owner read and write an open file. On Windows, the rights of its directory apply."""
    if fchmod := getattr(os, "fchmod", None):
        fchmod(fd, 0o600)


def full_sync(fd: int) -> bool:
    """Make the bytes of a file durable as only macOS can. Return False if the system or the file system cannot.

    On macOS, fsync leaves them in the cache of the drive; F_FULLFSYNC does not (fsync(2) of macOS). Raises OSError.
    """
    command = getattr(fcntl, "F_FULLFSYNC", None)
    if command is None:
        return False
    try:
        fcntl.fcntl(fd, command)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        raise
    return True


def start_writing(fd: int) -> None:
    """Make the disk start writing a file, where the system can be asked to. Raises OSError."""
    if advise := getattr(os, "posix_fadvise", None):
        advise(fd, 0, 0, getattr(os, "POSIX_FADV_DONTNEED"))  # noqa: B009 - mypy knows that Windows has none


def refuse_to_wait(fd: int) -> None:
    """Make writes to a pipe fail while it is full. Raises OSError, also if the system cannot do this."""
    set_blocking = getattr(os, "set_blocking", None)
    if set_blocking is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    set_blocking(fd, False)


def sharing_waits_s(error: OSError) -> tuple[float, ...]:
    """Return how long to wait before each further attempt to rename or delete a file after this error.

    Windows refuses it while another program has the file open, for example a virus scanner that looks at each new
    file. Elsewhere, an error stays what it is.
    """
    is_sharing_violation = getattr(error, "winerror", None) in (_ERROR_ACCESS_DENIED, _ERROR_SHARING_VIOLATION)
    return _SHARING_WAITS_S if is_sharing_violation else ()


def is_read_only(path: Path) -> bool:
    """Return whether a path is on a disk that was mounted read-only; False if the system does not tell."""
    statvfs = getattr(os, "statvfs", None)
    return bool(statvfs and statvfs(path).f_flag & getattr(os, "ST_RDONLY", 0))


# ---- the process -----------------------------------------------------------------------------------------


def lower_priority() -> None:
    """Let all other processes go first. Windows has no such numbers, and ignores it."""
    if nice := getattr(os, "nice", None):
        nice(LOWEST_PRIORITY)


def user_id() -> int:
    """Return the number of this process's user; 0 if the system does not number users."""
    geteuid = getattr(os, "geteuid", None)
    return int(geteuid()) if geteuid else 0


def suspended_s() -> float:
    """Return how long the machine was suspended since its start, in seconds; 0 if the system does not tell."""
    clock_gettime, boottime = getattr(time, "clock_gettime", None), getattr(time, "CLOCK_BOOTTIME", None)
    if clock_gettime is None or boottime is None:  # only Linux has both
        return 0.0
    return float(clock_gettime(boottime) - clock_gettime(getattr(time, "CLOCK_MONOTONIC")))  # noqa: B009


def max_open_files() -> float:
    """Return how many files this process may open; infinity if there is no such limit."""
    if resource is None:
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if limit == resource.RLIM_INFINITY else int(limit)


def raise_open_files_limit() -> None:
    """Raise this process's soft limit of open files to its hard limit. Many systems set the soft one low.

    The library leaves the limit to its caller.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in MAX_OPEN_FILES:
        wanted = limit if hard == resource.RLIM_INFINITY else min(hard, limit)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def memory_kib(*, peak: bool = False) -> int:
    """Return the memory of this process, now or at its peak. macOS reports only the peak, and Windows nothing (0)."""
    if _PROC_STATUS.is_file():
        name = "VmHWM:" if peak else "VmRSS:"
        lines = _PROC_STATUS.read_text("utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))
    if resource is None:
        return 0
    max_rss = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return max_rss // 1024 if sys.platform == "darwin" else max_rss  # macOS counts bytes
