"""Options that are times: all of them take the same units."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from krea_batch.cli.app import COMMANDS, app
from krea_batch.cli.options.run_options import Duration
from krea_batch.settings import parse_duration_s

DURATIONS = [
    ("30m", 1800),
    ("1h", 3600),
    ("90s", 90),
    ("90", 90),
    ("0.5", 0.5),
    ("1h30m", 5400),
    ("1.5h", 5400),
    ("2 min", 120),
    ("1d", 86_400),
    ("10 Seconds", 10),
]
NOT_DURATIONS = ["", "m", "30x", "30m x", "1:30", "h30", "30 fortnights", "ms"]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_durations(text: str, seconds: float) -> None:
    """A time has units, or is a number of seconds."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", NOT_DURATIONS)
def test_not_durations(text: str) -> None:
    """Anything else is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        parse_duration_s(text)


def test_options_of_commands() -> None:
    """Every option whose value is a TIME takes units, and there are such options in `run`, `plan` and `simulate`."""
    found: dict[str, set[str]] = {}
    for name in COMMANDS:
        command = app.get_command(click.Context(app), name)
        for param in command.params if command else ():
            is_duration = isinstance(param.type, Duration)
            assert (param.metavar == "TIME") == is_duration, param.name
            if is_duration:
                found.setdefault(name, set()).add(param.opts[0])
    assert found["run"] == {"--poll-interval", "--job-timeout"}
    assert found["plan"] == {"--poll-interval"}
    assert found["simulate"] == {"--slow-duration", "--hang-duration"}


def test_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, the environment and the settings file take units; what is no time is refused."""
    Path("a.txt").write_text("a cat\n")
    plan = ("plan", "a.txt", "--json")
    slow, fast = (
        json.loads(CliRunner().invoke(app, [*plan, "--latency", latency, "--poll-interval", "5s"]).stdout)["seconds"]
        for latency in ("10m", "1s..0.5m")
    )
    assert slow > 600 > fast
    dry_run = ("run", "a.txt", "--out", "out", "--dry-run")
    assert CliRunner().invoke(app, [*dry_run, "--job-timeout", "30m"]).exit_code == 0
    refused = CliRunner().invoke(app, [*dry_run, "--job-timeout", "30x"])
    assert refused.exit_code == 2
    assert "'30x' is not a time. Write 30m, 1h30m, 90s, or a number of seconds." in refused.stderr
    monkeypatch.setenv("KREA_BATCH_JOB_TIMEOUT", "1h")
    assert CliRunner().invoke(app, dry_run).exit_code == 0
    Path("krea-batch.toml").write_text('poll-interval = "5s"\n')
    assert CliRunner().invoke(app, dry_run).exit_code == 0
