"""Tell exports of krea-batch from other files and directories: only an export may be replaced by one.

A directory is an export only if nothing else is in it. So a file that someone put beside the images is never deleted.
"""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
import zlib
from importlib import import_module
from pathlib import Path

import msgspec

from krea_batch.sources.data_sets import METADATA_FILE

COLUMNS = (
    "id",
    "prompt",
    "aspect_ratio",
    "creativity",
    "seed",
    "image_style_references",
    "styles",
    "moodboards",
    "request_id",
    "width",
    "height",
    "bytes",
    "sha256",
    "submitted_at",
    "stored_at",
    "rating",
    "metadata",
)
"""The columns of every export; in CSV, `metadata` is a column for each of its keys."""
CSV_HEADER = ("path", *(name for name in COLUMNS if name != "metadata"))
_SHARD = re.compile(r"shard-\d{6}\.tar")
_PARQUET_MAGIC = b"PAR1"  # Parquet format, File format
_ERRORS = (OSError, ValueError, EOFError, NotImplementedError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class _Row(msgspec.Struct):
    """The fields by which a row is recognized; those of other programs have other fields."""

    request_id: str | None
    sha256: str
    submitted_at: str | None
    stored_at: str | None
    file_name: str = ""


_decode_row = msgspec.json.Decoder(_Row).decode


def is_export(path: Path) -> bool:
    """Return whether it is an export of krea-batch in any format, with nothing else in it; or an empty directory."""
    try:
        if path.is_symlink():
            return False
        if path.is_dir():
            return _is_directory_export(path)
        return path.is_file() and _is_file_export(path)
    except _ERRORS:  # msgspec's errors are ValueErrors
        return False


def _is_directory_export(path: Path) -> bool:
    names = _names_in(path)
    if names is None:
        return False
    if METADATA_FILE in names:
        with (path / METADATA_FILE).open("rb") as rows:
            return names - {METADATA_FILE} <= {_decode_row(row).file_name for row in rows}
    return all(_SHARD.fullmatch(name) and _is_shard(path / name) for name in names)


def _names_in(path: Path) -> set[str] | None:
    """Return the paths of all files in a directory; None if it has a link, a device, or a directory without files."""
    names: set[str] = set()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                names.add(entry.name)
                continue
            below = _names_in(path / entry.name) if entry.is_dir(follow_symlinks=False) else None
            if not below:
                return None
            names |= {f"{entry.name}/{name}" for name in below}
    return names


def _is_shard(path: Path) -> bool:
    with tarfile.open(path) as shard:
        members = (shard.next(), shard.next())
        row = shard.extractfile(members[1]) if members[1] else None
        return row is not None and bool(_decode_row(row.read()).sha256)


def _is_file_export(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1 << 12)
    if start.startswith(_PARQUET_MAGIC):
        return _is_parquet(path)
    if zipfile.is_zipfile(path):
        return _is_zip(path)
    return start.startswith(f"{','.join(CSV_HEADER)}".encode())


def _is_zip(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        names = set(file.namelist())
        rows = file.read(METADATA_FILE).splitlines() if METADATA_FILE in names else []
    return bool(rows) and names - {METADATA_FILE} <= {_decode_row(row).file_name for row in rows}


def _is_parquet(path: Path) -> bool:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        return False
    return list(parquet.read_schema(path).names) == ["image", *COLUMNS]
