"""What to do about an error of the operating system while a file was used.

`OSError.strerror` says what is wrong. The next step depends on `errno`: a full disk and too many open files are not
fixed in the same way.
"""

from __future__ import annotations

import errno

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_out_of_files(error: OSError) -> bool:
    """Return whether too many files are open, in this process or on this machine. This ends when some are closed."""
    return error.errno in _OUT_OF_FILES


def next_step(error: OSError) -> str:
    """Return what a user can do about an error, as the beginning of a sentence without its end."""
    if error.errno in _DISK_FULL:
        return "free some disk space"
    if is_out_of_files(error):
        return "raise the limit of open files (ulimit -n)"
    if error.errno in _NOT_ALLOWED:
        return "check the permissions and that the disk is writable"
    return "check the directory and the disk"
