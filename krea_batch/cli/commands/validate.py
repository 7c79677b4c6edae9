"""`krea-batch validate`: job files come in; every bad line, a summary and an exit code go out. Nothing is sent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from krea_batch.cli.app import BAD_INPUT, OK
from krea_batch.cli.options.input_options import expanded, reading_of, reading_options
from krea_batch.cli.ui.check_progress import Checking
from krea_batch.cli.ui.formatting import counted, say

if TYPE_CHECKING:
    from krea_batch.sources import Checked


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOBS…")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the bad lines.")
def validate(jobs: tuple[str, ...], *, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check every row of the JOBS (files as `run` takes them; - is standard input) as it would, and send nothing.

    Bad lines are listed as FILE:LINE: what is wrong, what would be right. Exit code 0 when all are good, else 2.
    """
    from krea_batch.errors import InputError
    from krea_batch.sources import JobFiles

    try:
        with JobFiles(jobs, reading=reading_of(options)) as files, Checking(quiet=quiet or as_json) as checking:
            checked = files.check(on_problem=checking.tell, on_progress=checking.hear)
            said = files.said()
    except InputError as error:
        say(f"krea-batch: {error}")
        sys.exit(BAD_INPUT)
    for sentence in () if quiet else (*said, *map(str, checked.notes), *expanded(checked)):
        say(sentence)
    if not checked.jobs and not checked.bad_lines:
        say(
            "krea-batch: there is no job in what was given: "
            "write a prompt a line, or one JSON object; see krea-batch schema"
        )
    if as_json:
        click.echo(_as_json(checked))
    elif not quiet:
        click.echo(
            f"{counted(checked.jobs, 'good job')}, {counted(checked.bad_lines, 'bad line')} "
            f"in {counted(len(jobs), 'file')}"
        )
    sys.exit(OK if checked.jobs and not checked.bad_lines else BAD_INPUT)


def _as_json(checked: Checked) -> str:
    """One line: the counts, and the first problems and notes as objects of path, line, wrong, right."""
    import msgspec

    return msgspec.json.encode(checked).decode()
