"""The local reference images of job files: `image_path` is relative to the directory of the job file.

Each path is read once, by the check, so that the jobs that are read later are those that were checked. An upload
refuses an image that has other bytes by then.
"""

from __future__ import annotations

from krea_batch.errors import JobError
from krea_batch.jobs import Job
from krea_batch.storage.reference_files import ReferenceFile, has_paths, read_reference, with_contents


class ReferencePaths:
    """The local reference images of the jobs that were read so far. `directory` is that of the current job file."""

    def __init__(self) -> None:
        self.directory = ""
        self._read: dict[str, ReferenceFile | JobError] = {}

    def enter(self, directory: str) -> None:
        """Start to read a job file in this directory."""
        self.directory = directory

    def resolve(self, job: Job) -> Job:
        """Return the job with the contents of its local reference images. Raises JobError."""
        return with_contents(job, self._file, self.directory) if has_paths(job) else job

    @property
    def first_path(self) -> str | None:
        """The first path that was read, or None."""
        return next(iter(self._read), None)

    @property
    def files(self) -> list[ReferenceFile]:
        """The images, of equal ones the first."""
        by_name: dict[str, ReferenceFile] = {}
        for each in self._read.values():
            if isinstance(each, ReferenceFile):
                by_name.setdefault(each.name, each)
        return list(by_name.values())

    def _file(self, path: str) -> ReferenceFile:
        if path not in self._read:
            try:
                self._read[path] = read_reference(path)
            except JobError as error:
                self._read[path] = error
        found = self._read[path]
        if isinstance(found, JobError):
            raise found
        return found
