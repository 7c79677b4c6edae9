"""`krea-batch run`: generates the images of job files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.app import BAD_INPUT, OK
from krea_batch.cli.commands.plan import show_plan
from krea_batch.cli.options.headings import GroupedCommand
from krea_batch.cli.options.input_options import add_input_options
from krea_batch.cli.options.run_options import given_settings, run_options
from krea_batch.cli.options.selection_options import open_job_files, require_jobs, require_references


@click.command(cls=GroupedCommand)
@click.argument("jobs", nargs=-1, type=click.Path(), metavar="JOBS…")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Run directory: images/, results.jsonl, ledger.db. Pass the same directory to resume.",
)
@run_options
@click.option("--skip-invalid", is_flag=True, help="Run the valid lines if others are invalid.")
@add_input_options
@click.option(
    "--confirm-above",
    type=click.IntRange(min=0),
    metavar="N",
    help="In a terminal, ask for confirmation if more than N images will be charged.",
)
@click.option("--dry-run", is_flag=True, help="Check and estimate as `krea-batch plan` does. Nothing is sent.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
def run(jobs: tuple[str, ...], **options: Any) -> None:
    """Generate an image for each prompt in the JOBS: files of JSONL, JSON, CSV, TSV, Parquet or text (also .gz and
    .zst), directories of text files, or - for standard input.

    All files are checked before anything is charged. Ctrl-C stops submitting and waits for the jobs in flight; a
    second Ctrl-C stops immediately. Run the same command again to resume.
    """
    sys.exit(run_jobs(jobs, options))


def run_jobs(jobs: tuple[str, ...], options: dict[str, Any]) -> int:
    """Run job files with the options of the command. Return the exit code."""
    from krea_batch.cli.options.logging_options import configure_logging
    from krea_batch.cli.options.run_settings import settings_and_key
    from krea_batch.cli.ui.forecast_output import confirm_charges, show_forecast
    from krea_batch.cli.ui.job_check import check_jobs
    from krea_batch.cli.ui.prompt_syntax_notices import confirm_syntax
    from krea_batch.cli.ui.run_session import RunSession
    from krea_batch.engine.event_loop import run_event_loop
    from krea_batch.ledger import bind_database
    from krea_batch.settings import Settings

    require_jobs(jobs, options)
    if options["dry_run"]:
        settings = Settings.from_options(options["out"], **given_settings(options))
        show_plan(jobs, options, out=options["out"], as_json=options["as_json"], settings=settings)
        return OK
    settings, key = settings_and_key(options)
    configure_logging(options)
    bind_database(settings)
    with open_job_files(jobs, options, skip_invalid=options["skip_invalid"]) as files:
        checked = check_jobs(files, settings, skip_invalid=options["skip_invalid"], quiet=options["quiet"])
        if not confirm_syntax(checked, options):
            return BAD_INPUT
        require_references(files, settings)
        forecast = show_forecast(checked, settings, options)
        if not confirm_charges(forecast, options):
            return BAD_INPUT
        session = RunSession(settings, key, files, checked, options, forecast=forecast)
        return run_event_loop(session.run)
