"""The manual pages and completion scripts that a wheel installs below `share`.

Both are made from the commands of click, so an option is described in one place. This module imports only what the
build environment has: click, and what the options import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click

from krea_batch.cli.app import COMMANDS, app
from krea_batch.cli.commands.completion import SHELLS, completion_script

COMPLETION_PATHS = {
    "bash": "share/bash-completion/completions/krea-batch",
    "zsh": "share/zsh/site-functions/_krea-batch",
    "fish": "share/fish/vendor_completions.d/krea-batch.fish",
}


def shell_files(version: str) -> dict[str, str]:
    """Return the text of each file by its path below the prefix of an environment."""
    root = click.Context(app, info_name="krea-batch", **app.context_settings)
    files = {"share/man/man1/krea-batch.1": manual_page(root, version)}
    for name in COMMANDS:
        command = app.get_command(root, name)
        if command is None:
            raise LookupError(name)
        context = click.Context(command, info_name=name, parent=root)
        files[f"share/man/man1/krea-batch-{name}.1"] = manual_page(context, version)
    return files | {COMPLETION_PATHS[shell]: completion_script(shell) for shell in SHELLS}


def manual_page(context: click.Context, version: str) -> str:
    """Return the manual page of a command, in the man macros of roff."""
    command, name = context.command, context.command_path.replace(" ", "-")
    page = _ManualPage()
    page.write(f'.TH "{_escape(name.upper())}" 1 "" "krea-batch {version}" "krea-batch"\n')
    summary = command.get_short_help_str(limit=200).rstrip(".")
    page.write(f".SH NAME\n{_escape(name)} \\- {_escape(summary)}\n")
    command.format_help(context, page)
    if context.parent is None:
        others = ", ".join(f"\\fBkrea\\-batch\\-{other}\\fR(1)" for other in COMMANDS)
    else:
        others = "\\fBkrea\\-batch\\fR(1)"
    page.write(f".SH SEE ALSO\n{others}\n")
    return page.getvalue()


class _ManualPage(click.HelpFormatter):
    """Writes the help of a command as roff, which wraps its lines when it is shown."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.write(f".SH SYNOPSIS\n.B {_escape(prog)}\n{_escape(args)}\n.SH DESCRIPTION\n")

    def write_paragraph(self) -> None:
        """Write nothing: the text that follows begins a paragraph."""

    def write_text(self, text: str) -> None:
        """Write paragraphs. As in click, one that begins with \\b keeps its lines."""
        for paragraph in text.split("\n\n"):
            keeps_lines = paragraph.startswith("\b\n")
            lines = _escape(paragraph.removeprefix("\b\n").rstrip("\n"))
            self.write(f".PP\n.nf\n{lines}\n.fi\n" if keeps_lines else f".PP\n{lines}\n")

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.write(f".SH {_escape(name.upper())}\n")
        yield

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        for term, description in rows:
            self.write(f".TP\n\\fB{_escape(term)}\\fR\n{_escape(description)}\n")


def _escape(text: str) -> str:
    """Return text in which roff finds no macro and no escape, and shows every hyphen as the one that can be typed."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))
