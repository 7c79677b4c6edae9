"""The group of commands, the settings file, and the exit codes.

    0    every job succeeded
    1    ended, some jobs did not succeed
    2    bad usage, input or settings; nothing was charged
    3    stopped early, can be resumed
    130  interrupted, can be resumed

The module of a command is imported when the command is used, so that `krea-batch --help` is fast.
"""

from __future__ import annotations

import difflib
import io
import locale
import os
import sys
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from krea_batch.cli.ui.error_messages import say_error
from krea_batch.cli.ui.formatting import printable, say

COMMANDS = {
    "demo": "Generate ten simulated images. Free, and without a key.",
    "run": "Generate an image for each prompt.",
    "worker": "Work on the jobs of a run together with other processes.",
    "validate": "Check job files. Nothing is sent.",
    "plan": "Estimate time, polls and cost.",
    "status": "Show job counts and charges.",
    "watch": "Show live progress of a run in another process.",
    "view": "Show the images in your browser.",
    "report": "Write images and charts into one HTML file.",
    "resolve": "Decide about ambiguous jobs.",
    "retry": "Resubmit failed jobs.",
    "recover": "Rebuild a lost or older ledger from results.jsonl.",
    "verify": "Check images against the ledger; repair damaged ones.",
    "export": "Write images in formats for other tools.",
    "inspect": "Show the metadata in PNG files.",
    "schema": "Print the JSON Schema of a job line.",
    "simulate": "Run a simulated gateway.",
    "bench": "Benchmark throughput against a rate limit.",
    "dashboard": "Print a Grafana dashboard.",
    "init": "Write a settings file and a first job file.",
    "doctor": "Diagnose problems before a run.",
    "explain": "Explain an error message or a symptom.",
    "completion": "Print a shell completion script.",
}
"""The commands, with their lines in `krea-batch --help`."""
CONFIG_FILE = "krea-batch.toml"
ENV_PREFIX = "KREA_BATCH"

OK, SOME_FAILED, BAD_INPUT, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130


class _Text(click.types.StringParamType):
    """A text of the command line. Python decodes bytes that are not UTF-8 as lone surrogates, which are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8; write it in UTF-8, or into a file", param, ctx)
        return text


OVERVIEW = """\
krea-batch turns files of prompts into PNGs through the Krea 2 Large API.
No image is paid for twice, and no paid image is lost.

Try it now, without a key and free of charge:
  krea-batch demo                                      ten simulated images, on one sheet
  krea-batch init                                      write a first job file, jobs.jsonl
  krea-batch run jobs.jsonl --out out --simulate       generate its images

All commands: krea-batch --help        One command: krea-batch run --help
An error:     krea-batch explain       Your setup:  krea-batch doctor"""


class _LazyGroup(click.Group):
    """Imports the module of a command when the command is used."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            error = click.exceptions.NoArgsIsHelpError(ctx)  # on standard error, with exit code 2
            error.message = OVERVIEW  # type: ignore[misc]  # Final only for type checkers
            raise error
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"krea_batch.cli.commands.{name}"), name)
        command.context_settings.setdefault("auto_envvar_prefix", ENV_PREFIX)
        for param in command.params:
            if param.type is click.STRING:  # Paths are click.Path, and may have any bytes.
                param.type = _Text()
        command.short_help = COMMANDS[name]
        command.epilog = epilog(name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke the command. An error message of click may repeat text from outside, such as a file name."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if isinstance(error, click.NoSuchOption):
                _add_hint(error)
            lines = _explained(printable(error.message))
            error.message = "\n".join(lines)  # type: ignore[misc]  # Final only for type checkers
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        close_matches = difflib.get_close_matches(args[0], COMMANDS, 1)
        if args[0] not in COMMANDS and close_matches and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close_matches[0]!r}?")
        return super().resolve_command(ctx, args)


def _explained(message: str) -> list[str]:
    """Return an error message, and the command that explains it if one does."""
    from krea_batch.cli.ui.explanations import further_reading

    return [message, *further_reading([message])]


def _add_hint(error: click.NoSuchOption) -> None:
    """Add what to use instead, if the name is that of an option of other tools."""
    from krea_batch.cli.options.selection_options import hint_for

    if hint := hint_for(error):
        error.message += f" ({hint})"  # type: ignore[misc]  # Final only for type checkers
        error.possibilities = None  # type: ignore[misc]


EXIT_CODES = """\b
Exit codes:
  0    every job succeeded
  1    ended, some jobs did not succeed
  2    bad usage, input or settings; nothing was charged
  3    stopped early; run the same command again to resume
  130  interrupted; run the same command again to resume
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

    No image is paid for twice, and no paid image is lost. After any stop, run the same command again to resume.

    \b
    krea-batch init                                         write a settings file and a first job file
    krea-batch run jobs.jsonl --out runs/try --simulate     try it offline, free of charge
    krea-batch run jobs.jsonl --out runs/cats               use the real API
    krea-batch view runs/cats                               show the images in your browser
    """
    ctx.default_map = _load_config(Path(CONFIG_FILE))


def main() -> None:
    """Run the console script. An error of krea-batch is printed as a sentence, without a traceback."""
    from krea_batch.errors import InputError, InternalError, KreaBatchError

    restart_in_utf8_mode()
    from krea_batch.storage.operating_system import raise_open_files_limit

    raise_open_files_limit()
    sys.excepthook = _print_traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # Not every output can show the letters of all prompts.
    try:
        app(prog_name="krea-batch")
    except InternalError:
        raise
    except KreaBatchError as error:
        say_error(error)
        sys.exit(BAD_INPUT if isinstance(error, InputError) else STOPPED)


def restart_in_utf8_mode() -> None:
    """Start this command again in Python's UTF-8 mode, unless file names and arguments are UTF-8 already.

    Otherwise, in a locale such as de_DE.ISO-8859-1, or C without Python's own remedy (PEP 540), the ids of jobs could
    not name files. The encoding of the output stays that of the locale.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode:
        return
    from krea_batch.engine.child_process import command_in_utf8_mode

    encoding = locale.getencoding()
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:backslashreplace")
    os.environ["PYTHONUTF8"] = "1"  # for child processes
    command = command_in_utf8_mode()
    os.execv(command[0], command)  # noqa: S606 - this program


def _print_traceback(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the traceback of a bug as Python does, with escapes: a message may repeat text from outside."""
    from traceback import format_exception

    for line in "".join(format_exception(kind, error, traceback)).rstrip("\n").split("\n"):
        say(line)


def _load_config(path: Path) -> dict[str, dict[str, Any]]:
    """Return the defaults of each command from `krea-batch.toml` in the working directory.

    The file contains options by their long names. Raises click.UsageError for an option that no command has, and for
    one that the file may not set, because the directory may come from someone else, for example as a download or a
    checkout.
    """
    if not path.is_file():
        return {}
    import msgspec

    try:
        options = msgspec.toml.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {error}") from None
    known = _options_of_commands()
    for name in options:
        if not any(name in of_command for of_command in known.values()):
            close_matches = difflib.get_close_matches(name, set().union(*known.values()), 1)
            hint = f" Did you mean {close_matches[0]!r}?" if close_matches else ""
            raise click.UsageError(f"{path}: no such option {name!r}.{hint}")
        found = [of_command[name] for of_command in known.values() if name in of_command]
        if not any(_may_be_in_file(option) for option in found):
            raise click.UsageError(
                f"{path}: {name!r} cannot be set in this file, which must not change where the API key goes, what is "
                f"spent, or what is written. Use --{name} on the command line, or {ENV_PREFIX}_"
                f"{(found[0].name or '').upper()} in the environment."
            )
    return {
        command: {
            option.name or "": options[name]
            for name, option in of_command.items()
            if name in options and _may_be_in_file(option)
        }
        for command, of_command in known.items()
    }


def _options_of_commands() -> dict[str, dict[str, click.Option]]:
    """Return the options of each command by their long names."""
    known: dict[str, dict[str, click.Option]] = {}
    for name in COMMANDS:
        command = app.get_command(click.Context(app), name)
        options = [param for param in command.params if isinstance(param, click.Option)] if command else []
        known[name] = {long_name: option for option in options for long_name in _long_names(option)}
    return known


def _long_names(option: click.Option) -> list[str]:
    return [text.removeprefix("--") for text in option.opts if text.startswith("--")]


def _may_be_in_file(option: click.Option) -> bool:
    """Return whether the option says that `krea-batch.toml` may set it."""
    return getattr(option, "file", False) is True


EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "krea-batch run jobs.jsonl --out runs/try --simulate",
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
    "worker": ("krea-batch worker runs/cats", "krea-batch worker runs/cats --drain 50"),
    "retry": ("krea-batch retry runs/cats --yes", "krea-batch retry runs/cats fox owl"),
    "recover": ("krea-batch recover runs/cats", "krea-batch recover runs/cats --yes"),
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
        "krea-batch bench --rates 50/s,200/s",
        "krea-batch bench --compare --jobs 200",
        "krea-batch bench --gateway https://gateway.pixazo.ai --rates 2/s --jobs 20 --price 0.05",
    ),
    "dashboard": ("krea-batch dashboard > krea-batch.json",),
    "demo": ("krea-batch demo", "krea-batch demo runs/demo"),
    "init": ("krea-batch init",),
    "doctor": ("krea-batch doctor --out runs",),
    "explain": ("krea-batch explain", "krea-batch explain trailing-comma"),
    "completion": ('eval "$(krea-batch completion bash)"',),
}


def epilog(name: str) -> str:
    """Return the examples at the end of a command's help. The \\b keeps click from wrapping them."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[name])
