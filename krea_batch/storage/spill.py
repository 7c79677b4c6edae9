"""unrecorded.jsonl: request_ids that the ledger could not take when they arrived.

The job of each request_id is paid for. A line is durable when it is written, and the next start records it in the
ledger (`ledger.adoption`). The file is kept until the record is durable, and lines that cannot be recorded stay in
it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from krea_batch.storage.atomic import fsync_path, open_file, replacing, sync_fd
from krea_batch.storage.operating_system import make_private, read_at

SPILL = "unrecorded.jsonl"


class SpilledId(msgspec.Struct, frozen=True):
    """The request_id of a job. `at` is when it arrived, in seconds since 1970."""

    job_id: str
    request_id: str
    at: float


class SpillLine(NamedTuple):
    """A line of the file as it is, and what it says; None if it cannot be read."""

    data: bytes
    spilled: SpilledId | None


_read = msgspec.json.Decoder(SpilledId).decode


def write_spill(out: Path, job_id: str, request_id: str, at: float) -> None:
    """Append the request_id of a job to OUT/unrecorded.jsonl, durably. Raises OSError. Blocks."""
    line = msgspec.json.encode(SpilledId(job_id, request_id, at)) + b"\n"
    with os.fdopen(open_file(out / SPILL, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes and read_at(file.fileno(), 1, size_bytes - 1) != b"\n":
            line = b"\n" + line  # the disk was full, or the power failed, while the last line was written
        file.write(line)
        file.flush()
        sync_fd(file.fileno())
    fsync_path(out)


def read_spill(out: Path) -> list[SpillLine]:
    """Return the lines of OUT/unrecorded.jsonl, none if there is no file. Raises OSError."""
    try:
        fd = open_file(out / SPILL, os.O_RDONLY)
    except FileNotFoundError:
        return []
    with os.fdopen(fd, "rb") as file:
        return [SpillLine(line, _decode(line)) for data in file if (line := data.strip())]


def keep_spill(out: Path, remaining: Sequence[SpillLine]) -> None:
    """Replace OUT/unrecorded.jsonl by these lines, durably; without any, remove it. Raises OSError."""
    path = out / SPILL
    if not remaining:
        path.unlink(missing_ok=True)
        fsync_path(out)
        return
    with replacing(path) as file:
        make_private(file.fileno())
        file.writelines(line.data + b"\n" for line in remaining)


def _decode(line: bytes) -> SpilledId | None:
    try:
        return _read(line)
    except msgspec.MsgspecError:
        return None
