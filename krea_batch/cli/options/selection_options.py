"""Options that select jobs or set values for all of them, and hints for options of other tools."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krea_batch.cli.options.run_options import add_options
from krea_batch.cli.ui.formatting import pluralize

if TYPE_CHECKING:
    from krea_batch.settings import Settings
    from krea_batch.sources import CheckResult, InputOptions, JobFiles

_SELECTION_OPTIONS = (
    click.option("--prompt", multiple=True, metavar="TEXT", help="A prompt, instead of JOBS (repeatable)."),
    click.option(
        "--set",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Give every job this value, e.g. aspect_ratio=16:9 (repeatable).",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take only the first N jobs."),
    click.option(
        "--sample",
        type=click.IntRange(min=1),
        metavar="N",
        help="Take only N jobs, chosen at random; the same ones in each run.",
    ),
    click.option(
        "--sample-seed", type=int, default=0, show_default=True, metavar="SEED", help="Choose a different --sample."
    ),
    click.option(
        "--submit-changed",
        is_flag=True,
        help="Submit lines without an id that changed since an earlier run as new jobs.",
    ),
)

_PROMPT_HINT = "set it for all jobs with"
_NOT_IN_THE_API = "the API does not have it, so leave it out; --set gives fields of `krea-batch schema` to all jobs"
HINTS = {
    "--aspect-ratio": f"{_PROMPT_HINT} --set aspect_ratio=16:9, or try several with --sweep aspect_ratio=1:1,16:9",
    "--ar": f"{_PROMPT_HINT} --set aspect_ratio=16:9, or try several with --sweep aspect_ratio=1:1,16:9",
    "--size": f"{_PROMPT_HINT} --set aspect_ratio=16:9; the API chooses the size",
    "--width": f"{_PROMPT_HINT} --set aspect_ratio=16:9; the API chooses the size",
    "--height": f"{_PROMPT_HINT} --set aspect_ratio=16:9; the API chooses the size",
    "--creativity": f"{_PROMPT_HINT} --set creativity=high, or try several with --sweep creativity=raw,high",
    "--seed": f"{_PROMPT_HINT} --set seed=7, or make several images of each prompt with --seeds 1..4",
    "--styles": f'{_PROMPT_HINT} --set \'styles=[{{"id": "…"}}]\'',
    "-n": "--limit N takes the first N jobs, --repeat N makes N images of each",
    "--num-images": "--repeat N makes N images of each job",
    "--count": "--limit N takes the first N jobs, --repeat N makes N images of each",
    "--api-key": "set PIXAZO_API_KEY, or use --api-key-file FILE: other users of the machine see a command line",
    "-k": "set PIXAZO_API_KEY, or use --api-key-file FILE: other users of the machine see a command line",
    "-o": "use --out DIR",
    "--output": "use --out DIR",
    "--output-dir": "use --out DIR",
    "-p": "use --prompt TEXT",
    "-j": "use --max-in-flight N",
    "--concurrency": "use --max-in-flight N",
    "--workers": "use --max-in-flight N",
    "-i": "name the file without an option: krea-batch run FILE --out DIR",
    "--input": "name the file without an option: krea-batch run FILE --out DIR",
    "--prompts": "name the file without an option: krea-batch run FILE --out DIR",
    "--parallel": "use --max-in-flight N",
    "--threads": "use --max-in-flight N",
    "--batch-size": "--repeat N makes N images of each job, --max-in-flight N limits the jobs in flight",
    "--timeout": "use --job-timeout TIME",
    "--retries": "submits that were refused are repeated; --max-attempts N limits those that end in ERROR",
    "--max-retries": "submits that were refused are repeated; --max-attempts N limits those that end in ERROR",
    "--negative-prompt": _NOT_IN_THE_API,
    "--steps": _NOT_IN_THE_API,
    "--cfg-scale": _NOT_IN_THE_API,
    "--guidance-scale": _NOT_IN_THE_API,
    "--sampler": _NOT_IN_THE_API,
    "--quality": _NOT_IN_THE_API,
    "--model": "the API has one model, so leave it out",
    "--style": f'{_PROMPT_HINT} --set \'styles=[{{"id": "…"}}]\'',
    "--price": "use it with krea-batch plan, which shows the cost; --max-charges N limits a run",
    "--resume": "not needed: run the same command again to resume",
    "--force": "not needed: run the same command again to resume; nothing is made twice",
}
"""What to use instead of options that other tools have."""


def add_selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command that takes JOBS."""
    return add_options(_SELECTION_OPTIONS, command)


def hint_for(error: click.NoSuchOption) -> str | None:
    """Return what to use instead of an unknown option, for a command that takes JOBS."""
    if error.ctx is None or not any(param.name == "jobs" for param in error.ctx.command.params):
        return None
    return HINTS.get(error.option_name)


def open_job_files(jobs: tuple[str, ...], options: dict[str, Any], *, skip_invalid: bool = False) -> JobFiles:
    """Open the JOBS, or the prompts of --prompt. Raises click.UsageError unless one of them is given."""
    from krea_batch.cli.options.input_options import input_options
    from krea_batch.sources import JobFiles

    require_jobs(jobs, options)
    return JobFiles(jobs, options=input_options(options), skip_invalid=skip_invalid, prompts=options["prompt"])


def require_jobs(jobs: tuple[str, ...], options: dict[str, Any]) -> None:
    """Raise click.UsageError unless either JOBS or --prompt are given."""
    if bool(jobs) == bool(options["prompt"]):
        raise click.UsageError(
            "JOBS cannot be combined with --prompt." if jobs else "Missing argument 'JOBS…', or --prompt TEXT."
        )
    # Unlike those of Path, these functions return False for a prompt that is too long for the name of a file.
    if len(jobs) == 1 and " " in jobs[0] and not os.path.exists(jobs[0]):  # noqa: PTH110
        raise click.UsageError(f"There is no file {jobs[0]!r}. If it is a prompt, use --prompt {jobs[0]!r}.")
    for prompt in options["prompt"]:
        if Path(prompt).suffix and os.path.isfile(prompt):  # noqa: PTH113
            raise click.UsageError(
                f"The prompt {prompt!r} is the name of a file. Leave out --prompt to read the file."
            )


def require_references(files: JobFiles, settings: Settings) -> None:
    """Raise SettingsError if the jobs have local reference images and no object store is given for them."""
    from krea_batch.errors import SettingsError

    if files.references.first is not None and settings.references is None:
        raise SettingsError(
            "references",
            f"missing, and {files.references.first} is a local reference image, which the gateway cannot read",
            "add --references s3://bucket/folder, to which such images are uploaded",
        )


@contextmanager
def as_error_of(option: str) -> Iterator[None]:
    """Raise SettingsError, which names the option, instead of JobError."""
    from krea_batch.errors import JobError, SettingsError

    try:
        yield
    except JobError as error:
        raise SettingsError(option, error.problem, error.hint) from None


def with_selection(input_options: InputOptions, options: dict[str, Any]) -> InputOptions:
    """Return the input options with the selection and the fixed values. Raises SettingsError."""
    import msgspec

    from krea_batch.errors import SettingsError
    from krea_batch.sources.fixed_values import parse_fixed_value

    if options["limit"] is not None and options["sample"] is not None:
        raise SettingsError("sample", "cannot be combined with --limit", "use one of them")
    if options["sample_seed"] and options["sample"] is None:
        raise SettingsError("sample_seed", "requires --sample", "add --sample N, or leave it out")
    fixed: dict[str, Any] = {}
    for text in options["set"]:
        with as_error_of("set"):
            name, value = parse_fixed_value(text)
        if name in fixed:
            raise SettingsError("set", f"{name} is given more than once", f"use --sweep {name}=… for several values")
        if any(axis.name == name for axis in input_options.axes):
            raise SettingsError("set", f"{name} is both set and swept", "keep one of them")
        fixed[name] = value
    return msgspec.structs.replace(
        input_options,
        fixed=fixed,
        limit=options["limit"],
        sample=options["sample"],
        sample_seed=options["sample_seed"],
        submit_changed=options["submit_changed"],
    )


def selection_notice(checked: CheckResult) -> list[str]:
    """Return a sentence about the jobs that --limit or --sample leaves out."""
    if not checked.unselected:
        return []
    return [f"{checked.jobs:,} of {pluralize(checked.jobs + checked.unselected, 'job')} selected"]
