"""Lines of all job files come in; how many are good, and what is wrong with the others, goes out.

Newcomers: a line can be bad by itself, by another line with the same id, or by a job on record that had the same
id and asked for another picture. Only the first is seen when its line is read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Self

import msgspec

from krea_batch.errors import JobError, LineProblem
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources.ids import IdSpill, default_id
from krea_batch.sources.jsonl import JsonLines
from krea_batch.sources.lines import LineFile, numbered
from krea_batch.sources.sentences import nearest
from krea_batch.sources.syntax import shown

MAX_PROBLEMS_KEPT = 100  # chosen: more than anybody reads before mending; `on_problem` hears of all
MAX_NOTES_KEPT = 100  # chosen: one for each mistyped name
KNOWN_BATCH = 500  # chosen: one question to the ledger for many jobs, within the 999 variables of older SQLites
SUSPECTS_AT_ONCE = 50_000  # chosen: their ids take about 10 MB; each further batch reads the files once more
PROGRESS_LINES = 10_000  # chosen: some fifty times a second

OnProblem = Callable[[LineProblem], None]
OnProgress = Callable[[int, int], None]
Known = Callable[[Sequence[tuple[str, bytes]]], Collection[str]]


class Checked(msgspec.Struct, frozen=True):
    """What a whole check found. `jobs` are good; `problems` and `notes` are only the first ones."""

    jobs: int
    bad_lines: int
    problems: tuple[LineProblem, ...]
    notes: tuple[LineProblem, ...]


class Check:
    """One check in progress. A context manager, since it may hold a temporary file."""

    def __init__(
        self,
        files: Sequence[LineFile],
        reader: JsonLines,
        known: Known | None,
        on_problem: OnProblem | None,
        spool_dir: Path | None,
        *,
        known_lines: int = 0,
    ) -> None:
        self._files = files
        self._reader = reader
        self._known = known
        self._known_lines = known_lines  # so many of the first lines are on record as they are
        self._on_problem = on_problem
        self._ids = IdSpill(spool_dir)
        self._lines_before: list[int] = []  # for each file: lines of the files before
        self._all_bytes = 0
        self._read_well = 0
        self._read_badly = 0
        self._bad_later = array("q")
        self._problems: list[LineProblem] = []
        self._notes: dict[str, LineProblem] = {}
        self._asking: list[tuple[int, str, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()

    def read_lines(self, on_progress: OnProgress | None) -> None:
        """Read every line by itself, and hold it against the record."""
        lines_before = 0
        self._all_bytes = sum(file.size_bytes() for file in self._files)
        for file in self._files:
            self._lines_before.append(lines_before)
            self._read_file(file, lines_before, on_progress)
            lines_before += file.line_count
        if self._asking:
            self._ask()
        self._tell_progress(on_progress)

    def compare_ids(self) -> None:
        """Find the lines that have the id of an earlier line."""
        numbers = array("q")
        for suspects in self._ids.suspects():
            numbers.extend(suspects)
            if len(numbers) >= SUSPECTS_AT_ONCE:
                self._compare(sorted(numbers))
                numbers = array("q")
        if numbers:
            self._compare(sorted(numbers))

    def skipped(self) -> Sequence[int]:
        """Running numbers, in order, of the lines that read well and are bad all the same."""
        return array("q", sorted(set(self._bad_later)))

    def result(self) -> Checked:
        bad_later = len(self.skipped())
        return Checked(
            self._read_well - bad_later,
            self._read_badly + bad_later,
            tuple(self._problems),
            tuple(self._notes.values()),
        )

    def _read_file(self, file: LineFile, lines_before: int, on_progress: OnProgress | None) -> None:
        reader, read, add = self._reader, self._reader.read, self._ids.add
        for line_number, line in file.lines():
            number = lines_before + line_number
            job = read(line)
            if job is None:
                self._read_badly += 1
                self._report(number, reader.explain(line))
                continue
            self._read_well += 1
            add(job.id or default_id(number), number)
            if reader.strange:
                self._note_strange(number)
            if self._known and number > self._known_lines:
                self._remember(number, job)
            if on_progress and not line_number % PROGRESS_LINES:
                self._tell_progress(on_progress)

    def _compare(self, numbers: list[int]) -> None:
        """Read the lines of these running numbers again, and report each whose id an earlier one has."""
        waiting = iter(numbers)
        wanted = next(waiting, None)
        first: dict[str, tuple[int, bool]] = {}
        for number, line in numbered(self._files):
            if number != wanted:
                continue
            wanted = next(waiting, None)
            job = self._reader.read(line)
            if job is None:
                continue  # not to be: the lines are proven to be the same as before
            job_id = job.id or default_id(number)
            earlier, earlier_is_default = first.setdefault(job_id, (number, not job.id))
            if earlier != number:
                self._bad_later.append(number)
                self._report(number, self._twice(earlier, number, job_id, earlier_is_default or not job.id))
        self._reader.strange.clear()

    def _twice(self, earlier: int, later: int, job_id: str, is_default: bool) -> JobError:
        wrong = f"{self._place(earlier)} and {self._place(later)} both have the id {shown(job_id)}"
        if is_default:
            return JobError(wrong, "a line without an id has its number for one; give the other line another id")
        return JobError(wrong, "give one of them another id")

    def _remember(self, number: int, job: Job) -> None:
        self._asking.append((number, job.id or default_id(number), wire.fingerprint(job)))
        if len(self._asking) >= KNOWN_BATCH:
            self._ask()

    def _ask(self) -> None:
        """Ask which of the remembered jobs are on record as another picture."""
        if not self._known:
            return
        changed = set(self._known([(job_id, fingerprint) for _, job_id, fingerprint in self._asking]))
        for number, job_id, _ in self._asking:
            if job_id in changed:
                self._bad_later.append(number)
                wrong = f"the line changed since its id {shown(job_id)} was submitted"
                self._report(number, JobError(wrong, "give it a new id, or choose another --out"))
        self._asking.clear()

    def _note_strange(self, number: int) -> None:
        """Note, once for each name, that a field which went into the metadata looks like a mistyped one."""
        for name in self._reader.strange:
            meant = nearest(name)
            if meant and name not in self._notes and len(self._notes) < MAX_NOTES_KEPT:
                path, line = self._where(number)
                wrong = f"{shown(name)} went into the metadata"
                self._notes[name] = LineProblem(path, line, wrong, f'did you mean "{meant}"?')
        self._reader.strange.clear()

    def _report(self, number: int, error: JobError) -> None:
        path, line = self._where(number)
        problem = LineProblem(path, line, error.wrong, error.right)
        if len(self._problems) < MAX_PROBLEMS_KEPT:
            self._problems.append(problem)
        if self._on_problem:
            self._on_problem(problem)

    def _where(self, number: int) -> tuple[str, int]:
        """File and line of a running number."""
        at = bisect_right(self._lines_before, number - 1) - 1
        return self._files[at].name, number - self._lines_before[at]

    def _place(self, number: int) -> str:
        path, line = self._where(number)
        return f"{path}:{line}"

    def _tell_progress(self, on_progress: OnProgress | None) -> None:
        if on_progress:
            on_progress(sum(file.read_bytes for file in self._files), self._all_bytes)
