"""The run directory: its files, its lock, and the names of images.

The lock ends with the process, even if that is killed; see `directory_lock`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from weakref import WeakSet

from krea_batch.errors import RunDirError
from krea_batch.rules.image_names import safe_path
from krea_batch.storage.directory_lock import CAN_SHARE, DirectoryLock, is_free, open_lock
from krea_batch.storage.image_types import EXTENSIONS, HEAD_BYTES, PNG, detect_media_type
from krea_batch.storage.operating_system import HAS_UNIX_NAMES
from krea_batch.storage.os_errors import next_step
from krea_batch.storage.png import make_chunk

LEDGER = "ledger.db"
LEDGER_ADDRESS = "ledger.toml"  # instead of it: where the ledger is, if it is in a database
RESULTS = "results.jsonl"
DUPLICATES = "duplicates.jsonl"  # what --dedupe left out
SIMULATOR_STATE_FILE = "simulated.jsonl"  # what the embedded simulator accepted
RATINGS = "ratings.jsonl"  # what the user thinks of the images
IMAGES = "images"
THUMBNAILS = "thumbnails"  # small images, which can be made again
PNG_END = make_chunk(b"IEND", b"")
TAKEN_SUFFIX = re.compile(r"~(?:[2-9]|[1-9][0-9]+)$")  # of an image whose name was taken; see `candidate_names`


class RunDir:
    """A run directory, locked from `lock` to `unlock`: for this process alone, or together with others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / LEDGER
        self.is_alone = False
        self._lock: DirectoryLock | None = None
        self._shared_lock: DirectoryLock | None = None  # of images/; it shows others that runs share the directory

    def lock(self, *, shared: bool = False) -> None:
        """Create and lock the directory. With `shared`, processes that share it may have it, too.

        Afterwards `is_alone` says whether no other process has it. If that is so and it will be shared, no other one
        gets it before `share` is called. Raises RunDirError if another process has it, or it cannot be created.
        """
        try:
            create_directory(self.path)
            (self.path / IMAGES).mkdir(exist_ok=True)
            self._lock = lock = open_lock(self.path)
            if shared and CAN_SHARE:
                self._shared_lock = open_lock(self.path / IMAGES)
        except OSError as error:
            raise unusable_directory(self.path, error) from error
        _LOCKED.add(self)
        try:
            self.is_alone = lock.try_lock()
            has_it = self.is_alone or (shared and CAN_SHARE and lock.try_lock(shared=True))
            if has_it and self._shared_lock:
                has_it = self._shared_lock.try_lock(shared=True)
        except OSError as error:
            self.unlock()
            raise RunDirError(
                self.path,
                f"directories cannot be locked on its file system ({error.strerror})",
                "use a run directory on a local disk of this machine",
            ) from error
        if not has_it:
            self.unlock()
            if any(other.path.exists() and self.path.samefile(other.path) for other in _LOCKED):
                hint = "close it (`aclose`, or leave its `async with`), or use another run directory"
                raise RunDirError(self.path, "another Engine of this process is using it", hint)
            raise self._in_use()

    def share(self) -> None:
        """Let other processes that share the directory have it, too. Raises RunDirError if one took it instead.

        Where locks cannot be shared, this process keeps the directory for itself. Others can work on the same run in
        directories of their own, if its ledger is in a database.
        """
        self.is_alone = False
        if not (self._lock and self._lock.try_lock(shared=True)):
            raise self._in_use()

    def try_to_be_alone(self) -> bool:
        """Return whether no other process has the directory; it is then locked for this one. Else it is unlocked."""
        self.is_alone = self._lock is not None and self._lock.try_lock()
        return self.is_alone

    def _in_use(self) -> RunDirError:
        together = "only runs with --shared can work together" if CAN_SHARE else "on this system, two cannot share it"
        hint = f"wait for it, or use another run directory; {together}"
        return RunDirError(self.path, "another krea-batch is using it", hint)

    def unlock(self) -> None:
        """Release the lock. Idempotent."""
        _LOCKED.discard(self)
        for lock in (self._lock, self._shared_lock):
            if lock:
                lock.release()
        self._lock = self._shared_lock = None

    def _close_after_fork(self) -> None:
        """Close the copies of a forked child. The parent keeps its locks."""
        for lock in (self._lock, self._shared_lock):
            if lock:
                lock.close_after_fork()
        self._lock = self._shared_lock = None


_LOCKED = WeakSet[RunDir]()
"""The run directories that this process has locked, or is about to."""


def _close_all_after_fork() -> None:
    while _LOCKED:
        _LOCKED.pop()._close_after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_all_after_fork)


def file_size(path: Path) -> int:
    """Return the size of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def is_locked(path: Path) -> bool:
    """Return whether a process has locked the run directory; False where directories cannot be locked."""
    # A run that has the directory alone locks it exclusively. Runs that share it have a shared lock on images/.
    return not (is_free(path, shared=True) and is_free(path / IMAGES))


def local_name(name: str) -> str:
    """Return the name of an image, a relative path with slashes, as this system can write it.

    Windows forbids some characters, names of devices such as `con`, and dots at the end.
    """
    return name if HAS_UNIX_NAMES else safe_path(name)


def candidate_names(stem: str, extension: str) -> Iterator[str]:
    """Yield possible names of an image in a folder or a bucket, the preferred first, without end."""
    yield f"{stem}{extension}"
    for n in count(2):
        yield f"{stem}~{n}{extension}"  # the preferred name is a file of others, which is kept


def existing_images(out: Path, names: Iterable[str]) -> list[str]:
    """Return the images of these names, given without extension, that exist in the run directory.

    Files that krea-batch cannot have written are not counted. Raises OSError.
    """
    directory = f"{out}/{IMAGES}"
    paths = (f"{local_name(name)}{extension}" for name in names for extension in EXTENSIONS.values())
    # For a name that does not exist, `access` takes half as long as `stat`, which raises.
    return [each for each in paths if os.access(path := f"{directory}/{each}", os.F_OK) and is_image(Path(path))]


def has_images(out: Path) -> bool:
    """Return whether the run directory has anything in images/, or it cannot be read."""
    try:
        with os.scandir(out / IMAGES) as entries:
            return any(entries)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def image_names(out: Path) -> Iterator[str]:
    """Yield the names of all files below images/ that have the extension of an image, as paths with slashes.

    Symbolic links to directories are not followed. Raises OSError.
    """
    images = out / IMAGES

    def fail(error: OSError) -> None:
        raise error

    for folder, _, files in os.walk(images, onerror=fail):
        prefix = Path(folder).relative_to(images).as_posix()
        for file in files:
            if file.endswith(tuple(EXTENSIONS.values())):
                yield file if prefix == "." else f"{prefix}/{file}"


def is_image(path: Path) -> bool:
    """Return whether a file may be an image that krea-batch wrote, or cannot be read. Its content is not validated.

    Its first bytes must match the extension of its name, and a PNG must have an end.
    """
    try:
        with path.open("rb") as file:
            media_type = detect_media_type(file.read(HEAD_BYTES))
            if media_type is None or EXTENSIONS[media_type] != path.suffix:
                return False
            if media_type != PNG:
                return True
            file.seek(0)
            return PNG_END in file.read()
    except PermissionError:
        return True
    except OSError:  # a directory, a broken link, or a file that is too short
        return False


def unusable_directory(path: Path, error: OSError) -> RunDirError:
    """Return the error for a run directory that cannot be created or opened."""
    problem = f"cannot use the directory ({error.strerror})"
    return RunDirError(path, problem, f"{next_step(error)}, or use another run directory")


def create_directory(path: Path) -> None:
    """Create a directory for its owner only, unless it exists, and its parents as usual. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def has_content(path: Path, size_bytes: int, sha256: str) -> bool:
    """Return whether a path is a regular file with this content. Raises OSError."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def has_ledger(out: Path) -> bool:
    """Return whether the directory has a ledger, or the address of one."""
    return (out / LEDGER).is_file() or (out / LEDGER_ADDRESS).is_file()


def require_run(out: Path) -> None:
    """Raise RunDirError unless the directory has a run."""
    if not has_ledger(out):
        if (out / RESULTS).exists():
            raise RunDirError(
                out,
                f"it has a {RESULTS}, but no {LEDGER}",
                f"copy the {LEDGER} of this run back together with {LEDGER}-wal, or rebuild it with"
                f" krea-batch recover {out}",
            )
        raise RunDirError(out, "not a run directory", f"it has no {LEDGER}; pass the --out of a run")
