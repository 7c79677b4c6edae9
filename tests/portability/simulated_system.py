"""Run a module of Python as on a system that lacks something: `simulated_system.py DIFFERENCES MODULE ARGUMENTS…`.

What a system lacks is hidden before anything else is imported, and what it refuses is refused by Python's own
functions. SQLite, which is not written in Python, stays as it is.
"""

from __future__ import annotations

import errno
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

UNIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "tty")
UNIX_CALLS = (
    "O_NOFOLLOW", "fchmod", "fork", "getegid", "geteuid", "getgid", "getuid", "posix_fadvise", "pread", "pwrite",
    "register_at_fork", "statvfs",
)  # fmt: skip
LINUX_CALLS = ("posix_fadvise",)
ERROR_SHARING_VIOLATION = 32  # Windows, System Error Codes
REFUSALS_OF_A_SCANNER = 2  # chosen: a few refused attempts for each new file


class HiddenModules(MetaPathFinder):
    """Makes modules look as if they were not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        for name in names:
            sys.modules.pop(name, None)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Refuse a hidden module, and leave others to the next finder."""
        if fullname in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def hide(place: object, *names: str) -> None:
    """Delete attributes that exist."""
    for name in names:
        if hasattr(place, name):
            delattr(place, name)


def without_flock() -> None:
    """No fcntl, resource, pwd, and what else is a module of Unix."""
    sys.meta_path.insert(0, HiddenModules(UNIX_MODULES))


def without_uvloop() -> None:
    """The loop of asyncio."""
    find_spec = __import__("importlib.util").util.find_spec

    def find_spec_but(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "uvloop" else find_spec(name, package)

    sys.meta_path.insert(0, HiddenModules(["uvloop"]))
    vars(sys.modules["importlib.util"])["find_spec"] = find_spec_but


def without_unix_signals() -> None:
    """No SIGHUP, and an event loop without signal handlers."""
    without_uvloop()
    hide(signal, "SIGHUP")
    import asyncio

    hide(asyncio.SelectorEventLoop, "add_signal_handler", "remove_signal_handler")


def without_directory_sync() -> None:
    """Directories cannot be opened, as on Windows. A lock of a directory needs that."""
    without_flock()
    open_file = os.open

    def open_but_no_directory(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, flags, mode, dir_fd=dir_fd)

    os.open = open_but_no_directory


def without_renames_of_open_files() -> None:
    """A file cannot be renamed, replaced or deleted while it is open: in this process, or a virus scanner."""
    scans: dict[str, int] = {}

    def guarded(call: Callable[..., Any], is_scanned: bool) -> Callable[..., Any]:
        def guarded_call(*paths: Any, **options: Any) -> Any:
            # On Windows, filelock asks the system for a lock. Here it breaks the file of a process that was killed.
            if any(".lock" in str(path) for path in paths):
                return call(*paths, **options)
            for path in paths:
                refuse_open_file(str(path), options.get("dir_fd"))
            if is_scanned and scans.setdefault(str(paths[-1]), 0) < REFUSALS_OF_A_SCANNER:
                scans[str(paths[-1])] += 1
                raise sharing_violation(str(paths[-1]))
            return call(*paths, **options)

        return guarded_call

    os.replace = guarded(os.replace, is_scanned=True)
    os.rename = guarded(os.rename, is_scanned=False)
    os.unlink = guarded(os.unlink, is_scanned=False)
    os.remove = guarded(os.remove, is_scanned=False)


def refuse_open_file(path: str, dir_fd: int | None) -> None:
    """Raise PermissionError, as Windows does, if this process has the file open."""
    try:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return
    for fd in os.listdir("/proc/self/fd"):
        try:
            is_same = os.path.samestat(os.fstat(int(fd)), found)
        except OSError:  # the directory's own descriptor, which is closed again
            continue
        if is_same:
            raise sharing_violation(path)


def sharing_violation(path: str) -> PermissionError:
    """Return the error of Windows for a file that is open elsewhere."""
    error = PermissionError(errno.EACCES, "The process cannot access the file", path)
    vars(error)["winerror"] = ERROR_SHARING_VIOLATION
    return error


def macos() -> None:
    """F_FULLFSYNC, but neither posix_fadvise nor CLOCK_BOOTTIME."""
    import fcntl

    sync, control = 51, fcntl.fcntl  # F_FULLFSYNC in fcntl.h of macOS

    def control_with_full_sync(fd: int, command: int, argument: Any = 0) -> Any:
        return os.fsync(fd) if command == sync else control(fd, command, argument)

    vars(fcntl).update(F_FULLFSYNC=sync, fcntl=control_with_full_sync)
    hide(os, *LINUX_CALLS)
    hide(time, "CLOCK_BOOTTIME")


def windows() -> None:
    """All of the above, without the calls of Unix, and with the names of Windows."""
    without_unix_signals()
    without_directory_sync()
    without_renames_of_open_files()
    hide(os, *UNIX_CALLS)
    hide(time, "CLOCK_BOOTTIME", "clock_gettime")
    platform, sys.platform = sys.platform, "win32"
    import krea_batch.storage.operating_system

    assert krea_batch.storage.operating_system.IS_WINDOWS
    sys.platform = platform


DIFFERENCES = {
    difference.__name__: difference
    for difference in (
        without_flock, without_uvloop, without_unix_signals, without_directory_sync, without_renames_of_open_files,
        macos, windows,
    )
}  # fmt: skip
"""The differences that can be simulated, by name."""


def main() -> None:
    """Simulate, and run the module as the main one."""
    del sys.path[0]  # this directory
    for difference in sys.argv[1].split(","):
        DIFFERENCES[difference]()
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
