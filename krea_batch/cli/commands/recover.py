"""`krea-batch recover`: rebuilds a ledger from results.jsonl."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from krea_batch.cli.app import BAD_INPUT
from krea_batch.cli.ui.formatting import ask_to_continue, pluralize, printable, say, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krea_batch.jobs import State
    from krea_batch.maintenance.recover import RecoverReport

MAX_NAMES = 5  # chosen: enough to recognise them

UNKNOWN_JOBS = """\
Jobs that were accepted and had not ended have no row, so they cannot be rebuilt, and their number is unknown. The
next run submits them again, and they are charged again. If you still have the ledger.db of this run, or the
ledger.db-wal of this ledger.db, copy both back together instead."""


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
def recover(out: Path, yes: bool) -> None:
    """Rebuild the ledger of the run in OUT from results.jsonl: add the jobs that it does not have.

    Use this command if ledger.db was deleted, restored from an older copy, or copied without ledger.db-wal. It sends
    nothing, and changes no other file and no job that is in a later state in the ledger. Afterwards, run the same
    command as before to resume.
    """
    from krea_batch.maintenance.recover import recover_run

    confirmed = False

    def confirm(report: RecoverReport) -> bool:
        nonlocal confirmed
        _print_report(report)
        show(*UNKNOWN_JOBS.splitlines())
        confirmed = yes or ask_to_continue()
        return confirmed

    report = recover_run(out, confirm)
    if not report.changes:
        _print_report(report)
        show("nothing to rebuild: the ledger knows every row")
    elif not confirmed:
        say("Nothing was changed.")
        sys.exit(BAD_INPUT)
    else:
        show(f"rebuilt {report.changes:,}; run the same command as before to resume")


def _print_report(report: RecoverReport) -> None:
    ledger = "; ledger.db is missing" if report.ledger_was_missing else ""
    show(f"results.jsonl has {pluralize(report.rows, 'row')}{ledger}")
    _print_jobs("to add", report.added)
    _print_jobs("to update", report.updated)
    if report.known_rows:
        show(f"  {pluralize(report.known_rows, 'row')} known already")
    if report.last_line_incomplete:
        show("  the last line is incomplete, so its job is not rebuilt")
    if report.unreadable_lines:
        numbers = ", ".join(map(str, report.unreadable)) + (
            " …" if report.unreadable_lines > len(report.unreadable) else ""
        )
        lines = pluralize(report.unreadable_lines, "line")
        show(
            f"  {lines} cannot be read, so their jobs are not rebuilt: {numbers}. Copy the file before you run again,"
            " since the run replaces it"
        )
    if report.missing_images:
        images = pluralize(report.missing_images, "image")
        show(f"  {images} of rows not in place: see krea-batch verify OUT --repair")
    _print_names("of no job in the ledger; move them away to pay for these jobs again", report.unknown_images)
    _print_names("unfinished downloads of no job in the ledger", report.unfinished_downloads)


def _print_jobs(what: str, counts: Mapping[State, int]) -> None:
    if counts:
        states = ", ".join(f"{count:,} {state.value}" for state, count in counts.items())
        show(f"  {pluralize(sum(counts.values()), 'job')} {what}: {states}")


def _print_names(problem: str, names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(map(printable, names[:MAX_NAMES])) + (" …" if len(names) > MAX_NAMES else "")
        show(f"  {pluralize(len(names), 'file')} in images/ ({problem}): {shown}")
