"""The help of commands with many options has them under headings."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from krea_batch.cli.app import COMMANDS, app
from krea_batch.cli.options.headings import HEADINGS, GroupedCommand

MAX_WITHOUT_HEADINGS = 25
MAX_OTHER_OPTIONS = 5


def grouped_commands() -> dict[str, click.Command]:
    commands = {name: app.get_command(click.Context(app), name) for name in COMMANDS}
    return {name: command for name, command in commands.items() if isinstance(command, GroupedCommand)}


def test_commands() -> None:
    """Every command with many options has headings; every name in the table is an option of a command."""
    many = {
        name
        for name in COMMANDS
        if (command := app.get_command(click.Context(app), name)) and len(command.params) > MAX_WITHOUT_HEADINGS
    }
    assert many <= {*grouped_commands()}
    named = [name for names in HEADINGS.values() for name in names]
    assert len(named) == len({*named})
    assert {*named} <= {param.name for command in grouped_commands().values() for param in command.params}


@pytest.mark.parametrize("name", ["run", "plan", "validate", "retry"])
def test_help(name: str) -> None:
    """Every option is listed once, and few of them are under no heading of their own."""
    text = CliRunner().invoke(app, [name, "--help"], terminal_width=100).stdout
    sections = re.split(r"^(\w[\w ]*):$", text, flags=re.MULTILINE)
    options = {
        heading: re.findall(r"^  (?:-\w, )?(--[a-z-]+)", body, re.MULTILINE)
        for heading, body in zip(sections[1::2], sections[2::2], strict=True)
        if heading in HEADINGS
    }
    assert len(options) > 3
    assert len(options["Options"]) <= MAX_OTHER_OPTIONS
    listed = [each for names in options.values() for each in names]
    command = grouped_commands()[name]
    expected = ["--help", *(param.opts[0] for param in command.params if isinstance(param, click.Option))]
    assert not re.search(r"^  (?:JOBS|OUT|\[ID)", "".join(sections[2::2]), re.MULTILINE), "arguments are no options"
    assert sorted(listed) == sorted(each if each.startswith("--") else "--" + each for each in expected)
