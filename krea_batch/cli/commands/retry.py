"""`krea-batch retry`: jobs that ended without an image come in; they are submitted again."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.app import BAD_INPUT, OK
from krea_batch.cli.options.run_options import run_options
from krea_batch.jobs import RETRYABLE, State

RETRYABLE_STATES = tuple(state.value for state in RETRYABLE)
DEFAULT_STATES = tuple(state.value for state in RETRYABLE if state.info.retried_by_default)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.argument("ids", nargs=-1, metavar="[ID]…")
@click.option(
    "--status",
    type=click.Choice(RETRYABLE_STATES),
    multiple=True,
    help=f"Which, where no ID is given; may be given often.  [default: {', '.join(DEFAULT_STATES)}]",
)
@click.option("--ids-from", metavar="FILE", help="The jobs whose ids are in FILE, one a line; - reads them.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask; each of them may be paid again.")
@run_options
def retry(
    out: Path, ids: tuple[str, ...], status: tuple[str, ...], ids_from: str | None, yes: bool, **options: Any
) -> None:
    """Submit jobs of the run in OUT again that ended without an image: all of them, or each ID.

    Every POST that is accepted is paid, so it says how many that may be, and asks. Jobs that have their image are
    never submitted again; ambiguous ones are decided with `resolve`. What else is open in OUT goes on as well.
    """
    from krea_batch.cli.options.job_id_file import read_ids
    from krea_batch.cli.options.logging_options import configure_logging
    from krea_batch.cli.ui.run_session import RunSession, settings_and_key
    from krea_batch.engine.event_loop import run_event_loop
    from krea_batch.maintenance.retry import RetryPlan
    from krea_batch.sources import CheckResult, JobFiles
    from krea_batch.storage.run_dir import require_run

    requested_ids = [*ids, *(read_ids(ids_from) or [])]
    if requested_ids and status:
        raise click.UsageError("--status does not go with ids")
    require_run(out)
    options["out"] = out
    settings, key = settings_and_key(options)
    configure_logging(verbose=options["verbose"], log_file=options["log_file"], log_format=options["log_format"])
    with RetryPlan(out) as retry_plan:
        chosen = (
            retry_plan.select(requested_ids) if requested_ids else retry_plan.jobs(_states(status or DEFAULT_STATES))
        )
        if not chosen and not retry_plan.open_jobs():
            click.echo(f"no job in {out} ended in {' or '.join(status or DEFAULT_STATES)}; nothing to submit again")
            sys.exit(OK)
        if chosen and not (yes or options["simulate"]):
            _confirm(chosen, retry_plan.pending_count())
        retry_plan.resubmit(chosen)
        total = retry_plan.job_count()
    checked = CheckResult(jobs=total, rows=total, bad_lines=0, duplicates=0, problems=(), notes=())
    with JobFiles(()) as no_files:
        no_files.check()
        sys.exit(run_event_loop(RunSession(settings, key, no_files, checked, options).run))


def _states(names: tuple[str, ...]) -> list[State]:
    return [State(word) for word in names]


def _confirm(chosen: dict[str, State], waiting: int) -> None:
    """Go on only by somebody's word; exits with 2 where there is none."""
    from krea_batch.cli.ui.formatting import pluralize

    states = ", ".join(f"{count:,} {state.value}" for state, count in Counter(chosen.values()).items())
    jobs, charges = pluralize(len(chosen), "job"), pluralize(len(chosen) + waiting, "charge")
    also = f", and {waiting:,} not submitted yet" if waiting else ""
    click.echo(f"{jobs} ({states}) to be submitted again{also}: up to {charges}", err=True)
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: add --yes to pay for them")
    if not click.confirm("Go on?", err=True):
        click.echo("Nothing was submitted.", err=True)
        sys.exit(BAD_INPUT)
