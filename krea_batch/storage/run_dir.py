"""A path comes in; a run's folder goes out, made if need be, and held by this process alone.

Newcomers: the lock is on the folder itself, so that no lock file is left behind, and it goes when the process
goes, however it goes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from krea_batch.errors import RunDirError

LEDGER = "ledger.db"
SIMULATOR_STATE_FILE = "simulated.jsonl"  # what the embedded simulator accepted
IMAGES = "images"
MAX_LOCK_ATTEMPTS, LOCK_RETRY_S = 10, 0.01  # chosen: who only asks whether a run is at work has a lock for an instant


class RunDir:
    """The folder of one run, locked from `take` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / LEDGER
        self._fd = -1

    def lock(self) -> None:
        """Make the folder and lock it. Raises RunFolderError where another process has it, or it cannot be made."""
        if os.name == "nt":
            raise RunDirError(self.path, "no folder can be locked on Windows", "run krea-batch in WSL")
        try:
            (self.path / IMAGES).mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise RunDirError(
                self.path, f"the folder cannot be used ({error.strerror})", "choose another --out"
            ) from error
        if not _try_lock(self._fd):
            self.unlock()
            raise RunDirError(
                self.path, "another krea-batch is working in it", "wait for it, or choose another --out"
            )

    def unlock(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_locked(path: Path) -> bool:
    """Whether a process has the run's folder."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(fd, shared=True)
    finally:
        os.close(fd)


def candidate_names(stem: str) -> Iterator[str]:
    """The names that an image may have, in a folder or a bucket, the best first; without an end."""
    yield f"{stem}.png"
    for n in count(2):
        yield f"{stem}~{n}.png"  # somebody else's image has the name: it stays, and so does ours


def require_run(out: Path) -> None:
    """Raise RunFolderError unless there is a run in the folder."""
    if not (out / LEDGER).is_file():
        raise RunDirError(out, "there is no run in it", f"it has no {LEDGER}; give the --out of a run")


def _try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock a folder, for this process alone or `shared` with others that only ask. False where that cannot be."""
    import fcntl  # not on Windows; imported where it is used

    for n in range(1 if shared else MAX_LOCK_ATTEMPTS):
        if n:
            time.sleep(LOCK_RETRY_S)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            continue
        return True
    return False
