"""Numbers, durations and sizes as text, and the functions that print and ask.

Printed text may come from outside: prompts, ids, file names, texts in images, messages of the gateway. In a terminal,
control characters in it could hide lines, change the title or type commands. So these functions escape them, and
nothing else in `cli` calls `click.echo`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress

import click

# C0 and C1 controls and DEL (ECMA-48), line and paragraph separators, controls of the direction of text (Unicode
# Standard Annex 9, and the deprecated ones beside them), and lone surrogates, which cannot be encoded.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
_CONTROLS_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")  # JSON escapes C0 itself
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def format_bytes(count: float) -> str:
    """Return a size in the largest decimal unit that gives at least 1: `1.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_duration(seconds: float) -> str:
    """Return a duration: `0:07`, `12:30`, `3:00:00`."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def pluralize(count: int, noun: str) -> str:
    """Return `1 job` or `2 jobs`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """Return the text as one line, with escapes such as `\\x1b` for characters that could control a terminal."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    """Return JSON with escapes for characters that could control a terminal; its value stays the same."""
    return _CONTROLS_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(line: str) -> None:
    """Print a line on standard error. If its reader or the terminal is gone, print nothing, and continue."""
    with suppress(OSError):
        click.echo(printable(line), err=True)


def show(*lines: str) -> None:
    """Print lines on standard output."""
    click.echo("\n".join(map(printable, lines)))


def show_json(text: str | bytes) -> None:
    """Print JSON on standard output, with escapes for letters that its encoding does not have."""
    shown = printable_json(text.decode() if isinstance(text, bytes) else text)
    try:
        shown.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        shown = "".join(char if char.isascii() else json.dumps(char)[1:-1] for char in shown)
    click.echo(shown)


def show_state(state: str, line: str) -> None:
    """Print `ok`, `warn` or `fail` in colour (click removes colours outside terminals), and a line after it."""
    word = click.style(f"{state:4}", fg=None if os.environ.get("NO_COLOR") else _COLOURS[state])
    click.echo(f"{word} {printable(line)}")


def ask_to_continue() -> bool:
    """Ask on standard error whether to continue. Raises click.UsageError if standard input is not a terminal."""
    if not sys.stdin.isatty():
        raise click.UsageError("cannot ask for confirmation (not a terminal); pass --yes")
    return click.confirm("Continue?", err=True)
