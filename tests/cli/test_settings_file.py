"""`krea-batch.toml` of the working directory may have come from someone else: it can set harmless options only."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from krea_batch.cli.app import COMMANDS, app
from krea_batch.settings import OPTIONS
from tests.processes import http_server, run_command, write_jobs

HARMLESS = {
    "rate", "max-in-flight", "poll-interval", "poll-rate", "shared-quota", "poll-lag-weight", "job-timeout",
    "log-format",
}  # fmt: skip
"""What `krea-batch.toml` may set. Before you add an option, consider every value of it, in every command."""


def options_of_all_commands() -> dict[str, click.Option]:
    """Return the options of all commands by their long names; of two with one name, that of the first command."""
    options: dict[str, click.Option] = {}
    for name in COMMANDS:
        command = app.get_command(click.Context(app), name)
        assert command is not None
        for param in command.params:
            if isinstance(param, click.Option):
                options = {text.removeprefix("--"): param for text in param.opts if text.startswith("--")} | options
    return options


ALL_OPTIONS = options_of_all_commands()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a job file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a cat\n")
    return tmp_path


class Stranger(BaseHTTPRequestHandler):
    """A server that records the headers of all requests."""

    seen: list[dict[str, str]] = []  # noqa: RUF012 - one server at a time

    def do_GET(self) -> None:
        self.seen.append(dict(self.headers))
        self.send_error(404)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[str]:
    """The URL of a server that is not the gateway."""
    Stranger.seen = []
    with http_server(Stranger) as url:
        yield url


@pytest.mark.parametrize("name", sorted(set(ALL_OPTIONS) - HARMLESS))
def test_no_other_option_can_be_set(folder: Path, name: str) -> None:
    """An option that is not known to be harmless is an error that names the command line and the variable."""
    (folder / "krea-batch.toml").write_text(f'{name} = "x"\n')
    done = CliRunner().invoke(app, ["validate", "p.txt"])
    assert done.exit_code == 2
    assert f"krea-batch.toml: '{name}' cannot be set in this file" in done.stderr
    assert f"--{name} on the command line" in done.stderr
    assert f"KREA_BATCH_{(ALL_OPTIONS[name].name or '').upper()} in the environment" in done.stderr


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_harmless_options_can_be_set(folder: Path, name: str) -> None:
    """A harmless option is read from the file: a value that it cannot have is an error of that option."""
    (folder / "krea-batch.toml").write_text(f'{name} = "nonsense"\n')
    done = CliRunner().invoke(app, ["run", "p.txt", "--out", "out", "--simulate"], env={"PIXAZO_API_KEY": "k"})
    assert done.exit_code != 0
    assert "cannot be set" not in done.output
    assert f"--{name}" in done.stderr or name in str(done.exception).replace("_", "-")


def test_settings_are_not_allowed_by_default() -> None:
    """A setting may be in the file only if its table entry says so, and these are the harmless ones."""
    allowed = {name.removesuffix("_s").replace("_", "-") for name, option in OPTIONS.items() if option.file}
    assert allowed == HARMLESS - {"log-format"}
    for never in ("gateway", "max_charges", "ambiguous", "max_attempts", "max_identical_failures", "sink",
                  "references", "webhook", "allow_networks", "count_server_errors"):  # fmt: skip
        assert not OPTIONS[never].file


@pytest.mark.parametrize("spelling", ["api_key_file", "Gateway", "gateway ", "--gateway"])
def test_other_spellings_are_unknown(folder: Path, spelling: str) -> None:
    """Another spelling of an option is no way around: it is an unknown option."""
    (folder / "krea-batch.toml").write_text(f'"{spelling}" = "http://127.0.0.1:9"\n')
    done = CliRunner().invoke(app, ["validate", "p.txt"])
    assert (done.exit_code, "no such option" in done.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("run", "jobs.jsonl", "--out", "out"), ("doctor",), ("bench", "--jobs=1", "--yes")]
)
def test_the_key_goes_nowhere_else(stranger: str, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A file that names another gateway, or a file as the key, sends nothing to that gateway; the exit code is 2."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    (tmp_path / "secret").write_text("one-line-secret\n")
    for text in (f'gateway = "{stranger}"\n', f'gateway = "{stranger}"\napi-key-file = "secret"\nyes = true\n'):
        (tmp_path / "krea-batch.toml").write_text(text)
        done = run_command(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert "cannot be set in this file" in done.stderr
    assert Stranger.seen == []
