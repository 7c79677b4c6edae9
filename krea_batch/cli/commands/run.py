"""`krea-batch run`: job files come in; pictures, results and an exit code go out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.app import BAD_INPUT
from krea_batch.cli.options.input_options import reading_of, reading_options
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
@reading_options
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
    """Make a picture for each prompt in the JOBS: files of JSONL, JSON, CSV, TSV, Parquet or text (also .gz, .zst),
    folders of texts, or - for standard input.

    The files are checked whole before the first cent is spent. Ctrl-C brings home what is in flight; a second
    one stops at once; the same command goes on where it stopped.
    """
    from krea_batch.cli.options.logging_options import keep_log
    from krea_batch.cli.ui.forecast_output import agreed, outlook
    from krea_batch.cli.ui.run_session import Batch, check_jobs, prepare
    from krea_batch.engine.event_loop import run_loop
    from krea_batch.sources import JobFiles

    settings, key = prepare(options)
    keep_log(verbose=options["verbose"], log_file=options["log_file"], log_format=options["log_format"])
    with JobFiles(jobs, reading=reading_of(options), skip_invalid=options["skip_invalid"]) as files:
        checked = check_jobs(files, settings, skip_invalid=options["skip_invalid"], quiet=options["quiet"])
        forecast = outlook(checked, settings, options)
        if not agreed(forecast, options):
            sys.exit(BAD_INPUT)
        batch = Batch(settings, key, files, checked, options, forecast=forecast)
        sys.exit(run_loop(batch.run))
