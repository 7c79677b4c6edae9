"""Guard the files and directories that commands write at paths that the user gives.

A command replaces only what it wrote itself, and never anything of a run. The check compares files, not paths, so
`..`, symbolic links and another case make no difference. New content is written beside the output and renamed when it
is complete; until then, the old output stays.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from krea_batch.errors import InputError
from krea_batch.storage.atomic import fsync_path, open_file, replace
from krea_batch.storage.operating_system import NO_WAITING, read_at
from krea_batch.storage.os_errors import next_step
from krea_batch.storage.run_dir import (
    DUPLICATES,
    IMAGES,
    LEDGER,
    LEDGER_ADDRESS,
    RATINGS,
    RESULTS,
    SIMULATOR_STATE_FILE,
    THUMBNAILS,
    has_ledger,
)
from krea_batch.storage.spill import SPILL

CheckExisting = Callable[[Path], None]
"""Raises InputError unless the existing file or directory at the path may be replaced."""

# The names of a run's own files and directories; result.json belongs to a benchmark. Other files of a run begin with
# one of the prefixes: the ledger and its WAL, the results, hidden parts of all files.
_RUN_NAMES = frozenset({IMAGES, THUMBNAILS, LEDGER_ADDRESS, DUPLICATES, SIMULATOR_STATE_FILE, SPILL, "result.json"})
_RUN_PREFIXES = (LEDGER, RESULTS, RATINGS, ".")
_PART_PREFIX, _PART_SUFFIX = ".krea-batch-", ".part"
_FIRST_LINE_BYTES = 1 << 16  # chosen: longer than the first line of any log


def path_text(path: Path) -> str:
    """Return a path as UTF-8 can write it, with escapes for the bytes of a name that is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def unwritable_output(output: Path, error: OSError) -> InputError:
    """Return the error of a command that could not write its --output."""
    return InputError(f"cannot write {output} ({error.strerror})", f"{next_step(error)}, or use another --output")


def check_output(output: Path, *, run: Path | None = None) -> Path:
    """Return the absolute path of an output, without symbolic links.

    Raises InputError if it is a symbolic link, a run directory, a part of one, or a directory that holds `run`. A new
    file may lie in a run directory, under a name that the run does not use. `run` may not exist yet.
    """
    if output.is_symlink():
        raise InputError(f"{output} is a symbolic link, which is not replaced", "name the file or directory itself")
    real = Path(os.path.realpath(output))
    absolute_run = run.resolve() if run is not None else None
    if real == absolute_run or _is_run(real):
        raise InputError(f"{output} is a run directory, which is never replaced", "use another path")
    for directory in real.parents:
        name = real.relative_to(directory).parts[0].casefold()
        is_run_name = name in _RUN_NAMES or name.startswith(_RUN_PREFIXES)
        if is_run_name and (directory == absolute_run or _is_run(directory)):
            raise InputError(f"{output} is a part of the run in {directory}", "use a path outside of it")
    if absolute_run is not None:
        if (absolute_run / IMAGES).resolve() in (real, *real.parents):  # images/ may be a link to another disk
            raise InputError(f"{output} is a part of the run in {run}", "use a path outside of it")
        if real.is_dir() and _holds(real, absolute_run):
            raise InputError(f"{output} contains the run in {run}", "use another path")
    return real


@contextmanager
def replacing_output(output: Path, check_existing: CheckExisting, *, run: Path | None = None) -> Iterator[Path]:
    """Yield a path at which to write a file or directory, which gets the name `output` when the block ends.

    If the block raises, `output` stays as it was. An existing output is checked before the block and again when it
    is replaced. If the process is killed, a directory `.krea-batch-….part` stays
    beside the output. It is never deleted, since it may have the only copy of an output. Raises InputError, OSError.
    """
    real = check_output(output, run=run)
    if os.path.lexists(real):
        check_existing(real)
    scratch = Path(tempfile.mkdtemp(prefix=_PART_PREFIX, suffix=_PART_SUFFIX, dir=real.parent))
    part, old = scratch / "new", scratch / "old"
    done = False
    try:
        yield part
        check_output(output, run=run)
        _sync(part)
        if os.path.lexists(real):
            _replace(part, real, old, check_existing)
        else:
            replace(part, real)
        fsync_path(real.parent)
        done = True
    finally:
        if done or not os.path.lexists(old):  # else the old output could not be moved back
            shutil.rmtree(scratch, ignore_errors=True)


def left_parts(output: Path) -> list[Path]:
    """Return the directories beside an output that killed processes left, or that others are writing to."""
    return sorted(output.absolute().parent.glob(f"{_PART_PREFIX}*{_PART_SUFFIX}"))


def open_for_append(path: Path, is_own_line: Callable[[bytes], bool], what: str) -> int:
    """Open a file of lines for appending, and return its descriptor; create it, for this user only, if needed.

    Call `check_output` first, unless the file is the run's own. Raises InputError if the file exists and
    `is_own_line` does not recognise its first line as one of `what`, or if it may belong to something else. Raises
    OSError if it cannot be opened, or is a symbolic link.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for a reader. It has no effect on a file.
    fd = open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | NO_WAITING, 0o600)
    try:
        problem = _problem_of_file(fd, is_own_line, what)
    except BaseException:
        os.close(fd)
        raise
    if problem:
        os.close(fd)
        raise InputError(f"{path} {problem}", "use another path")
    return fd


def _problem_of_file(fd: int, is_own_line: Callable[[bytes], bool], what: str) -> str | None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return "is a device or a pipe, not a file"
    if status.st_nlink > 1:
        return "has other names (hard links), so it may be a file of something else"
    if status.st_size and not is_own_line(read_at(fd, _FIRST_LINE_BYTES, 0).partition(b"\n")[0]):
        return f"exists and is no {what} of krea-batch"
    return None


def _holds(directory: Path, run: Path) -> bool:
    return run.is_dir() and any(directory.samefile(each) for each in (run, *run.parents))


def _is_run(directory: Path) -> bool:
    """Return whether it is a run directory, also if its ledger was lost."""
    return has_ledger(directory) or ((directory / RESULTS).is_file() and (directory / IMAGES).is_dir())


def _replace(part: Path, real: Path, old: Path, check_existing: CheckExisting) -> None:
    """Give `part` the name of an existing output, which is moved to `old` if it is a directory."""
    if not real.is_dir() and not part.is_dir():
        check_existing(real)
        replace(part, real)  # atomic
        return
    replace(real, old)
    try:
        check_existing(old)  # only now, since others could add files to it until here
        replace(part, real)
    except BaseException:
        replace(old, real)
        raise


def _sync(part: Path) -> None:
    """Make a file, or all files of a directory, durable: what they replace is deleted afterwards."""
    for path in (part, *part.rglob("*")) if part.is_dir() else (part,):
        fsync_path(path)
