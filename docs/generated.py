"""Text that cog inserts into the documentation, so that options, help and states are written in one place.

`make generate` inserts it, `make check` compares.
"""

from __future__ import annotations

import html
import re
from typing import get_args

import click

from krea_batch.cli.app import COMMANDS, app
from krea_batch.cli.options.run_options import DEFAULTS, TYPES
from krea_batch.cli.ui.error_messages import option_of
from krea_batch.cli.ui.explanations import topic_of
from krea_batch.jobs import STATES
from krea_batch.rules.lifecycle import ACTIONS, PATHS
from krea_batch.settings import OPTIONS, Rate
from tests.messages.all_cases import CASES
from tests.messages.message_case import ANY, MessageCase

WIDTH = 100
MAX_SHOWN_CHARS = 90  # chosen: longer ones make a table that is hard to read
_MARKDOWN = re.compile(r"[\\*`|]|__+")  # has a meaning in Markdown, and in HTML within it, too
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


def cases_by_topic() -> dict[str, tuple[str, list[MessageCase]]]:
    """Return the topics of all messages, each with its heading and a case for each of its messages."""
    found: dict[str, tuple[str, dict[str, MessageCase]]] = {}
    for heading, cases in CASES.items():
        for case in cases:
            found.setdefault(topic_of(case.message), (heading, {}))[1].setdefault(case.message, case)
    return {topic: (heading, list(by_message.values())) for topic, (heading, by_message) in found.items()}


def messages_tables() -> str:
    """Return a table for each kind of input, with each message and an example of what follows its advice.

    The first message of each topic has an anchor.
    """
    by_heading: dict[str, list[str]] = {}
    for topic, (heading, cases) in cases_by_topic().items():
        rows = by_heading.setdefault(
            heading, [f"## {heading}", "", "| message | instead of | write |", "|---|---|---|"]
        )
        for number, case in enumerate(cases):
            cells = (_code(case.message, anchor="" if number else topic), *map(_code, change_of(case)))
            rows.append(f"| {' | '.join(cells)} |")
    return "\n" + "\n\n".join("\n".join(rows) for rows in by_heading.values()) + "\n\n"


def change_of(case: MessageCase) -> tuple[str, str]:
    """Return what is wrong in the example of a message, and what is right; empty if one of them is too long."""
    change = _change(case)
    return ("", "") if any(len(text) > MAX_SHOWN_CHARS for text in change) else change


def _change(case: MessageCase) -> tuple[str, str]:
    if case.new_args:
        return case.args.strip(), case.new_args.strip()
    for name, content in case.new_files.items():
        before = case.files.get(name, b"")
        if isinstance(before, str) and isinstance(content, str):
            return before.strip(), content.strip()
    return "", ""


def _code(text: str, *, anchor: str = "") -> str:
    """Return text as code in a cell of a table, with an anchor if one is given. Its lines may be broken."""
    escaped = html.escape(text.strip().replace(ANY, "…"), quote=False)
    escaped = _MARKDOWN.sub(lambda match: "".join(f"&#{ord(char)};" for char in match[0]), escaped)
    opening = f'<code class="sentence" id="{anchor}">' if anchor else '<code class="sentence">'
    return f"{opening}{'<br>'.join(escaped.splitlines())}</code>" if escaped else ""
