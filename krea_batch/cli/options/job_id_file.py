"""Files of job ids, one per line."""

from __future__ import annotations

import sys
from pathlib import Path


def read_ids(path: str | None) -> list[str] | None:
    """Return the ids in a file, or from standard input for "-"; None if `path` is None. Raises InputError."""
    from krea_batch.errors import InputError

    if path is None:
        return None
    try:
        text = sys.stdin.buffer.read().decode() if path == "-" else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"cannot read {path} ({reason})", "use a file with one id per line") from None
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise InputError(f"{path}: no ids found", "write one id per line")
    return ids
