"""Compares the ledger with results.jsonl and the images, before anything is sent.

The ledger is written before results.jsonl and before an image gets its name. So if the ledger does not have the job
of a row or of an image, it is not the current ledger of this run: it was deleted, restored from an older copy, or
copied without its WAL. A run would submit and pay for these jobs a second time.

A row that is older than the ledger is normal: rows are appended later, and a run may be killed in between.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from krea_batch.errors import RunDirError
from krea_batch.jobs import State
from krea_batch.ledger.adoption import adopt_spill
from krea_batch.ledger.live_runs import fence_killed_runs
from krea_batch.ledger.opening import is_in_database, open_for_changes, read_if_any
from krea_batch.ledger.protocol import Ledger, LedgerReader
from krea_batch.ledger.rows import KnownJob
from krea_batch.ledger.writer import LedgerWriter
from krea_batch.storage.async_io import run_to_completion
from krea_batch.storage.image_file import PART_SUFFIX, stale_parts
from krea_batch.storage.results_rows import matches_mark, read_lines
from krea_batch.storage.run_dir import IMAGES, LEDGER, RESULTS, existing_images, file_size
from krea_batch.storage.spill import SPILL, read_spill

BATCH_ROWS = 500  # chosen: rows that are compared in one query
MAX_EXAMPLES = 3  # chosen: enough to recognise a run

_SUFFIX = re.compile(
    r"[-~](?:[2-9]|[1-9][0-9]+)$"
)  # of a further image, or of a name that was taken; see storage.run_dir


class RowHead(msgspec.Struct, frozen=True):
    """What is compared of a row of results.jsonl. Other fields are not read."""

    id: str
    status: str
    request_id: str | None = None
    attempts: int = 0


_read_head = msgspec.json.Decoder(RowHead).decode


async def open_ledger(out: Path, *, alone: bool) -> LedgerWriter:
    """Call `open_checked` in a thread, and return a writer for use on this event loop."""
    opening = asyncio.get_running_loop().run_in_executor(None, partial(open_checked, out, alone=alone))
    try:
        return LedgerWriter(await run_to_completion(opening))
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        raise


def open_checked(out: Path, *, alone: bool = True) -> Ledger:
    """Check the run directory, which is locked, and open its ledger.

    With `alone`, no other process has the directory: the request_ids are recorded that the ledger could not take, and
    all runs that have not ended are fenced, since their processes were killed. A ledger in a database may have runs
    on other machines, which are not fenced here. Raises RunDirError as `check_run_dir` does, LedgerError, and
    OSError. Blocks.
    """
    check_run_dir(out)
    ledger = open_for_changes(out)
    try:
        if alone:
            adopt_spill(ledger, out)
        if alone and not is_in_database(out):
            # A POST without a result may be charged, so its job must be ambiguous before anything is decided.
            fence_killed_runs(ledger)
    except BaseException:
        ledger.close()
        raise
    return ledger


def check_run_dir(out: Path) -> None:
    """Raise RunDirError if the run directory has traces of jobs that its ledger does not have. Blocks.

    Only the end of results.jsonl is read, after the part that the ledger has recorded as its own: nothing after a
    normal end, the rows of the last second after a kill. Raises LedgerError if the ledger cannot be read.
    """
    try:
        with read_if_any(out) as ledger:
            ledger.read(partial(_check, out=out))
    except OSError as error:
        raise RunDirError(out, f"cannot be read ({error})", "check its permissions and the disk") from error


def find_known_jobs(
    store: LedgerReader, out: Path, names: Mapping[str, str], *, had_images: bool = True
) -> dict[str, bytes]:
    """Return the fingerprints of those ids that the ledger has; the others may be submitted for the first time.

    `names` maps the ids of the jobs to the names of their images, without extension. Raises RunDirError if an image
    of a job exists that the ledger does not have, because that job was paid for. Other files in images/ do not
    matter. Without `had_images`, images/ was empty when this process locked the run directory, and nothing is looked
    up.
    """
    known = store.fingerprints(list(names))
    new = (name for job_id, name in names.items() if job_id not in known)
    if had_images and (images := existing_images(out, new)):
        require_no_images(store, out, images)
    return known


def require_no_images(store: LedgerReader, out: Path, names: Sequence[str]) -> None:
    """Raise RunDirError if one of these existing images belongs to no accepted job of the ledger."""
    if unknown := unknown_images(store, names):
        raise _image_error(out, unknown)


def unknown_images(store: LedgerReader, names: Iterable[str]) -> list[str]:
    """Return those names of images that no accepted job of the ledger can have written.

    A name is a path below images/, with slashes.
    """
    remaining = iter(names)
    unknown: list[str] = []
    while batch := list(islice(remaining, BATCH_ROWS)):
        files = store.accepted_files([owner for name in batch for owner in _possible_owners(name)])
        unknown += [name for name in batch if not _is_of_any(name, files)]
    if not unknown:
        return []
    # On some file systems x.png and X.png are one file.
    folded = {owner for name in unknown for owner in _possible_owners(name.casefold())}
    files = {
        owner: paths and tuple(map(str.casefold, paths))
        for owner, paths in store.accepted_files_folded(folded).items()
    }
    return [name for name in unknown if not _is_of_any(name.casefold(), files)]


def unknown_parts(store: LedgerReader, parts: Iterable[str]) -> list[str]:
    """Return those names of `.part` files that no accepted job of the ledger can have written; see `ImageFile`."""
    owners = {part: _possible_owners_of_part(part.removesuffix(PART_SUFFIX)) for part in parts}
    accepted = store.accepted_ids([job_id for job_ids in owners.values() for job_id in job_ids])
    return [part for part, job_ids in owners.items() if accepted.isdisjoint(job_ids)]


def is_later(row: RowHead, job: KnownJob, *, request_known: bool) -> bool:
    """Return whether a row of results.jsonl is from a later state of its job than the ledger. Pure.

    `request_known` is whether the ledger has a submission with the row's request_id. With the same number of
    attempts, the ledger may be later because the user has decided something (retry, resolve) or the job was resumed.
    """
    if row.attempts != job.attempts:
        return row.attempts > job.attempts
    if row.request_id is not None and not request_known:
        return True
    if row.status == job.state:
        return False
    match job.state:
        case State.SUBMITTING:
            return True
        case State.AMBIGUOUS:  # to be decided: a row that has a result, or the decision, is later
            return row.status in (State.SUCCEEDED, State.REJECTED, State.CANCELLED)
        case State.ACCEPTED | State.FINISHED | State.TIMED_OUT:
            ended = row.status in (State.SUCCEEDED, State.FAILED, State.ERRORED)
            return ended and row.request_id == job.request_id
        case _:
            return row.status == State.SUCCEEDED and job.state is not State.SUCCEEDED


def _possible_owners(image_name: str) -> list[str]:
    """Return the names of the jobs that an image may belong to: x-2.png is of x-2, or the second of x."""
    owners = [image_name.rpartition(".")[0]]
    while (shorter := _SUFFIX.sub("", owners[-1])) != owners[-1]:
        owners.append(shorter)
    return owners


def _possible_owners_of_part(name: str) -> list[str]:
    """Return the ids of the jobs of a `.part` file, without suffix: <id>.<job>, or <id>.<job>.<run>."""
    without_run, _, number = name.rpartition(".")
    return [*_possible_owners(name), *(_possible_owners(without_run) if number.isdecimal() else [])]


def _is_of_any(name: str, files: Mapping[str, tuple[str, ...] | None]) -> bool:
    """Return whether an image can be of one of these accepted jobs, which have these files, or none yet."""
    stem, *others = _possible_owners(name)
    if stem in files:
        return True
    return any(
        owner in files and ((paths := files[owner]) is None or f"{IMAGES}/{name}" in paths) for owner in others
    )


def _check(ledger: LedgerReader, out: Path) -> None:
    has_jobs = ledger.has_jobs()
    comparison = _Comparison()
    comparison.read(ledger, out / RESULTS)
    if comparison.unknown or comparison.later:
        raise comparison.error(out, ledger_exists=(out / LEDGER).exists(), has_jobs=has_jobs)
    if not has_jobs:
        _require_fresh(out, unreadable=comparison.unreadable)
    spilled = [line.spilled for line in read_spill(out) if line.spilled]
    for each in spilled:
        if ledger.find_numbered_job(each.job_id) is None:
            raise RunDirError(
                out,
                f"{SPILL} has the request_id of job {each.job_id!r}, which {LEDGER} does not have: it is not the"
                " ledger of this run",
                f"copy the {LEDGER} of this run back together with {LEDGER}-wal, or move {SPILL} away",
            )
    if (mark := ledger.results_mark()) and file_size(out / RESULTS) < mark.size_bytes:
        # Without its rows, the images are the only trace that an older ledger leaves.
        pending = ledger.unsubmitted_names()
        while names := list(islice(pending, BATCH_ROWS)):
            require_no_images(ledger, out, existing_images(out, names))


def _require_fresh(out: Path, *, unreadable: int) -> None:
    """Raise RunDirError if the directory has files that only a run writes; its ledger has no jobs."""
    if unreadable:
        lines = "a line that is not a row" if unreadable == 1 else f"{unreadable:,} lines that are not rows"
        raise RunDirError(
            out,
            f"{RESULTS} has {lines} of krea-batch",
            "use another run directory, or move the file away",
        )
    if parts := sorted(part.name for part in stale_parts(out)):
        raise RunDirError(
            out,
            f"{IMAGES}/ has unfinished downloads ({_examples(parts)}), but {LEDGER} is missing or has"
            " no jobs: these jobs are paid for, and would be paid for again",
            f"copy the {LEDGER} of this run back together with {LEDGER}-wal, or delete these files to pay for the"
            " jobs again",
        )


class _Comparison:
    """What results.jsonl has that the ledger does not have."""

    def __init__(self) -> None:
        self.unknown: list[str] = []  # the first ids of jobs that are not in the ledger
        self.unknown_rows = 0
        self.later: list[str] = []  # the first ids of jobs with which the ledger is behind
        self.later_rows = 0
        self.unreadable = 0

    def read(self, ledger: LedgerReader, results: Path) -> None:
        """Compare the rows that the ledger does not know to be its own."""
        mark = ledger.results_mark()
        start_bytes = mark.size_bytes if mark and matches_mark(results, mark) else 0
        heads = self._heads(results, start_bytes)
        while batch := list(islice(heads, BATCH_ROWS)):
            self._compare(ledger, batch)

    def error(self, out: Path, *, ledger_exists: bool, has_jobs: bool) -> RunDirError:
        """Return what was probably left behind, and what to do."""
        if not has_jobs:
            state = "has no jobs" if ledger_exists else "is missing"
            found = f"{LEDGER} {state}, but {RESULTS} has {_rows(self.unknown_rows)} (jobs {_examples(self.unknown)})"
        else:
            parts = []
            if self.unknown_rows:
                parts.append(f"{_rows(self.unknown_rows)} of jobs that it does not have ({_examples(self.unknown)})")
            if self.later_rows:
                parts.append(
                    f"{_rows(self.later_rows)} of jobs that it has in an earlier state ({_examples(self.later)})"
                )
            found = (
                f"{LEDGER} is older than {RESULTS}, which has {' and '.join(parts)}; it was restored from an older"
                f" copy, or copied without {LEDGER}-wal"
            )
        return RunDirError(
            out,
            f"{found}. These jobs would be paid for again",
            f"copy the {LEDGER} of this run back together with {LEDGER}-wal, or rebuild what is missing with"
            f" krea-batch recover {out}",
        )

    def _heads(self, results: Path, start_bytes: int) -> Iterator[RowHead]:
        for line in read_lines(results, start_bytes):
            try:
                if line.data is not None:
                    yield _read_head(line.data)
                    continue
            except msgspec.MsgspecError:
                pass
            self.unreadable += 1

    def _compare(self, ledger: LedgerReader, rows: Sequence[RowHead]) -> None:
        known = ledger.known_jobs([row.id for row in rows])
        # Most rows have the request_id that the job has, so that no query is needed.
        others = [
            row.request_id
            for row in rows
            if row.request_id and row.id in known and known[row.id].request_id != row.request_id
        ]
        known_request_ids = ledger.known_request_ids(others) if others else {}
        for row in rows:
            job = known.get(row.id)
            if job is None:
                self.unknown_rows += 1
                _add_example(self.unknown, row.id)
                continue
            request_known = row.request_id == job.request_id or row.request_id in known_request_ids
            if is_later(row, job, request_known=request_known):
                self.later_rows += 1
                _add_example(self.later, row.id)


def _add_example(examples: list[str], job_id: str) -> None:
    if len(examples) <= MAX_EXAMPLES and job_id not in examples:
        examples.append(job_id)


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_EXAMPLES]) + (" …" if len(names) > MAX_EXAMPLES else "")


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _image_error(out: Path, names: Sequence[str]) -> RunDirError:
    count = f"{len(names):,} images" if len(names) > 1 else "an image"
    return RunDirError(
        out,
        f"{IMAGES}/ has {count} of jobs that {LEDGER} would submit for the first time ({_examples(names)}):"
        " they are probably paid for, and the ledger or its WAL was lost",
        f"copy the {LEDGER} of this run back together with {LEDGER}-wal, or move these files away to pay for the jobs"
        " again",
    )
