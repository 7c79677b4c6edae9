"""Copies an input that can be read only once (standard input, a pipe) to a temporary file.

The temporary file has no name in its directory, so nothing is left behind however the process ends.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from krea_batch.errors import InputError
from krea_batch.storage.os_errors import is_out_of_files, next_step

SPOOL_CHUNK_BYTES = 1 << 20  # chosen: few system calls, little memory


def is_read_once(path: str) -> bool:
    """Return True for pipes and devices, such as a shell's `<(command)`. A path that does not exist is not a pipe."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the path; opening it gives the better error
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def spool(source: BinaryIO, name: str, temp_dir: Path | None) -> BinaryIO:
    """Copy the rest of `source` to an unnamed file in `temp_dir` (None: the system's default), and return it.

    Raises InputError if the source cannot be read or the file cannot be written.
    """
    try:
        copy = cast("BinaryIO", TemporaryFile(dir=temp_dir, prefix="krea-batch-"))  # noqa: SIM115 - returned
    except OSError as error:
        raise _spool_error(name, error) from error
    try:
        shutil.copyfileobj(source, copy, SPOOL_CHUNK_BYTES)
        copy.flush()
    except OSError as error:
        copy.close()
        raise _spool_error(name, error) from error
    return copy


def spool_path(path: str, temp_dir: Path | None) -> BinaryIO:
    """Copy a pipe or device by its path, and return the copy, as `spool` does. Raises InputError."""
    try:
        with Path(path).open("rb") as source:
            return spool(source, path, temp_dir)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})", "check the path") from error


def _spool_error(name: str, error: OSError) -> InputError:
    return InputError(
        f"{name}: cannot be copied to a temporary file ({error.strerror})",
        next_step(error)
        if is_out_of_files(error)
        else "use a regular file, or set TMPDIR to a directory with free space",
    )
