"""`krea-batch worker`: works on the jobs of a run together with other processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.options.headings import GroupedCommand
from krea_batch.cli.options.run_options import run_options


@click.command(cls=GroupedCommand)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="S",
    help="After Ctrl-C or SIGTERM, leave the jobs in flight to the other processes after S seconds.",
)
@run_options
def worker(out: Path, drain: float, **options: Any) -> None:
    """Work on the jobs of the run in OUT, until no process has a job left.

    Start the run with `krea-batch run … --out OUT --shared`, and as many workers as you want. They share the jobs,
    the rate and --max-charges. If one of them is killed or stalls, the others take over its jobs.

    On another machine, pass the --ledger and --batch of the run; OUT is then a directory of this machine, which may
    be empty.
    """
    from krea_batch.cli.options.logging_options import configure_logging
    from krea_batch.cli.options.run_settings import settings_and_key
    from krea_batch.cli.ui.formatting import say
    from krea_batch.cli.ui.run_session import run_recorded_jobs
    from krea_batch.errors import FencedError
    from krea_batch.ledger import bind_database
    from krea_batch.storage.run_dir import require_run

    options |= {"out": out, "shared": True}
    if not options["ledger"]:
        require_run(out)
    settings, key = settings_and_key(options)
    bind_database(settings, batch_exists=True)
    configure_logging(options)
    while True:
        code, problem = run_recorded_jobs(settings, key, options, drain_s=drain)
        if not isinstance(problem, FencedError):
            sys.exit(code)
        say("Starting again: another process has taken over the jobs of this one.")
