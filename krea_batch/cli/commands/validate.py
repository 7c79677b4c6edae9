"""`krea-batch validate`: checks job files. Nothing is sent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from krea_batch.cli.app import BAD_INPUT, OK
from krea_batch.cli.options.headings import GroupedCommand
from krea_batch.cli.options.input_options import add_input_options, expansion_notices
from krea_batch.cli.options.selection_options import open_job_files
from krea_batch.cli.ui.check_progress import CheckProgress
from krea_batch.cli.ui.error_messages import say_error
from krea_batch.cli.ui.formatting import pluralize, say, show, show_json

if TYPE_CHECKING:
    from krea_batch.sources import CheckResult


@click.command(cls=GroupedCommand)
@click.argument("jobs", nargs=-1, type=click.Path(), metavar="JOBS…")
@add_input_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print only invalid lines.")
def validate(jobs: tuple[str, ...], *, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check every row of the JOBS as `run` does, without sending anything. Use - for standard input.

    Invalid lines are listed as "FILE:LINE: problem; hint". The exit code is 0 if all rows are valid, else 2.
    """
    from krea_batch.cli.ui.explanations import further_reading
    from krea_batch.errors import InputError

    try:
        with (
            open_job_files(jobs, options) as files,
            CheckProgress(quiet=quiet or as_json) as progress,
        ):
            checked = files.check(on_problem=progress.print_line, on_progress=progress.update)
            notices = files.notices()
            no_jobs_error = files.no_jobs_error()
    except InputError as error:
        say_error(error)
        sys.exit(BAD_INPUT)
    if not quiet:
        for line in further_reading(map(str, checked.problems)):
            say(line)
    for notice in () if quiet else (*notices, *map(str, checked.notes), *expansion_notices(checked)):
        say(notice)
    if not checked.jobs and not checked.bad_lines:
        say_error(no_jobs_error)
    if as_json:
        show_json(_as_json(checked))
    elif not quiet:
        show(
            f"{pluralize(checked.jobs, 'valid job')}, {pluralize(checked.bad_lines, 'invalid line')} "
            f"in {pluralize(len(jobs), 'file') if jobs else pluralize(len(options['prompt']), 'prompt')}"
        )
    sys.exit(OK if checked.jobs and not checked.bad_lines else BAD_INPUT)


def _as_json(checked: CheckResult) -> str:
    """Return the counts, the first problems and notes, and what was recognised in prompts."""
    import msgspec

    counts = msgspec.to_builtins(checked)
    del counts["recorded"]  # No ledger was read.
    return msgspec.json.encode(counts).decode()
