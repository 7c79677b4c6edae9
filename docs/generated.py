"""Text that cog inserts into the documentation, so that options, help and states are written in one place.

`make generate` inserts it, `make check` compares.
"""

from __future__ import annotations

from typing import get_args

import click

from krea_batch.cli.app import COMMANDS, app, option_of
from krea_batch.cli.options.run_options import DEFAULTS, TYPES
from krea_batch.jobs import STATES
from krea_batch.rules.lifecycle import ACTIONS, PATHS
from krea_batch.settings import OPTIONS, Rate

WIDTH = 100
CHARGED = {True: "yes", False: "no", None: "unknown"}


def help_of_all_commands() -> str:
    """Return a section with the help of each command."""
    root = click.Context(app, info_name="krea-batch", max_content_width=WIDTH, terminal_width=WIDTH)
    sections = []
    for name in COMMANDS:
        command = app.get_command(root, name)
        if command is None:
            raise LookupError(name)
        context = click.Context(command, info_name=name, parent=root, max_content_width=WIDTH, terminal_width=WIDTH)
        sections.append(f"## krea-batch {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n" + "\n".join(sections)


def settings_table() -> str:
    """Return a row for each setting, with whether `krea-batch.toml` may have it."""
    rows = ["| keyword of `Engine` | option | type | default | in the file | |", "|---|---|---|---|---|---|"]
    for name, option in OPTIONS.items():
        flag = f"`{option_of(name)}`" if option.command_line else "–"
        file = "yes" if option.file else ""
        rows.append(f"| `{name}` | {flag} | {_type(TYPES[name])} | {_default(name)} | {file} | {option.help} |")
    return "\n".join(["", *rows, ""])


def _type(hint: object) -> str:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind not in (type(None), Ellipsis)]
    names = [getattr(kind, "__name__", str(kind)) for kind in kinds]
    return ", ".join(f"`{name}`" for name in names)


def _default(name: str) -> str:
    option = OPTIONS[name]
    default = DEFAULTS[name]
    text = f"`{default.text if isinstance(default, Rate) else default}`"
    if default in (None, ()):
        text = option.none_means or "none"
    return text if option.command_default is None else f"{text}; on the command line `{option.command_default}`"


def states_table() -> str:
    """Return a row for each state."""
    rows = ["| state | meaning | final | charged | the next run resumes it as |", "|---|---|---|---|---|"]
    for state, info in STATES.items():
        final = "yes" if info.final else ""
        resumes_as = f"`{info.resumes_as}`" if info.resumes_as else "–"
        rows.append(f"| `{state}` | {info.doc} | {final} | {CHARGED[info.charged]} | {resumes_as} |")
    return "\n".join(["", *rows, ""])


def transitions_table() -> str:
    """Return a row for each path of an action, with its meaning."""
    rows = ["| transition | when |", "|---|---|"]
    for action, meaning in ACTIONS.items():
        rows += [f"| {' → '.join(f'`{state}`' for state in path)} | {meaning} |" for path in PATHS[action]]
    return "\n".join(["", *rows, ""])
