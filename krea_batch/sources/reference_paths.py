"""The local reference images of job files: `image_path` is relative to the directory of the job file.

Each path is read only once, by the check, so that the jobs are the same when they are read again later. An upload
refuses an image whose bytes have changed since.
"""

from __future__ import annotations

from krea_batch.errors import JobError
from krea_batch.jobs import FileReference, Job
from krea_batch.storage.reference_files import ReferenceFile, has_paths, read_reference, with_contents


class ReferencePaths:
    """The local reference images of the jobs that were read so far. `directory` is that of the current job file."""

    def __init__(self) -> None:
        self.directory = ""
        self.first: str | None = None  # the first of them, by its path or else the name of its content
        self._read: dict[str, ReferenceFile | JobError] = {}

    def enter(self, directory: str) -> None:
        """Start to read a job file in this directory."""
        self.directory = directory

    def resolve(self, job: Job) -> Job:
        """Return the job with the contents of its local reference images. Raises JobError."""
        if has_paths(job):
            job = with_contents(job, self._file, self.directory)
        for each in job.image_style_references:
            if isinstance(each, FileReference):
                self.first = self.first or each.image_path or each.name
        return job

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
