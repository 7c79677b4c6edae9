"""`krea-batch retry`: resubmits jobs that ended without an image."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.app import BAD_INPUT, OK
from krea_batch.cli.options.headings import GroupedCommand
from krea_batch.cli.options.run_options import run_options
from krea_batch.jobs import RETRIED_BY_DEFAULT, RETRYABLE, State

RETRYABLE_STATES = tuple(state.value for state in RETRYABLE)


@click.command(cls=GroupedCommand)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.argument("ids", nargs=-1, metavar="[ID]…")
@click.option(
    "--status",
    type=click.Choice(RETRYABLE_STATES),
    multiple=True,
    help="States of the jobs to resubmit (repeatable). Images of jobs that are timed_out may still arrive "
    f"without another charge.  [default without an ID: {', '.join(RETRIED_BY_DEFAULT)}]",
)
@click.option(
    "--ids-from",
    type=click.Path(),
    metavar="FILE",
    help="Resubmit the jobs whose ids are in FILE, one per line; - for standard input.",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation; each job may be charged again.")
@run_options
def retry(
    out: Path, ids: tuple[str, ...], status: tuple[str, ...], ids_from: str | None, yes: bool, **options: Any
) -> None:
    """Resubmit jobs of the run in OUT that ended without an image: all of them, or only each given ID.

    Every accepted submit is charged, so the command shows the maximum number of charges and asks for confirmation.
    Jobs that have their image are never submitted again. Use `resolve` for ambiguous jobs. Unfinished jobs in OUT are
    also resumed.
    """
    from krea_batch.cli.options.job_id_file import read_ids
    from krea_batch.cli.options.logging_options import configure_logging
    from krea_batch.cli.options.run_settings import settings_and_key
    from krea_batch.cli.ui.formatting import pluralize, show
    from krea_batch.cli.ui.run_session import run_recorded_jobs
    from krea_batch.ledger import bind_database
    from krea_batch.maintenance.retry import RetryPlan
    from krea_batch.storage.run_dir import require_run

    require_run(out)
    requested_ids = [*ids, *(read_ids(ids_from, out) or [])]
    options["out"] = out
    _keep_max_charges(out, options)
    settings, key = settings_and_key(options)
    configure_logging(options)
    bind_database(settings)
    with RetryPlan(out) as retry_plan:
        states = [State(name) for name in status]
        if requested_ids:
            chosen = retry_plan.select(requested_ids, states)
        else:
            chosen = retry_plan.jobs(states or RETRIED_BY_DEFAULT)
        if not chosen and not retry_plan.open_jobs():
            show(f"nothing to resubmit: no job in {out} is {' or '.join(states or RETRIED_BY_DEFAULT)}")
            sys.exit(OK)
        if chosen and not (yes or options["simulate"]):
            _confirm(chosen, retry_plan.pending_count())
        retry_plan.resubmit(chosen)
    if not (retry_plan.is_alone or options["shared"]):
        show(f"{pluralize(len(chosen), 'job')} to be submitted by the processes that work on {out}")
        sys.exit(OK)
    sys.exit(run_recorded_jobs(settings, key, options)[0])


def _keep_max_charges(out: Path, options: dict[str, Any]) -> None:
    """Use the limit of the latest run if none is given, so that a retry does not spend more than was allowed."""
    from krea_batch.cli.ui.formatting import say
    from krea_batch.ledger import LedgerReader, read_ledger

    if options["max_charges"] is not None:
        return
    with read_ledger(out) as store:
        (latest_run,) = store.read(LedgerReader.latest_run)
    if latest_run is None or latest_run.max_charges is None:
        return
    options["max_charges"] = latest_run.max_charges
    options["count_server_errors"] |= latest_run.count_server_errors
    if not options["quiet"]:
        strict = " --count-server-errors" if options["count_server_errors"] else ""
        limit = f"--max-charges {latest_run.max_charges:,}{strict}"
        say(f"{limit}, as in the latest run; --max-charges none removes the limit")


def _confirm(chosen: dict[str, State], waiting: int) -> None:
    """Ask for confirmation, and exit with 2 without it."""
    from krea_batch.cli.ui.formatting import ask_to_continue, pluralize, say

    states = ", ".join(f"{count:,} {state.value}" for state, count in Counter(chosen.values()).items())
    jobs, charges = pluralize(len(chosen), "job"), pluralize(len(chosen) + waiting, "charge")
    also = f", {waiting:,} not submitted yet" if waiting else ""
    say(f"{jobs} to resubmit ({states}){also}: up to {charges}")
    if not ask_to_continue():
        say("Nothing was submitted.")
        sys.exit(BAD_INPUT)
