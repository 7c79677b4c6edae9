"""Reads results.jsonl as a stream of lines, from any position, and marks how far it was read.

The file may have been damaged since: a power cut leaves a last line without its end, or bytes that are zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_LINE_BYTES = 16 << 20  # chosen: far above any row; limits the memory for a file that has no lines
TAIL_BYTES = 1 << 16  # chosen: some hundred rows, so that another file of the same size is recognised


class ResultsMark(NamedTuple):
    """The first `size_bytes` of results.jsonl, which end with bytes of this SHA-256."""

    size_bytes: int
    tail_sha256: bytes


class ResultsLine(NamedTuple):
    """A line without its newline. `number` counts from 1; 0 if reading did not start at the first line.

    `data` is None if the line is too long. `is_complete` is False for a last line without a newline.
    """

    number: int
    data: bytes | None
    is_complete: bool = True


def mark_results(path: Path) -> ResultsMark | None:
    """Return the mark of the whole file; None if there is no file. Raises OSError."""
    try:
        with path.open("rb") as file:
            return _mark(file, file.seek(0, 2))
    except FileNotFoundError:
        return None


def matches_mark(path: Path, mark: ResultsMark) -> bool:
    """Return whether the file still has the last bytes of the mark at their position. Raises OSError."""
    try:
        with path.open("rb") as file:
            return file.seek(0, 2) >= mark.size_bytes and _mark(file, mark.size_bytes) == mark
    except FileNotFoundError:
        return False


def read_lines(path: Path, start_bytes: int = 0) -> Iterator[ResultsLine]:
    """Yield the lines from a position, none if there is no file. Blank lines are left out. Raises OSError.

    If the position is inside a line, the rest of this line is left out, too.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        if start_bytes:
            file.seek(start_bytes - 1)
            if file.read(1) != b"\n":
                _skip_line(file)
        number = 0
        while data := file.readline(MAX_LINE_BYTES):
            number += 1
            line_no = 0 if start_bytes else number
            if len(data) == MAX_LINE_BYTES and not data.endswith(b"\n"):
                yield ResultsLine(line_no, None, _skip_line(file))
            elif stripped := data.strip():
                yield ResultsLine(line_no, stripped, data.endswith(b"\n"))


def _mark(file: BinaryIO, size_bytes: int) -> ResultsMark:
    file.seek(max(0, size_bytes - TAIL_BYTES))
    return ResultsMark(size_bytes, hashlib.sha256(file.read(min(TAIL_BYTES, size_bytes))).digest())


def _skip_line(file: BinaryIO) -> bool:
    """Read to the end of the line. Return whether it ends with a newline."""
    while data := file.readline(MAX_LINE_BYTES):
        if data.endswith(b"\n"):
            return True
    return False
