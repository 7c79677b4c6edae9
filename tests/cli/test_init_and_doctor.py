"""Commands for getting started: init, doctor, completion, help."""

from __future__ import annotations

import errno
import fcntl
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner, Result

from krea_batch.cli.app import BAD_INPUT, COMMANDS, EXAMPLES, INTERRUPTED, OK, SOME_FAILED, STOPPED, app
from krea_batch.cli.commands.init import config_text
from krea_batch.cli.options.run_options import RunOption
from krea_batch.cli.ui import diagnostics
from krea_batch.cli.ui.diagnostics import run_diagnostics
from tests.processes import PROCESS_TIMEOUT_S, clean_environment, http_server, run_command


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


class TestInit:
    @pytest.mark.slow
    def test_files_of_init_can_be_run(self, tmp_path: Path) -> None:
        """The files that init writes can be run, and existing files are kept."""
        done = run_command("init", cwd=tmp_path)
        assert done.returncode == 0
        assert "krea-batch run jobs.jsonl --out out --simulate" in done.stdout
        first = run_command("run", "jobs.jsonl", "--out", "out", "--simulate", "--time-scale=100", cwd=tmp_path)
        assert first.returncode == 0, first.stderr
        assert {path.stem for path in (tmp_path / "out" / "images").iterdir()} == {
            "lighthouse",
            "fox",
            "tea-seed=1",
            "tea-seed=2",
        }
        (tmp_path / "jobs.jsonl").write_text("mine")
        again = run_command("init", cwd=tmp_path)
        assert again.returncode == 1
        assert (tmp_path / "jobs.jsonl").read_text() == "mine"

    def test_settings_file_has_every_option_it_may_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the # removed from all its options, the file is accepted, and has every option that may be in it."""
        lines = [line.removeprefix("#") if line[1:2] != " " else line for line in config_text().splitlines()]
        names = set(tomllib.loads("\n".join(lines)))
        command = app.get_command(click.Context(app), "run")
        assert command
        assert names == {
            option.opts[0].lstrip("-") for option in command.params if isinstance(option, RunOption) and option.file
        }
        assert "rate" in names
        monkeypatch.chdir(tmp_path)
        (tmp_path / "krea-batch.toml").write_text("\n".join(lines))
        (tmp_path / "p.txt").write_text("a cat\n")
        done = call("plan", "p.txt")
        assert done.exit_code == 0, done.output


class DatedGateway(BaseHTTPRequestHandler):
    """A gateway that sends a Date header, and records the requests."""

    date = ""
    requests: list[tuple[str, str, dict[str, str]]] = []  # noqa: RUF012 - one server at a time

    def do_GET(self) -> None:
        self.requests.append((self.command, self.path, dict(self.headers)))
        self.send_response_only(404)
        self.send_header("Date", self.date or self.date_time_string())
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[str]:
    DatedGateway.date, DatedGateway.requests = "", []
    with http_server(DatedGateway) as url:
        yield url


class TestDoctor:
    def test_no_problem(self, gateway: str, tmp_path: Path) -> None:
        """Each check is ok, and one GET is sent, without the key."""
        done = run_command("doctor", "--gateway", gateway, "--json", cwd=tmp_path, key="very-secret")
        report = json.loads(done.stdout)
        assert done.returncode == 0, report
        assert report["state"] == "ok"
        assert [finding["check"] for finding in report["findings"]] == [
            "key",
            "gateway",
            "certificates",
            "disk",
            "files",
            "versions",
            "extras",
        ]
        ((command, path, headers),) = DatedGateway.requests
        assert (command, path.rpartition("/")[2]) == ("GET", "krea-batch-doctor")
        assert "very-secret" not in str(headers) + done.stdout + done.stderr

    def test_missing_key_and_gateway(self, tmp_path: Path) -> None:
        """A missing key and an unreachable gateway are failures with exit code 2; a pipe gets no colours."""
        done = run_command("doctor", "--gateway", "http://127.0.0.1:9", cwd=tmp_path, key="")
        assert done.returncode == 2
        assert "fail key      no API key\n              set PIXAZO_API_KEY" in done.stdout
        assert "fail gateway  http://127.0.0.1:9 is not reachable" in done.stdout
        assert "\x1b" not in done.stdout

    def test_clock_skew(self, gateway: str, tmp_path: Path) -> None:
        """A clock that differs much from the gateway's is a warning, with exit code 1."""
        DatedGateway.date = "Mon, 01 Jan 2024 00:00:00 GMT"
        done = run_command("doctor", "--gateway", gateway, cwd=tmp_path)
        assert done.returncode == 1
        assert "s ahead of the gateway's" in done.stdout

    def test_warnings_before_a_run(self, gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Low disk space, a network file system and a low limit of open files are warnings; no directory is made."""
        monkeypatch.setenv("PIXAZO_API_KEY", "k")
        monkeypatch.setattr(diagnostics, "MIN_FREE_IMAGES", 10**12)
        monkeypatch.setattr(diagnostics, "_file_system", lambda _: "nfs4")
        found = {
            (each.check, each.state): each.detail
            for each in run_diagnostics(tmp_path / "new" / "out", gateway, None, 10**9)
        }
        assert "network file system (nfs4)" in found["disk", "warn"] or "free in" in found["disk", "warn"]
        assert ("files", "warn") in found
        assert not (tmp_path / "new").exists()

    def test_a_directory_that_cannot_be_written(self, gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A directory that cannot be written is a failure."""
        monkeypatch.setenv("PIXAZO_API_KEY", "k")
        found = [each for each in run_diagnostics(Path("/proc/none"), gateway, None, 1) if each.check == "disk"]
        assert [each.state for each in found] == ["fail"]

    def test_a_file_system_without_locks(self, gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A directory that cannot be locked is a failure with the reason, and nothing is left in it."""

        def fail(*_: int) -> NoReturn:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", fail)
        found = [each for each in run_diagnostics(tmp_path, gateway, None, 1) if each.check == "disk"]
        assert [each.state for each in found] == ["fail"]
        assert "cannot be locked" in found[0].detail
        assert "local disk" in found[0].hint
        assert list(tmp_path.iterdir()) == []


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_a_script_for_each_shell(self, shell: str) -> None:
        """The script is for that shell, and calls krea-batch."""
        done = call("completion", shell)
        assert done.exit_code == 0
        assert f"_KREA_BATCH_COMPLETE={shell}_complete" in done.stdout

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("words", "expected"),
        [("krea-batch ret", "retry"), ("krea-batch export --form", "--format"), ("krea-batch completion f", "fish")],
    )
    def test_in_a_real_bash(self, tmp_path: Path, words: str, expected: str) -> None:
        """Bash completes commands, options and values."""
        bash = shutil.which("bash")
        assert bash
        program = Path(sys.executable).with_name("krea-batch")
        assert program.is_file()
        script = (
            "source <(krea-batch completion bash)\n"
            f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
            '_krea_batch_completion krea-batch; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        env = clean_environment(PATH=f"{program.parent}:/usr/bin:/bin")
        done = subprocess.run(
            [bash, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S
        )
        assert expected in done.stdout.split(), done.stderr


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_and_option_has_help(self, name: str) -> None:
        """Each command has a help text, and so has each of its options."""
        done = call(name, "--help")
        assert done.exit_code == 0
        command = app.get_command(click.Context(app), name)
        assert command
        assert command.help
        assert all(
            option.help for option in command.params if isinstance(option, click.Option) and option.name != "help"
        )

    @pytest.mark.parametrize("name", COMMANDS)
    def test_examples_are_commands(self, name: str) -> None:
        """The help of a command has examples, and each example is a valid command."""
        shown = CliRunner().invoke(app, [name, "--help"]).output
        for line in EXAMPLES[name]:
            assert line in shown
            match = re.search(r"krea-batch ([^>)]+)", line)
            assert match
            command_name, *arguments = shlex.split(match[1])
            assert command_name == name
            command = app.get_command(click.Context(app), name)
            assert command is not None
            command.make_context(name, arguments)  # raises for an unknown option

    def test_exit_codes(self) -> None:
        """The help of krea-batch lists each exit code."""
        shown = CliRunner().invoke(app, ["--help"]).output
        documented = re.findall(r"^ +(\d+) +[a-z]", shown, re.MULTILINE)
        assert [int(code) for code in documented] == [OK, SOME_FAILED, BAD_INPUT, STOPPED, INTERRUPTED]
