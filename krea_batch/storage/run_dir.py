"""The run directory: its files, its lock, and the names of images.

The lock is on the directory itself, so no lock file is left behind. It ends with the process, however that ends.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from krea_batch.errors import RunDirError

LEDGER = "ledger.db"
SIMULATOR_STATE_FILE = "simulated.jsonl"  # what the embedded simulator accepted
IMAGES = "images"
MAX_LOCK_ATTEMPTS, LOCK_RETRY_S = 10, 0.01  # chosen: `is_locked` of other processes holds its lock for an instant


class RunDir:
    """The directory of one run, locked from `lock` to `unlock`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / LEDGER
        self._fd = -1

    def lock(self) -> None:
        """Create and lock the directory. Raises RunDirError if another process has it, or it cannot be created."""
        if os.name == "nt":
            raise RunDirError(self.path, "directories cannot be locked on Windows", "run krea-batch in WSL")
        try:
            (self.path / IMAGES).mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise RunDirError(
                self.path, f"cannot use the directory ({error.strerror})", "use another run directory"
            ) from error
        if not _try_lock(self._fd):
            self.unlock()
            raise RunDirError(
                self.path, "another krea-batch is using it", "wait for it, or use another run directory"
            )

    def unlock(self) -> None:
        """Release the lock. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_locked(path: Path) -> bool:
    """Return whether a process has locked the run directory."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(fd, shared=True)
    finally:
        os.close(fd)


def candidate_names(stem: str) -> Iterator[str]:
    """Yield possible names of an image in a folder or a bucket, the preferred first, without end."""
    yield f"{stem}.png"
    for n in count(2):
        yield f"{stem}~{n}.png"  # the preferred name is a file of others, which is kept


def has_content(path: Path, size_bytes: int, sha256: str) -> bool:
    """Return whether a path is a regular file with this content. Raises OSError."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def require_run(out: Path) -> None:
    """Raise RunDirError unless the directory has a run."""
    if not (out / LEDGER).is_file():
        raise RunDirError(out, "not a run directory", f"it has no {LEDGER}; pass the --out of a run")


def _try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock a directory exclusively, or `shared` with other queries. Return False if that is not possible."""
    import fcntl  # not on Windows

    for n in range(1 if shared else MAX_LOCK_ATTEMPTS):
        if n:
            time.sleep(LOCK_RETRY_S)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            continue
        return True
    return False
