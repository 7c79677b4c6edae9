"""Rows of all job files come in; how many are good, and what is wrong with the others, goes out.

Newcomers: a line can be bad by itself, by another line with the same id, or by a job on record that had the same
id and asked for another image. Only the first is seen when its line is read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from krea_batch.errors import JobError, LineProblem
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources.checkpoint import Checkpoint
from krea_batch.sources.dedupe import Deduplicator
from krea_batch.sources.duplicate_ids import DuplicateIdFinder, default_id
from krea_batch.sources.field_errors import closest_match
from krea_batch.sources.formats.line_file import FilePosition
from krea_batch.sources.inputs import Input, numbered, with_places
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.parser import RowParser

MAX_PROBLEMS_KEPT = 100  # chosen: more than anybody reads before mending; `on_problem` hears of all
MAX_NOTES_KEPT = 100  # chosen: one for each mistyped name
KNOWN_BATCH = 500  # chosen: one question to the ledger for many jobs, within the 999 variables of older SQLites
SUSPECTS_AT_ONCE = 50_000  # chosen: their ids take about 10 MB; each further batch reads the files once more
MOST_MET = 50_000  # chosen: as many ids again
PROGRESS_LINES = 10_000  # chosen: some fifty times a second

OnProblem = Callable[[LineProblem], None]
OnProgress = Callable[[int, int], None]
Known = Callable[[Sequence[str]], Mapping[str, bytes]]


class Checked(msgspec.Struct, frozen=True):
    """What a whole check found: the good `rows` and their `jobs`; of `problems` and `notes` only the first.

    `duplicates` were left out, since an earlier job asks for the same.
    """

    jobs: int
    rows: int
    bad_lines: int
    duplicates: int
    problems: tuple[LineProblem, ...]
    notes: tuple[LineProblem, ...]


class Check:
    """One check in progress. A context manager, since it may hold a temporary file."""

    def __init__(
        self,
        inputs: Sequence[Input],
        reader: RowParser,
        known: Known | None,
        on_problem: OnProblem | None,
        spool_dir: Path | None,
        *,
        before: Checkpoint,
        dedupe: bool,
    ) -> None:
        self._inputs = inputs
        self._reader = reader
        self._twins = Deduplicator() if dedupe else None
        self._known = known
        self._before = before  # up to there all jobs are on record as they are
        self._met: set[str] = set()  # ids behind it that are on record; no more of them once they are too many
        self._on_problem = on_problem
        self._ids = DuplicateIdFinder(spool_dir)
        self._lines_before: list[int] = []  # for each file: rows of the files before
        self._all_bytes = 0
        self._jobs = before.jobs
        self._rows = before.rows
        self._read_badly = 0
        self._bad_later = array("q")  # the numbers of rows, and beside it how many jobs each of them would have been
        self._bad_jobs = array("q")
        self._problems: list[LineProblem] = []
        self._notes: dict[str, LineProblem] = {}
        self._asking: list[tuple[int, int, str, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()

    def read_lines(self, on_progress: OnProgress | None) -> None:
        """Read every line behind the mark by itself, and hold it against the record."""
        lines_before = 0
        self._all_bytes = sum(each.file.size_bytes() for each in self._inputs)
        for each, place in with_places(self._inputs, self._before.places):
            self._lines_before.append(lines_before)
            self._read_file(each, place, lines_before, on_progress)
            lines_before += each.row_count
        if self._asking:
            self._ask()
        self._tell_progress(on_progress)

    def compare_ids(self) -> None:
        """Find the lines that have the id of an earlier line."""
        if self._before.lines and (self._met or not self._known):
            self._add_met()
        numbers = array("q")
        for suspects in self._ids.candidates():
            numbers.extend(suspects)
            if len(numbers) >= SUSPECTS_AT_ONCE:
                self._compare(sorted(numbers))
                numbers = array("q")
        if numbers:
            self._compare(sorted(numbers))

    def skipped(self) -> Sequence[int]:
        """Running numbers, in order, of the rows that read well and are bad all the same."""
        return array("q", sorted(set(self._bad_later)))

    def result(self) -> Checked:
        bad_later = dict(zip(self._bad_later, self._bad_jobs, strict=True))
        return Checked(
            jobs=self._jobs - sum(bad_later.values()),
            rows=self._rows - len(bad_later),
            bad_lines=self._read_badly + len(bad_later),
            duplicates=self._twins.dropped if self._twins else 0,
            problems=tuple(self._problems),
            notes=tuple(self._notes.values()),
        )

    def _read_file(self, each: Input, after: FilePosition, lines_before: int, on_progress: OnProgress | None) -> None:
        reader, read, add = self._reader, self._reader.read, self._ids.add
        for line_number, row in each.rows(after=after):
            number = lines_before + line_number
            jobs = read(number, row)
            if not jobs:
                self._read_badly += 1
                self._report(number, reader.diagnose(number, row))
                continue
            if self._twins:
                jobs = self._twins.filter(number, jobs)
            self._jobs += len(jobs)
            self._rows += 1
            for job in jobs:
                add(job.id or default_id(number), number)
                if self._known:
                    self._remember(number, len(jobs), job)
            if reader.unknown_fields:
                self._note_strange(number)
            if on_progress and not line_number % PROGRESS_LINES:
                self._tell_progress(on_progress)

    def _add_met(self) -> None:
        """Add the lines before the mark that have an id of those behind it; all of them where these are too many.

        After a run that was killed some ids behind it are on record, whether or not they stand before it, too.
        """
        met = self._met if 0 < len(self._met) <= MOST_MET else None
        last, ids = self._before.lines, self._reader.ids
        for number, row in numbered(self._inputs):
            if number > last:
                break
            for job_id in ids(number, row):
                if met is None or job_id in met:
                    self._ids.add(job_id, number)

    def _compare(self, numbers: list[int]) -> None:
        """Read the rows of these running numbers again, and report each whose id an earlier one has."""
        waiting = iter(numbers)
        wanted = next(waiting, None)
        first: dict[str, tuple[int, bool]] = {}
        for number, row in numbered(self._inputs):
            if number != wanted:
                continue
            while wanted == number:  # a row of several jobs may be suspected more than once
                wanted = next(waiting, None)
            jobs = self._reader.read(number, row)
            for job in jobs:
                if self._twins and self._twins.was_dropped(number, job):
                    continue
                job_id = job.id or default_id(number)
                earlier, earlier_is_default = first.setdefault(job_id, (number, not job.id))
                if earlier != number:
                    twice = self._twice(earlier, number, job_id, earlier_is_default or not job.id)
                    self._bad(number, len(jobs), twice)
                    break
        self._reader.unknown_fields.clear()

    def _bad(self, number: int, jobs: int, error: JobError) -> None:
        """Report a row that read well, once."""
        if not self._bad_later or self._bad_later[-1] != number:
            self._bad_later.append(number)
            self._bad_jobs.append(jobs)
            self._report(number, error)

    def _twice(self, earlier: int, later: int, job_id: str, is_default: bool) -> JobError:
        wrong = f"{self._place(earlier)} and {self._place(later)} both have the id {quoted(job_id)}"
        if is_default:
            return JobError(wrong, "a line without an id has its number for one; give the other line another id")
        return JobError(wrong, "give one of them another id")

    def _remember(self, number: int, jobs: int, job: Job) -> None:
        self._asking.append((number, jobs, job.id or default_id(number), wire.fingerprint(job)))
        if len(self._asking) >= KNOWN_BATCH:
            self._ask()

    def _ask(self) -> None:
        """Ask which of the remembered jobs are on record, and whether as another image."""
        if not self._known:
            return
        known = self._known([job_id for _, _, job_id, _ in self._asking])
        if self._before.lines and len(self._met) <= MOST_MET:
            self._met.update(known)
        for number, jobs, job_id, fingerprint in self._asking:
            if known.get(job_id, fingerprint) != fingerprint:
                wrong = f"the line changed since its id {quoted(job_id)} was submitted"
                self._bad(number, jobs, JobError(wrong, "give it a new id, or choose another --out"))
        self._asking.clear()

    def _note_strange(self, number: int) -> None:
        """Note, once for each name, that a field which went into the metadata looks like a mistyped one."""
        for name in self._reader.unknown_fields:
            meant = closest_match(name)
            if meant and name not in self._notes and len(self._notes) < MAX_NOTES_KEPT:
                path, line = self._where(number)
                wrong = f"{quoted(name)} went into the metadata"
                self._notes[name] = LineProblem(path, line, wrong, f'did you mean "{meant}"?')
        self._reader.unknown_fields.clear()

    def _report(self, number: int, error: JobError) -> None:
        path, line = self._where(number)
        problem = LineProblem(path, line, error.problem, error.hint)
        if len(self._problems) < MAX_PROBLEMS_KEPT:
            self._problems.append(problem)
        if self._on_problem:
            self._on_problem(problem)

    def _where(self, number: int) -> tuple[str, int]:
        """File and line of a running number."""
        at = bisect_right(self._lines_before, number - 1) - 1
        return self._inputs[at].name, number - self._lines_before[at]

    def _place(self, number: int) -> str:
        path, line = self._where(number)
        return f"{path}:{line}"

    def _tell_progress(self, on_progress: OnProgress | None) -> None:
        if on_progress:
            on_progress(sum(each.file.read_bytes for each in self._inputs), self._all_bytes)
