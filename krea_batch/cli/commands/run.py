"""`krea-batch run`: job files come in; images, results and an exit code go out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.app import BAD_INPUT
from krea_batch.cli.options.input_options import add_input_options, input_options
from krea_batch.cli.options.run_options import ExampleOption, run_options


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOBS…")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The run's folder: images/, results.jsonl, ledger.db. The same folder again goes on with the run.",
)
@run_options
@click.option("--skip-invalid", is_flag=True, help="Run the good lines when others are bad.")
@add_input_options
@click.option(
    "--confirm-above",
    cls=ExampleOption,
    example=100,
    type=click.IntRange(min=0),
    metavar="N",
    help="In a terminal, ask before more than N images are paid for.",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def run(jobs: tuple[str, ...], **options: Any) -> None:
    """Make an image for each prompt in the JOBS: files of JSONL, JSON, CSV, TSV, Parquet or text (also .gz, .zst),
    folders of texts, or - for standard input.

    The files are checked whole before the first cent is spent. Ctrl-C brings home what is in flight; a second
    one stops at once; the same command goes on where it stopped.
    """
    from krea_batch.cli.options.logging_options import configure_logging
    from krea_batch.cli.ui.forecast_output import confirm_charges, show_forecast
    from krea_batch.cli.ui.run_session import RunSession, check_jobs, settings_and_key
    from krea_batch.engine.event_loop import run_event_loop
    from krea_batch.sources import JobFiles

    settings, key = settings_and_key(options)
    configure_logging(verbose=options["verbose"], log_file=options["log_file"], log_format=options["log_format"])
    with JobFiles(jobs, options=input_options(options), skip_invalid=options["skip_invalid"]) as files:
        checked = check_jobs(files, settings, skip_invalid=options["skip_invalid"], quiet=options["quiet"])
        forecast = show_forecast(checked, settings, options)
        if not confirm_charges(forecast, options):
            sys.exit(BAD_INPUT)
        batch = RunSession(settings, key, files, checked, options, forecast=forecast)
        sys.exit(run_event_loop(batch.run))
