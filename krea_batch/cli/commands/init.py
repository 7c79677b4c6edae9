"""`krea-batch init`: a folder comes in; a commented `krea-batch.toml` and a first job file go out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from krea_batch.cli.app import CONFIG_FILE, SOME_FAILED
from krea_batch.cli.options.run_options import ExampleOption
from krea_batch.cli.ui.formatting import say

JOBS_FILE = "jobs.jsonl"
SAMPLE_JOBS = """\
{"id": "lighthouse", "prompt": "a lighthouse in a storm, oil on canvas", "aspect_ratio": "16:9"}
{"id": "fox", "prompt": "a fox asleep under a fern, morning light", "creativity": "high", "seed": 7}
{"id": "tea", "prompt": "a tin robot pouring tea, studio photograph", "sweep": {"seed": "1..2"}}
"""
HEADER = """\
# Defaults of krea-batch for commands that are started in this folder. Take the # off a line to set it.
# An option on the command line, and then KREA_BATCH_… in the environment, count before this file.
# The API key does not belong here: set PIXAZO_API_KEY, or name a file of its own by api-key-file.
"""
EXCLUDED_OPTIONS = ("jobs", "out", "as_json", "verbose", "quiet", "yes")  # of one call, not of a folder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
def init(folder: Path) -> None:
    """Write a commented krea-batch.toml and a first job file into FOLDER (the one you are in).

    Nothing is overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    existing = [
        name
        for name, text in ((CONFIG_FILE, config_text()), (JOBS_FILE, SAMPLE_JOBS))
        if not _write_new(folder / name, text)
    ]
    for name in existing:
        say(f"krea-batch: {folder / name} is there already, and stays as it is")
    if len(existing) == 2:
        raise SystemExit(SOME_FAILED)
    cd_command = "" if folder == Path() else f"cd {folder}\n  "
    click.echo(
        f"try it, offline and free:\n  {cd_command}krea-batch run {JOBS_FILE} --out out --simulate\n"
        f"and in earnest:\n  export PIXAZO_API_KEY=…\n  krea-batch run {JOBS_FILE} --out images"
    )


def config_text() -> str:
    """A `krea-batch.toml` in which every option of `run` stands with its default, commented out."""
    from krea_batch.cli.commands.run import run

    options = [each for each in run.params if isinstance(each, click.Option) and each.name not in EXCLUDED_OPTIONS]
    return "\n".join(
        [HEADER, *(f"# {' '.join((each.help or '').split())}\n#{_option_line(each)}\n" for each in options)]
    )


def _option_line(option: click.Option) -> str:
    """The option with its default, or with what it may look like."""
    import json

    name = option.opts[0].lstrip("-")
    example = option.example if isinstance(option, ExampleOption) else None
    value: Any = False if option.is_flag else option.default if example is None else example
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"  # of text, numbers, lists and flags, TOML is the same


def _write_new(path: Path, text: str) -> bool:
    """Write a new file; False where there is one."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
