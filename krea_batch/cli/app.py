"""Arguments come in; exit codes and what people read go out.

    0    every job succeeded
    1    ended, some jobs did not succeed
    2    bad usage, input or settings; nothing was spent
    3    stopped early, can be resumed
    130  interrupted, can be resumed

Newcomers: `krea-batch --help` has to cost next to nothing, so the modules of this package import click alone at
their top, and everything else inside the functions that need it.
"""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from krea_batch.cli.ui.formatting import say

COMMANDS = {
    "run": "Make an image for each prompt.",
    "validate": "Check job files; spend nothing.",
    "plan": "Forecast time, polls and cost.",
    "status": "Where jobs stand, what was charged.",
    "watch": "Show a run of another process.",
    "view": "Show the images in your browser.",
    "report": "Write images and charts into one HTML file.",
    "resolve": "Decide on ambiguous submits.",
    "retry": "Submit again what ended in vain.",
    "verify": "Hold files against the ledger; repair them.",
    "export": "Write images as other tools load them.",
    "inspect": "Show what is written in PNG files.",
    "schema": "Print the JSON Schema of a job line.",
    "simulate": "Serve the gateway offline.",
    "bench": "Measure what becomes of your rate limit.",
    "dashboard": "Print a Grafana dashboard.",
    "init": "Write settings and a first job file.",
    "doctor": "Look for what would trouble a run.",
    "completion": "Print a shell's completion script.",
}
"""Each command's name, and what stands beside it in the list of all."""
CONFIG_FILE = "krea-batch.toml"
ENV_PREFIX = "KREA_BATCH"

OK, SOME_FAILED, BAD_INPUT, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130


class _LazyGroup(click.Group):
    """Imports the module of a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"krea_batch.cli.commands.{name}"), name)
        command.context_settings.setdefault("auto_envvar_prefix", ENV_PREFIX)
        command.short_help = COMMANDS[name]
        command.epilog = epilog(name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        close_matches = difflib.get_close_matches(args[0], COMMANDS, 1)
        if args[0] not in COMMANDS and close_matches and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close_matches[0]!r}?")
        return super().resolve_command(ctx, args)


EXIT_CODES = """\b
Exit codes:
  0    every job succeeded
  1    ended, some jobs did not succeed
  2    bad usage, input or settings; nothing was spent
  3    stopped early; run the same command again to go on
  130  interrupted; run the same command again to go on
"""


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="krea-batch", prog_name="krea-batch")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Turn files of prompts into PNGs through the Krea 2 Large API.

    No image is paid for twice and no paid image is lost; run the same command again to go on after any stop.

    \b
    krea-batch init                                         a first job file and settings
    krea-batch run jobs.jsonl --out runs/cats --simulate    try it: offline, free
    krea-batch run jobs.jsonl --out runs/cats               the real thing
    krea-batch view runs/cats                               the images, in your browser
    """
    ctx.default_map = _load_config(Path(CONFIG_FILE))


def main() -> None:
    """Run the console script. An error of krea-batch is printed as a sentence, without a traceback."""
    from krea_batch.errors import InputError, InternalError, KreaBatchError, SettingsError

    try:
        app(prog_name="krea-batch")
    except InternalError:
        raise
    except SettingsError as error:
        say(f"krea-batch: {option_of(error.parameter)}: {InputError.__str__(error)}")
        sys.exit(BAD_INPUT)
    except KreaBatchError as error:
        say(f"krea-batch: {error}")
        sys.exit(BAD_INPUT if isinstance(error, InputError) else STOPPED)


def option_of(parameter: str) -> str:
    """Return the option of a parameter that a SettingsError names: `max_in_flight`, `webhook.url`."""
    if parameter == "api_key":
        return "--api-key-file"
    return "--" + parameter.removesuffix("_s").replace("_", "-").replace(".", "-")


def _load_config(path: Path) -> dict[str, dict[str, Any]]:
    """Defaults from `krea-batch.toml` in the working folder: options by their long names, for every command.

    Raises click.UsageError naming an option that no command has.
    """
    if not path.is_file():
        return {}
    import msgspec

    try:
        options = msgspec.toml.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {error}") from None
    known: dict[str, set[str]] = {}
    for name in COMMANDS:
        command = app.get_command(click.Context(app), name)
        known[name] = {param.name or "" for param in command.params} if command else set()
    all_names = set().union(*known.values())
    for option in options:
        if option.replace("-", "_") not in all_names:
            close_matches = difflib.get_close_matches(option.replace("-", "_"), all_names, 1)
            hint = f" Did you mean {close_matches[0].replace('_', '-')!r}?" if close_matches else ""
            raise click.UsageError(f"{path}: there is no option {option!r}.{hint}")
    by_param_name = {option.replace("-", "_"): value for option, value in options.items()}
    return {name: {key: value for key, value in by_param_name.items() if key in known[name]} for name in COMMANDS}


EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "krea-batch run jobs.jsonl --out runs/cats --simulate",
        "krea-batch run jobs.jsonl --out runs/cats --rate 10/s --max-charges 100",
        "krea-batch run prompts.csv --out runs/grid --sweep creativity=raw,high --seeds 1..4",
        "zcat prompts.txt.gz | krea-batch run - --out runs/many --rate auto",
    ),
    "validate": (
        "krea-batch validate jobs.jsonl",
        "krea-batch validate table.tsv --prompt-column Caption --id-column Nr",
    ),
    "plan": (
        "krea-batch plan jobs.jsonl --rate 10/s --price 0.05",
        "krea-batch plan jobs.jsonl --latency-from runs/cats --max-in-flight 100",
    ),
    "status": ("krea-batch status runs/cats", "krea-batch status runs/cats --json"),
    "watch": ("krea-batch watch runs/cats",),
    "view": ("krea-batch view runs/cats", "krea-batch view runs/cats --port 0 --no-open"),
    "report": ("krea-batch report runs/cats", "krea-batch report runs/cats --output cats.html --thumbnails 160"),
    "resolve": (
        "krea-batch resolve runs/cats --list",
        "krea-batch resolve runs/cats --resubmit fox",
        "krea-batch resolve runs/cats --abandon",
    ),
    "retry": ("krea-batch retry runs/cats --yes", "krea-batch retry runs/cats fox owl"),
    "verify": ("krea-batch verify runs/cats", "krea-batch verify runs/cats --repair"),
    "export": (
        "krea-batch export runs/cats --format imagefolder --output set --embed-metadata",
        "krea-batch export runs/cats --format zip --output cats.zip --ids-from ids.txt",
    ),
    "inspect": ("krea-batch inspect set/00001.png",),
    "schema": ("krea-batch schema > job.schema.json",),
    "simulate": (
        "krea-batch simulate",
        "krea-batch simulate --rate-limit token-bucket:20/s --fault submit-500=0.05 --latency lognormal:12,0.3",
    ),
    "bench": (
        "krea-batch bench --rates 50/s,200/s --compare",
        "krea-batch bench --gateway https://gateway.pixazo.ai --rates 2/s --jobs 20 --price 0.05",
    ),
    "dashboard": ("krea-batch dashboard > krea-batch.json",),
    "init": ("krea-batch init",),
    "doctor": ("krea-batch doctor --out runs",),
    "completion": ('eval "$(krea-batch completion bash)"',),
}


def epilog(name: str) -> str:
    """What stands at the end of a command's help. The first line of a paragraph keeps click from wrapping it."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[name])
