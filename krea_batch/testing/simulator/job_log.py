"""Append accepted jobs to a file, and load the jobs of earlier processes from it.

The file is written without a buffer, so that it survives a `kill -9` of this process. Lines that cannot be decoded,
such as a torn last line, are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from krea_batch.testing.simulator.accounting import Accounting
from krea_batch.testing.simulator.job_planner import SimulatedJob


class LoggedJob(msgspec.Struct):
    """One line of the file. The fields are attributes of `SimulatedJob` with the same names."""

    request_id: str
    body: dict[str, Any]
    submitted_at: float
    processing_at: float
    done_at: float
    final_status: str
    outputs: int
    body_hash: str = ""
    occurrence: int = 1


class JobLog:
    """The file of one simulator. Raises OSError if it cannot be read or written."""

    def __init__(self, path: Path, accounting: Accounting) -> None:
        is_torn = self._load(path, accounting) if path.exists() else False
        self._file: BinaryIO = path.open("ab", buffering=0)
        if is_torn:
            self._file.write(b"\n")

    def append(self, job: SimulatedJob) -> None:
        line = LoggedJob(*(getattr(job, name) for name in LoggedJob.__struct_fields__))
        self._file.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()

    def _load(self, path: Path, accounting: Accounting) -> bool:
        """Load the jobs of earlier processes; totals do not count them. Return whether the last line is torn."""
        decode = msgspec.json.Decoder(LoggedJob).decode
        data = path.read_bytes()
        for line in data.splitlines():
            try:
                logged = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue  # a process was killed while it was writing this line
            job = SimulatedJob(
                logged.request_id, logged.body, logged.submitted_at, logged.body_hash, logged.occurrence
            )
            job.processing_at, job.done_at, job.final_status, job.outputs = (
                logged.processing_at,
                logged.done_at,
                logged.final_status,
                logged.outputs,
            )
            accounting.jobs[job.request_id] = job
            accounting.accepted[job.body_hash] = max(accounting.accepted[job.body_hash], job.occurrence)
        return bool(data) and not data.endswith(b"\n")
