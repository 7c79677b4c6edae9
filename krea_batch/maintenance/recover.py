"""Rebuild what a ledger does not have from results.jsonl.

    report = recover_run(Path("runs/cats"), confirm=lambda report: report.changes > 0)

A ledger that was deleted, restored from an older copy, or copied without its WAL does not know jobs that are paid.
results.jsonl has a row of each job that has ended. Jobs that were in flight have no row, so they cannot be rebuilt.
Nothing is sent from here, and no file is changed but the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from krea_batch.errors import RunDirError
from krea_batch.gateway import wire
from krea_batch.jobs import Outcome, State, convert_job
from krea_batch.ledger.consistency import unknown_images, unknown_parts
from krea_batch.ledger.rows import seconds_of
from krea_batch.ledger.sqlite import SqliteLedger
from krea_batch.ledger.sqlite.rebuild import rebuild_job
from krea_batch.storage.image_file import stale_parts
from krea_batch.storage.results_rows import read_lines
from krea_batch.storage.run_dir import IMAGES, LEDGER, LEDGER_ADDRESS, RESULTS, RunDir, image_names, is_image

MAX_UNREADABLE_LINES = 10  # chosen: enough to find them

_read_row = msgspec.json.Decoder(Outcome).decode


class RecoverReport(msgspec.Struct):
    """What was found, and what is rebuilt.

    `added` and `updated` are the numbers of jobs by their state, `known_rows` the rows that the ledger knew.
    `unreadable` has the numbers of the first lines that are not rows. `unknown_images` and `unfinished_downloads` are
    files in images/ of which no job is known to be accepted. `missing_images` counts the images of rows whose files
    are not there.
    """

    ledger_was_missing: bool
    rows: int = 0
    added: dict[State, int] = {}
    updated: dict[State, int] = {}
    known_rows: int = 0
    unreadable: list[int] = []
    unreadable_lines: int = 0
    last_line_incomplete: bool = False
    unknown_images: list[str] = []
    unfinished_downloads: list[str] = []
    missing_images: int = 0

    @property
    def changes(self) -> int:
        """The number of jobs that are added or updated."""
        return sum(self.added.values()) + sum(self.updated.values())


def recover_run(out: Path, confirm: Callable[[RecoverReport], bool] = lambda report: True) -> RecoverReport:
    """Add to the ledger of a run the jobs of results.jsonl that it does not have, or has in an earlier state.

    `confirm` is called with what would be done if there is something to do; if it returns False, nothing is changed.
    Idempotent. Raises RunDirError if there is no results.jsonl, if another process uses the directory, or if the two
    files are of different runs; LedgerError if the ledger cannot be read. Blocks.
    """
    if not (out / RESULTS).is_file():
        raise RunDirError(out, f"it has no {RESULTS} to rebuild a ledger from", "pass the --out of a run")
    if (out / LEDGER_ADDRESS).exists():
        raise RunDirError(
            out / LEDGER_ADDRESS,
            "the ledger is in a database, which cannot be rebuilt from results.jsonl",
            "restore the database from a backup",
        )
    with ExitStack() as stack:
        run_dir = RunDir(out)
        run_dir.lock()
        stack.callback(run_dir.unlock)
        report = RecoverReport(ledger_was_missing=not run_dir.ledger.exists())
        if report.ledger_was_missing:
            stack.callback(_remove_empty_ledger, run_dir.ledger)
        store = SqliteLedger.open(run_dir.ledger)
        stack.callback(store.close)
        try:
            _require_undamaged(store)
            _rebuild(store, out, report, confirm)
        except OSError as error:
            raise RunDirError(out, f"cannot be read ({error})", "check its permissions and the disk") from error
    return report


class _NotConfirmed(Exception):
    """Rolls the transaction back."""


def _rebuild(store: SqliteLedger, out: Path, report: RecoverReport, confirm: Callable[[RecoverReport], bool]) -> None:
    def rebuild_all(store: SqliteLedger) -> None:
        _rebuild_rows(store, out, report)
        _inspect_images(store, out, report)
        if not report.changes or not confirm(report):
            raise _NotConfirmed
        # The next run reads every row again, and then rewrites the file from the ledger.
        store.set_results_size(None)

    try:
        store.transaction(rebuild_all)
    except _NotConfirmed:
        return
    store.maintain()


def _rebuild_rows(store: SqliteLedger, out: Path, report: RecoverReport) -> None:
    last_job_no = store.last_job_no()
    updated: dict[int, State] = {}
    for row, body in _rows(out / RESULTS, report):
        report.missing_images += sum(not _exists(out, file.path) for file in row.files)
        job_no = rebuild_job(store, row, body, wire.fingerprint_of(body))
        if job_no is None:
            report.known_rows += 1
        elif job_no <= last_job_no:
            updated[job_no] = row.status
    report.added = store.job_counts_after(last_job_no)
    for state in updated.values():
        report.updated[state] = report.updated.get(state, 0) + 1


def _rows(results: Path, report: RecoverReport) -> Iterator[tuple[Outcome, bytes]]:
    """Yield each readable row with its request, encoded as it was sent."""
    for line in read_lines(results):
        try:
            yield decode_row(line.data or b"")
            report.rows += 1
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
            if not line.is_complete:
                report.last_line_incomplete = True
                continue
            report.unreadable_lines += 1
            if len(report.unreadable) < MAX_UNREADABLE_LINES:
                report.unreadable.append(line.number)


def decode_row(line: bytes) -> tuple[Outcome, bytes]:
    """Return the outcome in a line of results.jsonl and its request, encoded as it was sent.

    Fields that are not known are left out. Raises errors of msgspec, and ValueError, TypeError, OverflowError or
    RecursionError, if the line is no row of a job that has ended.
    """
    row = _read_row(line)
    job = convert_job({**row.request, "id": row.id})  # checks the id, which names files
    if not row.status.info.final:
        raise ValueError(f"a row of a job that is {row.status}")
    if row.request_id is not None and not wire.is_request_id(row.request_id):
        raise ValueError("not a request_id")
    for instant in (row.submitted_at, row.accepted_at, row.finished_at, row.stored_at):
        seconds_of(instant)
    return row, wire.encode_body(job)


def _inspect_images(store: SqliteLedger, out: Path, report: RecoverReport) -> None:
    unknown_names = unknown_images(store, image_names(out))
    report.unknown_images = sorted(name for name in unknown_names if is_image(out / IMAGES / name))
    report.unfinished_downloads = sorted(unknown_parts(store, (part.name for part in stale_parts(out))))


def _exists(out: Path, path: str) -> bool:
    """Return whether a stored image is there; an image in an object store is not looked for."""
    return "://" in path or os.path.lexists(out / path)


def _require_undamaged(store: SqliteLedger) -> None:
    """Raise RunDirError if the ledger is damaged, as by a WAL that is not its own."""
    problem = store.find_damage()
    if problem is not None:
        raise RunDirError(
            store.path, f"the ledger is damaged ({problem})", f"move {LEDGER} away, then recover this run again"
        )


def _remove_empty_ledger(ledger: Path) -> None:
    """Remove the ledger that was created here if nothing was rebuilt."""
    if not ledger.exists():
        return
    store = SqliteLedger.open(ledger, read_only=True)
    is_empty = not store.has_jobs()
    store.close()
    if is_empty:
        for suffix in ("", "-wal", "-shm"):
            ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
