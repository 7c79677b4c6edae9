"""A file of job ids, one a line, comes in; the ids go out."""

from __future__ import annotations

import sys
from pathlib import Path


def read_ids(path: str | None) -> list[str] | None:
    """The ids in a file, or on standard input ("-"); None where no file is named. Raises InputError."""
    from krea_batch.errors import InputError

    if path is None:
        return None
    try:
        text = sys.stdin.buffer.read().decode() if path == "-" else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path}: the ids cannot be read ({reason})", "give a file with an id a line") from None
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise InputError(f"{path}: there is no id in it", "write an id a line")
    return ids
