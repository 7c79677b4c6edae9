"""The check of job files before a run: what it shows, and what it raises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from krea_batch.cli.options.input_options import expansion_notices
from krea_batch.cli.ui.check_progress import CheckProgress
from krea_batch.cli.ui.formatting import say
from krea_batch.errors import JobFileError, LineProblem
from krea_batch.ledger import LedgerReader, read_ledger
from krea_batch.ledger.paging import iter_rows
from krea_batch.settings import Settings
from krea_batch.sources import CheckResult, JobFiles
from krea_batch.sources.moved_rows import RecordedJobs
from krea_batch.storage.run_dir import has_ledger

MAX_REPEATED_PROBLEMS = 5  # chosen: more lines with the same problem add nothing


def check_jobs(files: JobFiles, settings: Settings, *, skip_invalid: bool, quiet: bool) -> CheckResult:
    """Check every line before anything is charged. Raises JobFileError for invalid lines, unless they are skipped."""
    with ExitStack() as stack:
        store = stack.enter_context(read_ledger(settings.out)) if has_ledger(settings.out) else None
        if store:
            files.resume_from(*store.read(LedgerReader.checkpoint))
        with CheckProgress(quiet=quiet) as progress:
            checked = files.check(
                lookup=_fingerprint_lookup(store) if store else None,
                on_progress=progress.update,
                recorded_jobs=_recorded_jobs(store) if store else None,
            )
    shown = _limit_repeats(checked.problems)
    for problem in shown:
        say(str(problem))
    if checked.bad_lines > len(shown):
        similar = " like these" if len(shown) < len(checked.problems) else ""
        say(f"… and {checked.bad_lines - len(shown):,} more{similar}; krea-batch validate shows all")
    for notice in () if quiet else (*files.notices(), *map(str, checked.notes), *expansion_notices(checked)):
        say(notice)
    if checked.bad_lines and not skip_invalid:
        raise JobFileError(checked.problems, checked.bad_lines)
    if not checked.jobs:
        raise files.no_jobs_error()
    return checked


def _limit_repeats(problems: Iterable[LineProblem]) -> list[LineProblem]:
    """Return the problems in order, only the first of equal ones: an invalid field is usually in every line."""
    repeats = Counter[tuple[str, str]]()
    shown = []
    for problem in problems:
        repeats[text := (problem.problem, problem.hint)] += 1
        if repeats[text] <= MAX_REPEATED_PROBLEMS:
            shown.append(problem)
    return shown


def _fingerprint_lookup(store: LedgerReader) -> Callable[[Sequence[str]], Mapping[str, bytes]]:
    """Return a function that looks up the fingerprints of those ids that the ledger has."""

    def known(job_ids: Sequence[str]) -> Mapping[str, bytes]:
        fingerprints: dict[str, bytes] = store.read(lambda store: store.fingerprints(job_ids))[0]
        return fingerprints

    return known


def _recorded_jobs(store: LedgerReader) -> RecordedJobs:
    """Return the jobs of the ledger for rows without an id."""

    def page(after_job_no: int, limit: int) -> list[tuple[int, str, bytes]]:
        rows: list[tuple[int, str, bytes]] = store.read(lambda store: store.numbered_jobs(after_job_no, limit))[0]
        return rows

    def numbered() -> Iterator[tuple[str, bytes]]:
        return ((job_id, fingerprint) for _, job_id, fingerprint in iter_rows(page, lambda row: row[0]))

    (counts,) = store.read(LedgerReader.counts)
    return RecordedJobs(sum(counts.values()), numbered)
