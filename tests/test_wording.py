"""Words and phrases that are not used, in code, docs, pages and help; codespell checks single words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from krea_batch.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".js", ".j2", ".css", ".sql", ".toml", ".yml", ".yaml"}
SKIPPED = {".git", ".venv", "site", "build", "dist", ".mypy_cache", ".ruff_cache", ".hypothesis", ".pytest_cache"}
NOT_USED = re.compile(
    r"\b(anew|mend(s|ed|ing)?|in vain|beforehand|of late|somebody|whoever|(brought|brings?|bringing) home"
    r"|stands? (in|twice|once)|his|he|comes? in;|goes out|on record|in the air|aloft|newcomers:|at once)\b",
    re.IGNORECASE,
)


def texts() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        if path == Path(__file__) or SKIPPED & {*relative.parts} or not path.is_file():
            continue
        if path.suffix in SUFFIXES or path.name == "Makefile":
            yield str(relative), path.read_text("utf-8")


def test_phrases_that_are_not_used() -> None:
    """No file uses a word or a phrase of the list."""
    found = [
        f"{name}:{number}: {match[0]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := NOT_USED.search(line))
    ]
    assert found == []


@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_uses_none_of_them(command: str) -> None:
    """Neither does the help of any command."""
    context = click.Context(app, info_name="krea-batch")
    found = app.get_command(context, command) if command else app
    assert found is not None
    text = found.get_help(click.Context(found, info_name=command, parent=context if command else None))
    assert NOT_USED.search(text) is None
