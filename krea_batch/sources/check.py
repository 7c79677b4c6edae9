"""Checks the rows of all job files: how many are valid, and what is wrong with the others.

A line can be invalid on its own. It can also conflict with another line that has the same id, or with a job of the
ledger that has the same id and a different request. Conflicts are found only after the lines are read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from krea_batch.errors import JobError, LineProblem
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources.checkpoint import Checkpoint
from krea_batch.sources.dedupe import Deduplicator, hash_of_request
from krea_batch.sources.duplicate_ids import DuplicateIdFinder, default_id
from krea_batch.sources.duplicates_file import DuplicateJob, DuplicateJobs
from krea_batch.sources.field_errors import closest_match
from krea_batch.sources.formats.encoding import EncodingError
from krea_batch.sources.formats.line_file import FilePosition
from krea_batch.sources.hash_buckets import HashBuckets
from krea_batch.sources.inputs import Input, numbered_rows, with_positions
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.moved_rows import RecordedJobs, RowIds, assign_ids
from krea_batch.sources.options import Format
from krea_batch.sources.parser import RowParser
from krea_batch.sources.prompt_recognition import SyntaxCounter, SyntaxFinding, may_have_syntax

MAX_PROBLEMS_KEPT = 100  # chosen: more than a user reads; `on_problem` gets all
MAX_NOTES_KEPT = 100  # chosen: one per mistyped name
LOOKUP_BATCH = 500  # chosen: one ledger query for many jobs, within the 999 variables of older SQLites
CANDIDATE_BATCH = 50_000  # chosen: their ids take about 10 MB; each batch rereads the files once
MAX_RECORDED_IDS = 50_000  # chosen: the same number of ids
PROGRESS_LINES = 10_000  # chosen: about fifty reports a second

OnProblem = Callable[[LineProblem], None]
OnProgress = Callable[[int, int], None]
FingerprintLookup = Callable[[Sequence[str]], Mapping[str, bytes]]


class CheckResult(msgspec.Struct, frozen=True):
    """The result of a complete check: the valid `rows` and their `jobs`; `problems` and `notes` are truncated.

    `duplicates` were left out because an earlier job has the same request. `repeated` jobs also repeat a request, and
    were not left out. `repeated_names`: images that an option gives the name of an earlier one. `recorded` jobs are
    in the ledger. `unread_syntax`: the syntaxes of other tools that would be sent as they are. `kept_arguments`: the
    names of arguments in prompts that were put into the metadata. `unselected` jobs were left out by `limit` or
    `sample`; all other jobs are in `jobs`. `references` is the number of different local reference images of the
    valid rows, `reference_bytes` their size.
    """

    jobs: int
    rows: int
    bad_lines: int
    duplicates: int
    problems: tuple[LineProblem, ...]
    notes: tuple[LineProblem, ...]
    recorded: int = 0
    repeated: int = 0
    repeated_names: int = 0
    unread_syntax: tuple[SyntaxFinding, ...] = ()
    kept_arguments: tuple[str, ...] = ()
    unselected: int = 0
    references: int = 0
    reference_bytes: int = 0


class Check:
    """One check in progress. A context manager, since it may hold a temporary file."""

    def __init__(
        self,
        inputs: Sequence[Input],
        parser: RowParser,
        lookup: FingerprintLookup | None,
        on_problem: OnProblem | None,
        spool_dir: Path | None,
        *,
        checkpoint: Checkpoint,
        duplicates: DuplicateJobs | None,
        syntax: SyntaxCounter,
        recorded_jobs: RecordedJobs | None,
        submit_changed: bool,
    ) -> None:
        self._inputs = inputs
        self._syntax = syntax
        self._parser = parser
        self._deduplicator = Deduplicator(self._add_duplicate) if duplicates else None
        self._duplicates = duplicates
        self._may_equal_default_id = False  # whether a row's id is one that another row could have by default
        self._requests: list[int] = []  # hashes of the requests of the latest rows
        self._request_buckets = HashBuckets(spool_dir)  # those of all others
        self._names: list[int] = []  # hashes of the names of images, if an option gives them, of the latest rows
        self._name_buckets = HashBuckets(spool_dir)  # those of all others
        self._lookup = lookup
        self._recorded = recorded_jobs
        self._submit_changed = submit_changed
        self.row_ids = RowIds()  # the ids of rows without one that are not their numbers
        # Rows without an id: whose number has another request in the ledger, and whose number is not in it.
        self._changed_numbers = self._new_numbers = 0
        self._checkpoint = checkpoint  # all jobs before it are in the ledger, unchanged
        # Ids after the checkpoint that are in the ledger. They are no longer collected once there are too many.
        self._recorded_ids: set[str] = set()
        self._on_problem = on_problem
        self._id_finder = DuplicateIdFinder(spool_dir)
        self._add_id = self._id_finder.add
        self._rows_before: list[int] = []  # for each file: the rows of the files before it
        self._total_bytes = 0
        self._jobs = checkpoint.jobs
        self._rows = checkpoint.rows
        self._recorded_jobs = checkpoint.jobs
        self._unparsable_rows = 0
        # The running numbers of conflicting rows and, at the same index, how many jobs each of them would have had.
        self._conflicting_rows = array("q")
        self._conflicting_jobs = array("q")
        self._problems: list[LineProblem] = []
        self._notes: dict[str, LineProblem] = {}
        self._pending_lookups: list[tuple[int, int, Job, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._id_finder.close()
        self._request_buckets.close()
        self._name_buckets.close()

    def read_lines(self, on_progress: OnProgress | None) -> None:
        """Read every line after the checkpoint and compare its jobs with the ledger."""
        rows_before = 0
        self._total_bytes = sum(each.file.size_bytes() for each in self._inputs)
        for each, position in with_positions(self._inputs, self._checkpoint.positions):
            self._rows_before.append(rows_before)
            self._read_file(each, position, rows_before, on_progress)
            rows_before += each.row_count
        if self._pending_lookups:
            self._run_lookups()
        self._count_hashes()
        self._report_progress(on_progress)

    def assign_ids(self) -> None:
        """Find the ids of rows without one whose numbers have changed. Call it after `read_lines`."""
        recorded = self._recorded
        may_have_moved = self._changed_numbers or (
            self._new_numbers and recorded and recorded.count > self._recorded_jobs
        )
        if recorded is None or not may_have_moved:
            return
        self.row_ids = assign_ids(self._all_rows(), recorded, submit_changed=self._submit_changed)
        self._recorded_jobs += self.row_ids.kept
        for number in self.row_ids.changed:
            self._add_conflict(number, 1, _changed_error(number, ""))

    def _all_rows(self) -> Iterator[tuple[int, tuple[Job, ...]]]:
        """Yield the jobs of all valid rows again, without duplicates that were left out."""
        dropped = self._deduplicator.was_dropped if self._deduplicator else lambda number, job: False
        for number, row in numbered_rows(self._inputs):
            yield number, tuple(job for job in self._parser.read(number, row) if not dropped(number, job))
        self._parser.unknown_fields.clear()

    def find_duplicate_ids(self) -> None:
        """Find the lines that repeat the id of an earlier line."""
        if self._checkpoint.lines and (self._recorded_ids or not self._lookup):
            self._add_ids_before_checkpoint()
        if self._may_equal_default_id and not self._checkpoint.lines:
            self._add_default_ids()
        numbers = array("q")
        for candidates in self._id_finder.candidates():
            numbers.extend(candidates)
            if len(numbers) >= CANDIDATE_BATCH:
                self._report_duplicate_ids(sorted(numbers))
                numbers = array("q")
        if numbers:
            self._report_duplicate_ids(sorted(numbers))

    def conflicting_rows(self) -> Sequence[int]:
        """Return the sorted running numbers of rows that are valid alone but conflict with a row or the ledger."""
        return array("q", sorted(set(self._conflicting_rows)))

    def result(self) -> CheckResult:
        """Return the result. Call it after `read_lines` and `find_duplicate_ids`."""
        conflicting = dict(zip(self._conflicting_rows, self._conflicting_jobs, strict=True))
        return CheckResult(
            jobs=self._jobs - sum(conflicting.values()),
            rows=self._rows - len(conflicting),
            bad_lines=self._unparsable_rows + len(conflicting),
            duplicates=self._deduplicator.dropped if self._deduplicator else 0,
            problems=tuple(self._problems),
            notes=tuple(self._notes.values()),
            recorded=self._recorded_jobs,
            repeated=self._request_buckets.count_repeats(),
            repeated_names=self._name_buckets.count_repeats(),
            unread_syntax=tuple(
                self._syntax.finding(syntax, *self._file_and_line(number))
                for syntax, (number, _) in self._syntax.first_rows.items()
            ),
            kept_arguments=tuple(self._parser.arguments.kept),
        )

    def _read_file(self, each: Input, after: FilePosition, rows_before: int, on_progress: OnProgress | None) -> None:
        # A million lines go this way, so there is no function call per line that can be avoided.
        add_request, add_id, deduplicator, lookup = (
            self._requests.append,
            self._add_id,
            self._deduplicator,
            self._lookup,
        )
        is_resumed = bool(self._checkpoint.lines)
        names = self._names if self._parser.has_names else None
        for number, jobs in self._valid_rows(each, after, rows_before, on_progress):
            if deduplicator:
                jobs = deduplicator.filter(number, jobs)  # noqa: PLW2901 - those of them that are new
            self._jobs += len(jobs)
            for job in jobs:
                add_request(hash_of_request(job))
                if names is not None:
                    names.append(hash((job.image_name or job.id or default_id(number)).casefold()))
                if job_id := job.id:
                    add_id(job_id, number)
                    if job_id.isdigit() and job_id != default_id(number):
                        self._may_equal_default_id = True
                elif is_resumed:
                    add_id(default_id(number), number)
                if lookup:
                    self._queue_lookup(number, len(jobs), job)

    def _valid_rows(
        self, each: Input, after: FilePosition, rows_before: int, on_progress: OnProgress | None
    ) -> Iterator[tuple[int, tuple[Job, ...]]]:
        """Yield the running number and the jobs of each valid row, and report the others."""
        parser, read, unknown_fields = self._parser, self._parser.read, self._parser.unknown_fields
        count_syntax, is_line = not self._syntax.is_off, each.format is Format.TEXT
        wrongly_encoded = 0
        for line_number, row in each.rows(after=after):
            number = rows_before + line_number
            jobs = read(number, row)
            if not jobs:
                self._unparsable_rows += 1
                error = parser.diagnose(number, row)
                wrongly_encoded += isinstance(error, EncodingError)
                if not isinstance(error, EncodingError) or wrongly_encoded == 1:
                    self._report(number, error)
                continue
            self._rows += 1
            if count_syntax and may_have_syntax(jobs[0].prompt):
                self._syntax.add(number, jobs[0].prompt, is_line=is_line)
            yield number, jobs
            if unknown_fields:
                self._note_unknown_fields(number)
            if not line_number % PROGRESS_LINES:
                self._count_hashes()
                self._report_progress(on_progress)
        if wrongly_encoded > 1:
            each.notices.append(
                f"{each.name}: {wrongly_encoded:,} rows are in another encoding; only the first is shown"
            )

    def _add_duplicate(self, number: int, job_id: str, first_id: str) -> None:
        if self._duplicates:
            self._duplicates.add(DuplicateJob(job_id, first_id, self._location(number)))

    def _count_hashes(self) -> None:
        self._request_buckets.add_all(self._requests)
        self._requests.clear()
        self._name_buckets.add_all(self._names)
        self._names.clear()

    def _add_default_ids(self) -> None:
        """Add the ids of the rows without one, which were left out while no other row had a number as id."""
        for number, row in numbered_rows(self._inputs):
            if any(not job.id for job in self._parser.read(number, row)):
                self._id_finder.add(self.row_ids.id_of(number), number)
        self._parser.unknown_fields.clear()

    def _add_ids_before_checkpoint(self) -> None:
        """Add the lines before the checkpoint whose id also occurs after it, or all of them if there are too many.

        After a killed run, some ids after the checkpoint are in the ledger even though no line before it has them.
        """
        wanted_ids = self._recorded_ids if 0 < len(self._recorded_ids) <= MAX_RECORDED_IDS else None
        last_line, ids = self._checkpoint.lines, self._parser.ids
        for number, row in numbered_rows(self._inputs):
            if number > last_line:
                break
            for job_id in ids(number, row):
                if wanted_ids is None or job_id in wanted_ids:
                    self._id_finder.add(job_id, number)

    def _report_duplicate_ids(self, numbers: list[int]) -> None:
        """Reread the rows with these running numbers, and report each whose id an earlier row has."""
        remaining = iter(numbers)
        next_number = next(remaining, None)
        first_by_id: dict[str, tuple[int, bool]] = {}
        for number, row in numbered_rows(self._inputs):
            if number != next_number:
                continue
            while next_number == number:  # a row with several jobs may be a candidate more than once
                next_number = next(remaining, None)
            jobs = self._parser.read(number, row)
            for job in jobs:
                if self._deduplicator and self._deduplicator.was_dropped(number, job):
                    continue
                job_id = job.id or self.row_ids.id_of(number)
                earlier, earlier_is_default = first_by_id.setdefault(job_id, (number, not job.id))
                if earlier != number:
                    error = self._duplicate_id_error(earlier, number, job_id, earlier_is_default or not job.id)
                    self._add_conflict(number, len(jobs), error)
                    break
        self._parser.unknown_fields.clear()

    def _add_conflict(self, number: int, jobs: int, error: JobError) -> None:
        """Report a row that is valid on its own, once."""
        if not self._conflicting_rows or self._conflicting_rows[-1] != number:
            self._conflicting_rows.append(number)
            self._conflicting_jobs.append(jobs)
            self._report(number, error)

    def _duplicate_id_error(self, earlier: int, later: int, job_id: str, is_default: bool) -> JobError:
        problem = f"{self._location(earlier)} and {self._location(later)} both have the id {quoted(job_id)}"
        if is_default:
            return JobError(problem, "a line without an id gets its number as id; give the other line another id")
        return JobError(problem, "give one of them another id")

    def _queue_lookup(self, number: int, jobs: int, job: Job) -> None:
        self._pending_lookups.append((number, jobs, job, wire.fingerprint(job)))
        if len(self._pending_lookups) >= LOOKUP_BATCH:
            self._run_lookups()

    def _run_lookups(self) -> None:
        """Look up the collected jobs in the ledger, and report those whose request has changed."""
        if not self._lookup:
            return
        recorded = self._lookup([job.id or default_id(number) for number, _, job, _ in self._pending_lookups])
        if self._checkpoint.lines and len(self._recorded_ids) <= MAX_RECORDED_IDS:
            self._recorded_ids.update(recorded)
        for number, jobs, job, fingerprint in self._pending_lookups:
            known = recorded.get(job.id or default_id(number))
            if known == fingerprint:
                self._recorded_jobs += 1
            elif job.id or not self._recorded:
                if known is not None:
                    self._add_conflict(number, jobs, _changed_error(number, job.id))
            elif known is None:
                self._new_numbers += 1
            else:
                self._changed_numbers += 1
        self._pending_lookups.clear()

    def _note_unknown_fields(self, number: int) -> None:
        """Note, once per name, that a field put into the metadata looks mistyped."""
        for name in self._parser.unknown_fields:
            suggestion = closest_match(name)
            if suggestion and name not in self._notes and len(self._notes) < MAX_NOTES_KEPT:
                path, line = self._file_and_line(number)
                problem = f"{quoted(name)} was put into the metadata"
                self._notes[name] = LineProblem(path, line, problem, f'did you mean "{suggestion}"?')
        self._parser.unknown_fields.clear()

    def _report(self, number: int, error: JobError) -> None:
        path, line = self._file_and_line(number)
        problem = LineProblem(path, line, error.problem, error.hint)
        if len(self._problems) < MAX_PROBLEMS_KEPT:
            self._problems.append(problem)
        if self._on_problem:
            self._on_problem(problem)

    def _file_and_line(self, number: int) -> tuple[str, int]:
        """Return the file and line of a running number."""
        file_index = bisect_right(self._rows_before, number - 1) - 1
        return self._inputs[file_index].name, number - self._rows_before[file_index]

    def _location(self, number: int) -> str:
        path, line = self._file_and_line(number)
        return f"{path}:{line}"

    def _report_progress(self, on_progress: OnProgress | None) -> None:
        if on_progress:
            on_progress(sum(each.file.read_bytes for each in self._inputs), self._total_bytes)


def _changed_error(number: int, job_id: str) -> JobError:
    """Return the error for a row whose id, empty for its number, has another request in the ledger."""
    problem = f"the line or an option changed since its id {quoted(job_id or default_id(number))} was submitted"
    if not job_id:
        return JobError(problem, "restore it; or use another --out, or --submit-changed, which pays for new images")
    if job_id.startswith(f"{default_id(number)}-"):  # of a sweep
        return JobError(problem, "restore it; or use another --out, which pays for all lines")
    return JobError(problem, "restore it, give the line a new id, or use another --out")
