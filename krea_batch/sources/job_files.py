"""Reads many job files as one checked stream of jobs, each with its id.

    with JobFiles(["cats.jsonl", "dogs.jsonl.gz"]) as files:
        result = files.check()
        for job in files: ...

The id of a line without one is its running number over all files, counting blank and invalid lines. So correcting a
line, or adding a file at the end, never changes the id of another job. A job with a new id would be charged again, so
lines that have moved since an earlier run keep their ids (see `moved_rows`).
"""

from __future__ import annotations

import functools
import stat
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from krea_batch.errors import InputError, InternalError, JobFileError
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources.check import LOOKUP_BATCH, Check, CheckResult, FingerprintLookup, OnProblem, OnProgress
from krea_batch.sources.checkpoint import EMPTY, Checkpoint, FilePrefix
from krea_batch.sources.dedupe import Deduplicator
from krea_batch.sources.duplicates_file import DuplicateJobs
from krea_batch.sources.folder_texts import require_clear_texts
from krea_batch.sources.inputs import Input, numbered_rows, open_inputs, prompts_input
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.moved_rows import RecordedJobs, RowIds
from krea_batch.sources.options import Format, InputOptions
from krea_batch.sources.parser import RowParser
from krea_batch.sources.prompt_recognition import SyntaxCounter
from krea_batch.sources.reference_paths import ReferencePaths
from krea_batch.sources.selection import Selection
from krea_batch.storage.reference_files import content_names

MAX_NOTICES_OF_A_KIND = 3  # chosen: a directory may have thousands of files

_NO_JOBS_HINT = 'write one job per line: {"prompt": "a red kite"}'
_NO_JOBS_HINTS = {
    **dict.fromkeys((Format.CSV, Format.TSV, Format.SHEET), 'write a header with "prompt", and one job per row'),
    **dict.fromkeys((Format.TEXT, Format.TEXT_FILE, Format.TEXT_BLOCKS), "write one prompt per line"),
    **dict.fromkeys((Format.JSON, Format.YAML), 'write a list of prompts: ["a red kite", "a blue door"]'),
    **dict.fromkeys((Format.PARQUET, Format.ARROW), "choose files with rows"),
}
_TEXTS = (Format.TEXT, Format.TEXT_FILE, Format.TEXT_BLOCKS)
_force_setattr = msgspec.structs.force_setattr


class JobFiles:
    """Job files in the given order; "-" is standard input. A context manager, since it may hold temporary files.

    `options`: how the files are read. `skip_invalid`: iteration leaves out invalid lines, and the later of two lines
    with the same id. `prompts` are additional rows after the files. `stdin` and `spool_dir` replace the process's
    own. Raises InputError if a file is named twice or cannot be read, or if a template or sweep is invalid.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        options: InputOptions | None = None,
        skip_invalid: bool = False,
        stdin: BinaryIO | None = None,
        spool_dir: Path | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        _require_distinct_files(paths)
        self._options = options or InputOptions()
        RowParser(self._options)  # report invalid options before any file is opened
        self._selection = Selection(self._options)
        self.references = ReferencePaths()
        self._row_ids = RowIds()
        self._submit_changed = self._options.submit_changed or bool(prompts)
        self._skip_invalid = skip_invalid
        self._spool_dir = spool_dir
        self._conflicting_rows: Sequence[int] = ()  # running numbers of rows that conflict with others
        self._checked: CheckResult | None = None
        self._resumed_from = EMPTY  # lines before it are skipped
        self._jobs_yielded = 0  # in the current iteration
        self._rows_read = 0  # in the current iteration
        self._prefixes: list[FilePrefix] = []  # how far each file has been read in it
        self._checkpoint: tuple[int, bytes] | None = None
        self.duplicates = DuplicateJobs(spool_dir)
        self._inputs: list[Input] = []
        try:
            for path in paths:
                self._inputs.extend(open_inputs(path, self._options, stdin or _standard_input, spool_dir))
            _require_distinct_files([each.name for each in self._inputs if not each.file.is_spooled])
            if prompts:
                self._inputs.append(prompts_input(prompts, self._options))
            _require_effects(self._options, self._inputs)
            for each in self._inputs:
                each.on_read = self.references.enter
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the temporary files."""
        for each in self._inputs:
            each.file.close()
        self.duplicates.close()

    @property
    def skipped(self) -> int:
        """The number of jobs covered by the checkpoint of an earlier run."""
        return self._resumed_from.jobs

    def notices(self) -> list[str]:
        """What was guessed about the files, one sentence each, once they are checked.

        If more than a few files have the same kind of notice, only the first is in the list.
        """
        notices = _once_for_many_files(self._inputs)
        if self._row_ids.rows:
            kept, new = self._row_ids.kept, len(self._row_ids.rows) - self._row_ids.kept
            notices.append(
                f"edited since an earlier run; rows that moved and keep their ids: {kept:,}; "
                f"new rows that get the next free numbers: {new:,}"
            )
        return notices

    def no_jobs_error(self) -> InputError:
        """Return the error for files that are valid and have no jobs."""
        if self._checked and self._checked.bad_lines:
            return InputError("no line is valid", "fix them")
        names = ", ".join(dict.fromkeys(each.name for each in self._inputs[:MAX_NOTICES_OF_A_KIND]))
        format_ = self._inputs[0].format if self._inputs else Format.JSONL
        return InputError(f"{names or 'JOBS'}: no jobs found", _NO_JOBS_HINTS.get(format_, _NO_JOBS_HINT))

    def resume_from(self, data: bytes | None) -> None:
        """Skip the jobs that the checkpoint of an earlier run covers, if the files still begin with the same bytes.

        `check` counts these jobs as valid, iteration leaves them out; `skipped` is their number.
        """
        checkpoint = Checkpoint.decode(data) if data else None
        same_options = (
            checkpoint and not self._options.dedupe and checkpoint.options_fingerprint == self._options.fingerprint()
        )
        if checkpoint and same_options and not self._options.selects and checkpoint.matches(self._inputs):
            self._resumed_from = checkpoint

    def checkpoint(self) -> tuple[int, bytes] | None:
        """Return how many jobs the current iteration has yielded and the checkpoint of that position.

        Store it once all these jobs are in the ledger. None if there is no checkpoint: lines are invalid, or none was
        read.
        """
        if self._checked is None or self._checked.bad_lines or self._options.dedupe or self._options.selects:
            return None
        if self.references.first is not None:
            return None  # a later run has to read the images again, which may have been edited
        if self._row_ids.rows:
            return None  # the numbers of the lines are not their ids, as a checkpoint would say
        return self._checkpoint

    def check(
        self,
        lookup: FingerprintLookup | None = None,
        on_problem: OnProblem | None = None,
        on_progress: OnProgress | None = None,
        *,
        recorded_jobs: RecordedJobs | None = None,
    ) -> CheckResult:
        """Check every line of every file, and every id against all others.

        `lookup` is called with batches of ids and returns the fingerprints of those in the ledger. `on_problem` is
        called for each invalid line when it is found, conflicting ids last. `on_progress` is called with the bytes
        read and the total. With `recorded_jobs` of the ledger, rows without an id keep those under which they were
        submitted, whatever their numbers are now. Raises InputError if a file cannot be read, or if text files of a
        directory may be one prompt or many.
        """
        parser = RowParser(self._options, self.references)
        self.duplicates.close()
        with Check(
            self._inputs,
            parser,
            lookup,
            on_problem,
            self._spool_dir,
            checkpoint=self._resumed_from,
            duplicates=self.duplicates if self._options.dedupe else None,
            syntax=SyntaxCounter(self._options),
            recorded_jobs=recorded_jobs,
            submit_changed=self._submit_changed,
        ) as check:
            check.read_lines(on_progress)
            check.assign_ids()
            self._row_ids = check.row_ids
            check.find_duplicate_ids()
            self._conflicting_rows = check.conflicting_rows()
            require_clear_texts([(each.name, each.text_count) for each in self._inputs if each.text_count])
            self._checked = self._with_references(check.result())
        if self._options.selects and (self._skip_invalid or not self._checked.bad_lines):
            self._select(self._checked, lookup)
        return self._checked

    def __iter__(self) -> Iterator[Job]:
        """Yield the valid jobs in order, reading on demand.

        Raises JobFileError if lines are invalid and not skipped, InputError if a file has changed since the check.
        """
        if self._checked is None:
            raise InternalError("call check() before iterating")
        if self._checked.bad_lines and not self._skip_invalid:
            raise JobFileError(self._checked.problems, self._checked.bad_lines)
        return self._jobs()

    def _select(self, checked: CheckResult, lookup: FingerprintLookup | None) -> None:
        """Select jobs, and count them as the only ones."""
        self._selection.read(self._all_jobs())
        jobs = recorded = 0
        names: set[str] = set()
        selected = self._jobs()
        while batch := list(islice(selected, LOOKUP_BATCH)):
            jobs += len(batch)
            names.update(name for job in batch for name in content_names(job))
            if lookup:
                known = lookup([job.id for job in batch])
                recorded += sum(known.get(job.id) == wire.fingerprint(job) for job in batch)
        self._checked = msgspec.structs.replace(
            self._with_references(checked, names), jobs=jobs, recorded=recorded, unselected=checked.jobs - jobs
        )

    def _with_references(self, checked: CheckResult, names: Collection[str] | None = None) -> CheckResult:
        """Count the local reference images of all jobs, or those with these names."""
        files = [each for each in self.references.files if names is None or each.name in names]
        size_bytes = sum(each.size_bytes for each in files)
        return msgspec.structs.replace(checked, references=len(files), reference_bytes=size_bytes)

    def _jobs(self) -> Iterator[Job]:
        return self._selection.filter(self._all_jobs()) if self._options.selects else self._all_jobs()

    def _all_jobs(self) -> Iterator[Job]:
        parser = RowParser(self._options, self.references)
        read = parser.read
        deduplicator = Deduplicator() if self._options.dedupe else None
        self._jobs_yielded, self._rows_read, self._prefixes, self._checkpoint = 0, 0, [], None
        for number, row in numbered_rows(
            self._inputs, lambda n: functools.partial(self._on_block, n), self._resumed_from.positions
        ):
            self._rows_read += 1
            jobs = read(number, row)
            parser.unknown_fields.clear()  # reported by the check
            unique = deduplicator.filter(number, jobs) if deduplicator else jobs
            if not jobs or (self._conflicting_rows and _contains(self._conflicting_rows, number)):
                if not self._skip_invalid:
                    raise InternalError(
                        f"line {number} was valid in the check and is invalid now, but its file is unchanged"
                    )
                continue
            for job in unique:
                if not job.id:
                    # No other code has the job yet, so it can be changed, and a copy would cost more.
                    _force_setattr(job, "id", self._row_ids.id_of(number))
                    parser.set_image_name(job, job.id)
                self._jobs_yielded += 1
                yield job

    def _on_block(self, file_index: int, lines: int, size_bytes: int, sha256: str) -> None:
        """Record that all lines so far of the file with this index have been consumed."""
        if file_index and (
            len(self._prefixes) < file_index
            or self._prefixes[file_index - 1].lines != self._inputs[file_index - 1].file.line_count
        ):
            return  # the file before has no final newline: if it grows, numbers change
        self._prefixes[file_index:] = [FilePrefix(size_bytes, sha256, lines, self._inputs[file_index].format)]
        resumed_from = self._resumed_from
        rows, jobs = resumed_from.rows + self._rows_read, resumed_from.jobs + self._jobs_yielded
        checkpoint = Checkpoint(tuple(self._prefixes), rows, jobs, self._options.fingerprint())
        if checkpoint.lines > resumed_from.lines:
            self._checkpoint = self._jobs_yielded, checkpoint.encode()


def _standard_input() -> BinaryIO:
    """Return standard input. Raises InputError if the process was started without one, as by some schedulers."""
    if sys.stdin is None:
        raise InputError("standard input is closed", "name a file instead of -")
    return sys.stdin.buffer


def _contains(numbers: Sequence[int], number: int) -> bool:
    """Return True if the sorted `numbers` contain this one."""
    index = bisect_left(numbers, number)
    return index < len(numbers) and numbers[index] == number


def _require_effects(options: InputOptions, inputs: Sequence[Input]) -> None:
    """Raise InputError for an option that applies to none of the files."""
    formats = {each.format for each in inputs}
    if options.sheet and Format.SHEET not in formats:
        raise InputError("--sheet is given, but no file is a workbook", "leave it out")
    if options.no_header and not formats & {Format.CSV, Format.TSV, Format.SHEET}:
        raise InputError("--no-header is given, but no file is a table", "leave it out, or set --input-format csv")
    has_texts = any(each.format in _TEXTS or ".txt" in each.name for each in inputs)
    if options.chooses_text and not has_texts:
        problem = f"{inputs[0].name}: --lines, --whole-file and --separator are for text files"
        raise InputError(problem, "leave them out, or name a text file")
    if options.skip_comments and not has_texts:
        raise InputError(f"{inputs[0].name}: --skip-comments is for text files", "leave it out, or name a text file")
    column = next((column for column in options.columns.values() if column), None)
    if column and inputs and formats <= {Format.TEXT, Format.TEXT_FILE}:
        problem = f"{inputs[0].name}: there is no column {quoted(column)}, because it is a text file"
        raise InputError(problem, "leave out the option that names it, or set --input-format")


def _once_for_many_files(inputs: Sequence[Input]) -> list[str]:
    """Return the notices of all inputs; of many that differ only in their file, return the first."""
    notices = [
        (notice, notice.removeprefix(f"{each.name}: ").partition(": ")[0])
        for each in inputs
        for notice in each.notices
    ]
    counts = Counter(kind for _, kind in notices)
    shown: dict[str, str] = {}
    for notice, kind in notices:
        if counts[kind] <= MAX_NOTICES_OF_A_KIND:
            shown[notice] = notice
        else:
            shown.setdefault(kind, f"{notice} (and {counts[kind] - 1:,} more files alike)")
    return list(shown.values())


def _require_distinct_files(paths: Sequence[str]) -> None:
    """Raise InputError if a file is named twice, by whatever path: its jobs would be charged twice."""
    path_by_identity: dict[object, str] = {}
    for path in paths:
        identity = _identity(path)
        if identity in path_by_identity:
            raise InputError(f"{path}: the same file as {path_by_identity[identity]}", "name each file once")
        if identity:
            path_by_identity[identity] = path


def _identity(path: str) -> object:
    """Return a value that all paths of one file share; None for anything but a file, which fails later."""
    if path == "-":
        return path
    try:
        info = Path(path).stat()
    except (OSError, ValueError):
        return None
    return (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else None
