"""`krea-batch init`: writes a settings file and a first job file."""

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
# Defaults of krea-batch for commands started in this directory. Remove the # from a line to set it.
# Options on the command line take precedence, then KREA_BATCH_… in the environment, then this file.
# Do not put the API key here: set PIXAZO_API_KEY, or use api-key-file.
"""
EXCLUDED_OPTIONS = ("jobs", "out", "as_json", "verbose", "quiet", "yes")  # they belong to one call


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
def init(folder: Path) -> None:
    """Write a commented krea-batch.toml and a first job file into FOLDER (default: the working directory).

    Existing files are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    existing = [
        name
        for name, text in ((CONFIG_FILE, config_text()), (JOBS_FILE, SAMPLE_JOBS))
        if not _write_new(folder / name, text)
    ]
    for name in existing:
        say(f"krea-batch: {folder / name} exists and is kept")
    if len(existing) == 2:
        raise SystemExit(SOME_FAILED)
    cd_command = "" if folder == Path() else f"cd {folder}\n  "
    click.echo(
        f"try it offline, free of charge:\n  {cd_command}krea-batch run {JOBS_FILE} --out out --simulate\n"
        f"against the real API:\n  export PIXAZO_API_KEY=…\n  krea-batch run {JOBS_FILE} --out images"
    )


def config_text() -> str:
    """Return a `krea-batch.toml` with every option of `run` and its default, commented out."""
    from krea_batch.cli.commands.run import run

    options = [each for each in run.params if isinstance(each, click.Option) and each.name not in EXCLUDED_OPTIONS]
    return "\n".join(
        [HEADER, *(f"# {' '.join((each.help or '').split())}\n#{_option_line(each)}\n" for each in options)]
    )


def _option_line(option: click.Option) -> str:
    """Return the line of an option, with its default or an example."""
    import json

    name = option.opts[0].lstrip("-")
    example = option.example if isinstance(option, ExampleOption) else None
    value: Any = False if option.is_flag else option.default if example is None else example
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"  # JSON and TOML write these types alike


def _write_new(path: Path, text: str) -> bool:
    """Write a new file. Return False, without writing, if the file exists."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
