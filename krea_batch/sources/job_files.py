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
from krea_batch.sources.check import Check, CheckResult, FingerprintLookup, OnProblem, OnProgress
from krea_batch.sources.checkpoint import EMPTY, Checkpoint, FilePrefix
from krea_batch.sources.dedupe import Deduplicator
from krea_batch.sources.duplicate_ids import default_id
from krea_batch.sources.inputs import Input, numbered_rows, open_inputs
from krea_batch.sources.options import InputOptions
from krea_batch.sources.parser import RowParser

_force_setattr = msgspec.structs.force_setattr


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
        options: InputOptions | None = None,
        skip_invalid: bool = False,
        stdin: BinaryIO | None = None,
        spool_dir: Path | None = None,
    ) -> None:
        _require_distinct_files(paths)
        self._options = options or InputOptions()
        RowParser(self._options)  # what is wrong with the reading itself is told before any file
        self._skip_invalid = skip_invalid
        self._spool_dir = spool_dir
        self._conflicting_rows: Sequence[int] = ()  # running numbers of lines that read well and are bad all the same
        self._checked: CheckResult | None = None
        self._resumed_from = EMPTY  # the lines up to there need not be looked at
        self._jobs_yielded = 0  # jobs, in the present iteration
        self._rows_read = 0  # rows in it
        self._prefixes: list[FilePrefix] = []  # how far the files have been read in it
        self._checkpoint: tuple[int, bytes] | None = None
        self._inputs: list[Input] = []
        try:
            for path in paths:
                for each in open_inputs(path, self._options, stdin or sys.stdin.buffer, spool_dir):
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
        return self._resumed_from.jobs

    def notices(self) -> list[str]:
        """What was guessed of the files, a sentence each, once they are checked."""
        return [notice for each in self._inputs for notice in each.notices]

    def resume_from(self, data: bytes | None) -> None:
        """Do not look again at the jobs that a mark of an earlier run covers, where the files still begin so.

        `passed` says how many these are: `check` counts them, iterating leaves them out.
        """
        checkpoint = Checkpoint.decode(data) if data else None
        same_options = checkpoint and not self._options.dedupe and checkpoint.options_fingerprint == self._options.fingerprint()
        if checkpoint and same_options and checkpoint.matches(self._inputs):
            self._resumed_from = checkpoint

    def checkpoint(self) -> tuple[int, bytes] | None:
        """How far the files have been read, and how many jobs the present iteration had given by then.

        To be kept once all of them are on record. None where no mark can be: lines are bad, or none was read.
        """
        if self._checked is None or self._checked.bad_lines or self._options.dedupe:
            return None
        return self._checkpoint

    def check(
        self,
        lookup: FingerprintLookup | None = None,
        on_problem: OnProblem | None = None,
        on_progress: OnProgress | None = None,
    ) -> CheckResult:
        """Read every line of every file, and every id against every other.

        `known` is given batches of ids, and gives the fingerprints of those that are on record.
        `on_problem` hears of each bad line as it is found, the clashes of ids last. `on_progress` hears how many
        bytes of how many are read. Raises InputError where a file cannot be read.
        """
        parser = RowParser(self._options)
        checkpoint, dedupe = self._resumed_from, self._options.dedupe
        with Check(self._inputs, parser, lookup, on_problem, self._spool_dir, checkpoint=checkpoint, dedupe=dedupe) as check:
            check.read_lines(on_progress)
            check.find_duplicate_ids()
            self._conflicting_rows = check.conflicting_rows()
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
        parser = RowParser(self._options)
        read = parser.read
        deduplicator = Deduplicator() if self._options.dedupe else None
        self._jobs_yielded, self._rows_read, self._prefixes, self._checkpoint = 0, 0, [], None
        for number, row in numbered_rows(
            self._inputs, lambda n: functools.partial(self._on_block, n), self._resumed_from.positions
        ):
            self._rows_read += 1
            jobs = read(number, row)
            parser.unknown_fields.clear()  # the check has told of them
            unique = deduplicator.filter(number, jobs) if deduplicator else jobs
            if not jobs or (self._conflicting_rows and _contains(self._conflicting_rows, number)):
                if not self._skip_invalid:
                    raise InternalError(f"line {number} was good and is bad now, though its file is the same")
                continue
            for job in unique:
                if not job.id:
                    _force_setattr(job, "id", default_id(number))  # nobody else has this job yet, and a copy costs more
                self._jobs_yielded += 1
                yield job

    def _on_block(self, file_index: int, lines: int, size_bytes: int, sha256: str) -> None:
        """All lines so far of the file number `n` have been taken."""
        if file_index and (len(self._prefixes) < file_index or self._prefixes[file_index - 1].lines != self._inputs[file_index - 1].file.line_count):
            return  # the last line of the file before has no end: if it grows, all numbers may change
        self._prefixes[file_index:] = [FilePrefix(size_bytes, sha256, lines, self._inputs[file_index].format)]
        resumed_from = self._resumed_from
        rows, jobs = resumed_from.rows + self._rows_read, resumed_from.jobs + self._jobs_yielded
        checkpoint = Checkpoint(tuple(self._prefixes), rows, jobs, self._options.fingerprint())
        if checkpoint.lines > resumed_from.lines:
            self._checkpoint = self._jobs_yielded, checkpoint.encode()


def _contains(numbers: Sequence[int], number: int) -> bool:
    """True when the ordered `numbers` have this one."""
    index = bisect_left(numbers, number)
    return index < len(numbers) and numbers[index] == number


def _require_distinct_files(paths: Sequence[str]) -> None:
    """Raise InputError for a file that stands twice in the list, by whatever name: it would be paid for twice."""
    seen: dict[object, str] = {}
    for path in paths:
        identity = _identity(path)
        if identity in seen:
            raise InputError(f"{path}: it is the same file as {seen[identity]}", "name each file once")
        if identity:
            seen[identity] = path


def _identity(path: str) -> object:
    """What two names of one file have in common; None for what is no file, since opening it says so better."""
    if path == "-":
        return path
    try:
        info = Path(path).stat()
    except (OSError, ValueError):
        return None
    return (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None
