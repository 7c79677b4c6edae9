"""Many job files come in; one checked stream of jobs goes out, each with its id.

    with JobFiles(["cats.jsonl", "dogs.jsonl.gz"]) as files:
        checked = files.check()
        for job in files: ...

Newcomers: a line without an id is named by its running number, which goes on over the files, blank and bad lines
included. So mending a line or adding a file never renames the jobs before it, which would pay for them again.
"""

from __future__ import annotations

import functools
import stat
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from krea_batch.errors import InputError, InternalError, JobFileError
from krea_batch.jobs import Job
from krea_batch.sources.check import Check, Checked, Known, OnProblem, OnProgress
from krea_batch.sources.checkpoint import EMPTY, Checkpoint, FilePrefix
from krea_batch.sources.dedupe import Deduplicator
from krea_batch.sources.duplicate_ids import default_id
from krea_batch.sources.inputs import Input, numbered, open_inputs
from krea_batch.sources.options import InputOptions
from krea_batch.sources.parser import RowParser

_set = msgspec.structs.force_setattr


class JobFiles:
    """Job files in the order given; "-" is standard input. A context manager, since it may hold temporary files.

    `reading` says how they are read. `skip_invalid`: iterating leaves out the bad lines, and of two lines with one id
    the later. `stdin` and `spool_dir` stand in for the process's own.
    Raises InputError where a file is named twice or cannot be read, or a template or sweep cannot be.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        reading: InputOptions | None = None,
        skip_invalid: bool = False,
        stdin: BinaryIO | None = None,
        spool_dir: Path | None = None,
    ) -> None:
        _refuse_twice(paths)
        self._reading = reading or InputOptions()
        RowParser(self._reading)  # what is wrong with the reading itself is told before any file
        self._skip_invalid = skip_invalid
        self._spool_dir = spool_dir
        self._skipped: Sequence[int] = ()  # running numbers of lines that read well and are bad all the same
        self._checked: Checked | None = None
        self._before = EMPTY  # the lines up to there need not be looked at
        self._given = 0  # jobs, in the present iteration
        self._taken = 0  # rows in it
        self._parts: list[FilePrefix] = []  # how far the files have been read in it
        self._mark: tuple[int, bytes] | None = None
        self._inputs: list[Input] = []
        try:
            for path in paths:
                for each in open_inputs(path, self._reading, stdin or sys.stdin.buffer, spool_dir):
                    self._inputs.append(each)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the temporary files go."""
        for each in self._inputs:
            each.file.close()

    @property
    def skipped(self) -> int:
        """How many jobs an earlier run's mark covers."""
        return self._before.jobs

    def said(self) -> list[str]:
        """What was guessed of the files, a sentence each, once they are checked."""
        return [sentence for each in self._inputs for sentence in each.said]

    def resume_from(self, bookmark: bytes | None) -> None:
        """Do not look again at the jobs that a mark of an earlier run covers, where the files still begin so.

        `passed` says how many these are: `check` counts them, iterating leaves them out.
        """
        mark = Checkpoint.decode(bookmark) if bookmark else None
        same = mark and not self._reading.dedupe and mark.reading == self._reading.fingerprint()
        if mark and same and mark.fits(self._inputs):
            self._before = mark

    def checkpoint(self) -> tuple[int, bytes] | None:
        """How far the files have been read, and how many jobs the present iteration had given by then.

        To be kept once all of them are on record. None where no mark can be: lines are bad, or none was read.
        """
        if self._checked is None or self._checked.bad_lines or self._reading.dedupe:
            return None
        return self._mark

    def check(
        self,
        known: Known | None = None,
        on_problem: OnProblem | None = None,
        on_progress: OnProgress | None = None,
    ) -> Checked:
        """Read every line of every file, and every id against every other.

        `known` is given batches of ids, and gives the fingerprints of those that are on record.
        `on_problem` hears of each bad line as it is found, the clashes of ids last. `on_progress` hears how many
        bytes of how many are read. Raises InputError where a file cannot be read.
        """
        reader = RowParser(self._reading)
        before, dedupe = self._before, self._reading.dedupe
        with Check(self._inputs, reader, known, on_problem, self._spool_dir, before=before, dedupe=dedupe) as check:
            check.read_lines(on_progress)
            check.compare_ids()
            self._skipped = check.skipped()
            self._checked = check.result()
        return self._checked

    def __iter__(self) -> Iterator[Job]:
        """Give the good jobs in order, reading as they are taken.

        Raises JobFileError where lines are bad and not to be skipped, InputError where a file has changed since.
        """
        if self._checked is None:
            raise InternalError("job files are checked before their jobs are taken")
        if self._checked.bad_lines and not self._skip_invalid:
            raise JobFileError(self._checked.problems, self._checked.bad_lines)
        return self._jobs()

    def _jobs(self) -> Iterator[Job]:
        reader = RowParser(self._reading)
        read = reader.read
        twins = Deduplicator() if self._reading.dedupe else None
        self._given, self._taken, self._parts, self._mark = 0, 0, [], None
        for number, row in numbered(
            self._inputs, lambda n: functools.partial(self._at_block, n), self._before.places
        ):
            self._taken += 1
            jobs = read(number, row)
            reader.unknown_fields.clear()  # the check has told of them
            kept = twins.filter(number, jobs) if twins else jobs
            if not jobs or (self._skipped and _holds(self._skipped, number)):
                if not self._skip_invalid:
                    raise InternalError(f"line {number} was good and is bad now, though its file is the same")
                continue
            for job in kept:
                if not job.id:
                    _set(job, "id", default_id(number))  # nobody else has this job yet, and a copy costs more
                self._given += 1
                yield job

    def _at_block(self, n: int, lines: int, size_bytes: int, sha256: str) -> None:
        """All lines so far of the file number `n` have been taken."""
        if n and (len(self._parts) < n or self._parts[n - 1].lines != self._inputs[n - 1].file.line_count):
            return  # the last line of the file before has no end: if it grows, all numbers may change
        self._parts[n:] = [FilePrefix(size_bytes, sha256, lines, self._inputs[n].format)]
        before = self._before
        rows, jobs = before.rows + self._taken, before.jobs + self._given
        bookmark = Checkpoint(tuple(self._parts), rows, jobs, self._reading.fingerprint())
        if bookmark.lines > before.lines:
            self._mark = self._given, bookmark.encode()


def _holds(numbers: Sequence[int], number: int) -> bool:
    """True when the ordered `numbers` have this one."""
    at = bisect_left(numbers, number)
    return at < len(numbers) and numbers[at] == number


def _refuse_twice(paths: Sequence[str]) -> None:
    """Raise InputError for a file that stands twice in the list, by whatever name: it would be paid for twice."""
    seen: dict[object, str] = {}
    for path in paths:
        same = _identity(path)
        if same in seen:
            raise InputError(f"{path}: it is the same file as {seen[same]}", "name each file once")
        if same:
            seen[same] = path


def _identity(path: str) -> object:
    """What two names of one file have in common; None for what is no file, since opening it says so better."""
    if path == "-":
        return path
    try:
        info = Path(path).stat()
    except (OSError, ValueError):
        return None
    return (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None
