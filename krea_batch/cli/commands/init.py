"""`krea-batch init`: writes a settings file and a first job file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from krea_batch.cli.app import CONFIG_FILE, SOME_FAILED
from krea_batch.cli.options.run_options import RunOption
from krea_batch.cli.ui.formatting import say, show

JOBS_FILE = "jobs.jsonl"
SAMPLE_JOBS = """\
{"id": "lighthouse", "prompt": "a lighthouse in a storm, oil on canvas", "aspect_ratio": "16:9"}
{"id": "fox", "prompt": "a fox asleep under a fern, morning light", "creativity": "high", "seed": 7}
{"id": "tea", "prompt": "a tin robot pouring tea, studio photograph", "sweep": {"seed": "1..2"}}
"""
HEADER = """\
# Defaults of krea-batch for commands started in this directory. Remove the # from a line to set it.
# Options on the command line take precedence, then KREA_BATCH_… in the environment, then this file.
# These are all options that this file may set. None changes where the API key goes, what is spent or what is written.
"""


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
    show("try it offline, free of charge:")
    if folder != Path():
        show(f"  cd {folder}")
    show(
        f"  krea-batch run {JOBS_FILE} --out out --simulate",
        "against the real API:",
        "  export PIXAZO_API_KEY=…",
        f"  krea-batch run {JOBS_FILE} --out images",
    )


def config_text() -> str:
    """Return a `krea-batch.toml` with every option of `run` that it may set and its default, commented out."""
    from krea_batch.cli.commands.run import run

    options = [option for option in run.params if isinstance(option, RunOption) and option.file]
    return "\n".join(
        [HEADER, *(f"# {' '.join((each.help or '').split())}\n#{_option_line(each)}\n" for each in options)]
    )


def _option_line(option: RunOption) -> str:
    """Return the line of an option, with its default or an example."""
    import json

    name = option.opts[0].lstrip("-")
    value: Any = False if option.is_flag else option.default if option.example is None else option.example
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"  # JSON and TOML write these types alike


def _write_new(path: Path, text: str) -> bool:
    """Write a new file. Return False, without writing, if the file exists."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
