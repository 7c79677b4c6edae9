"""duplicates.jsonl: the jobs that `--dedupe` left out, each with the images of the job that it repeats.

These jobs are not in the ledger, so they have no rows in results.jsonl, which is rewritten from the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import msgspec

from krea_batch.jobs import Outcome, State, StoredFile
from krea_batch.storage.atomic import replacing
from krea_batch.storage.run_dir import DUPLICATES


class DuplicateJob(msgspec.Struct, frozen=True):
    """A job that was left out: its id, the id of the job that it repeats, and its file and line."""

    id: str
    duplicate_of: str
    source: str


class DuplicateRow(msgspec.Struct, frozen=True):
    """A line of duplicates.jsonl. `status` and `files` are those of the job `duplicate_of`, null and empty before."""

    id: str
    duplicate_of: str
    source: str
    status: State | None
    files: tuple[StoredFile, ...]


class DuplicateJobs:
    """The jobs that were left out, in the order of their rows, in a temporary file. Call `close`."""

    def __init__(self, temp_dir: Path | None = None) -> None:
        self._temp_dir = temp_dir
        self._file: IO[bytes] | None = None

    def add(self, job: DuplicateJob) -> None:
        """Add a job."""
        if self._file is None:
            self._file = TemporaryFile(dir=self._temp_dir, prefix="krea-batch-")  # noqa: SIM115 - see close
        self._file.write(msgspec.json.encode(job) + b"\n")

    def __iter__(self) -> Iterator[DuplicateJob]:
        if self._file:
            self._file.seek(0)
            for line in self._file:
                yield msgspec.json.decode(line, type=DuplicateJob)

    def write(self, out: Path, find_job: Callable[[str], Outcome | None]) -> None:
        """Replace duplicates.jsonl of a run directory. `find_job` returns a job of the ledger. Raises OSError."""
        with replacing(out / DUPLICATES) as file:
            for job in self:
                first = find_job(job.duplicate_of)
                status, files = (first.status, first.files) if first else (None, ())
                row = DuplicateRow(job.id, job.duplicate_of, job.source, status, files)
                file.write(msgspec.json.encode(row) + b"\n")

    def close(self) -> None:
        """Delete the temporary file."""
        if self._file:
            self._file.close()
            self._file = None
