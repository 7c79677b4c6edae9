"""Accepted jobs go into a file as they are accepted; the jobs of earlier processes come out of it.

Newcomers: it is written without a buffer, so that it survives a `kill -9` of this process; a torn last line is
passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from krea_batch.testing.simulator.accounting import Books
from krea_batch.testing.simulator.job_planner import SimulatedJob


class Remembered(msgspec.Struct):
    """A line of the file."""

    request_id: str
    body: dict[str, Any]
    submitted_at: float
    start_at: float
    done_at: float
    end: str
    outputs: int
    mark: str = ""
    copy: int = 1


class Memory:
    """The file of one simulator. Raises OSError where it cannot be read or written."""

    def __init__(self, path: Path, books: Books) -> None:
        torn = self._recall(path, books) if path.exists() else False
        self._file: BinaryIO = path.open("ab", buffering=0)
        if torn:
            self._file.write(b"\n")

    def keep(self, job: SimulatedJob) -> None:
        line = Remembered(*(getattr(job, name) for name in Remembered.__struct_fields__))
        self._file.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()

    def _recall(self, path: Path, books: Books) -> bool:
        """Know again the jobs of earlier processes; they count in no totals. True where the last line is torn."""
        decode = msgspec.json.Decoder(Remembered).decode
        data = path.read_bytes()
        for line in data.splitlines():
            try:
                seen = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue  # a process was killed while it wrote this line
            job = SimulatedJob(seen.request_id, seen.body, seen.submitted_at, seen.mark, seen.copy)
            job.start_at, job.done_at, job.end, job.outputs = seen.start_at, seen.done_at, seen.end, seen.outputs
            books.jobs[job.request_id] = job
            books.accepted[job.mark] = max(books.accepted[job.mark], job.copy)
        return bool(data) and not data.endswith(b"\n")
