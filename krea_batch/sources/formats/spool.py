"""Something that can be read only once (standard input, a pipe) comes in; a file that can be read twice goes out.

Newcomers: the copy has no name in its folder, so nothing is left behind, however the process goes.
"""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from krea_batch.errors import InputError

SPOOL_CHUNK_BYTES = 1 << 20  # chosen: few calls, little memory


def is_read_once(path: str) -> bool:
    """True for pipes and devices, such as `<(command)` of a shell. A path that is not there is no pipe."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the path; opening it says so better
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def spool(source: BinaryIO, name: str, temp_dir: Path | None) -> BinaryIO:
    """A copy of what is left of `source`, in a file without a name in `folder` (None: the system's own).

    Raises InputError where the source cannot be read or the folder cannot take it.
    """
    try:
        copy = cast("BinaryIO", TemporaryFile(dir=temp_dir, prefix="krea-batch-"))  # noqa: SIM115 - given away
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
    """The same for a pipe or device by its path."""
    try:
        with Path(path).open("rb") as source:
            return spool(source, path, temp_dir)
    except OSError as error:
        raise InputError(f"{path}: it cannot be opened ({error.strerror})", "check the path") from error


def _spool_error(name: str, error: OSError) -> InputError:
    return InputError(
        f"{name}: it could not be copied to a temporary file ({error.strerror})",
        "give a file, or point TMPDIR to a folder with room",
    )
