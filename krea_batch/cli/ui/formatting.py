"""Numbers, durations and sizes as text."""

from __future__ import annotations

import click

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


def styled_status(state: str) -> str:
    """Return `ok`, `warn` or `fail`, four characters wide, coloured (click removes colours outside terminals)."""
    import os

    return click.style(f"{state:4}", fg=None if os.environ.get("NO_COLOR") else _COLOURS[state])


def say(line: str) -> None:
    """Print a line on standard error, in characters that any terminal can show."""
    click.echo(line.encode("utf-8", "backslashreplace").decode(), err=True)


def printable(text: str) -> str:
    """Return the text with spaces for characters that could move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)
