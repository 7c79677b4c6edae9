"""`krea-batch` with prompts, values and selections on the command line, and with names that other tools have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from krea_batch.cli.app import app
from krea_batch.cli.options.selection_options import HINTS
from tests.processes import FAST_SIMULATION, run_command


@pytest.fixture(autouse=True)
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red kite\na blue door\n")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_the_selection_is_told() -> None:
    """`validate` says how many of the jobs are selected."""
    done = call("validate", "p.txt", "--limit", "1")
    assert "1 of 2 jobs selected" in done.stderr
    assert done.stdout.startswith("1 valid job,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "aspect_ratio=16:8"), '--set: "aspect_ratio" is "16:8"; use one of'),
        (("--set", "seed=1", "--set", "seed=2"), "--set: seed is given more than once; use --sweep seed="),
        (("--set", "seed=1", "--seeds", "1..4"), "--set: seed is both set and swept; keep one of them"),
        (("--limit", "1", "--sample", "1"), "--sample: cannot be combined with --limit"),
    ],
)
def test_wrong_values_are_told_once(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """A wrong value is reported before files are read, so that a missing file makes no difference."""
    done = run_command("validate", "none.txt", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count(message) == 1


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (command, name)
        for command in ("run", "plan", "validate")
        for name in HINTS
        if (command, name) != ("plan", "--price")
    ],
)
def test_hints_for_names_of_other_tools(command: str, name: str) -> None:
    """A name that other tools have is answered with what to use instead."""
    done = call(command, "p.txt", name, "x")
    assert done.exit_code == 2
    assert HINTS[name] in done.stderr


def test_a_prompt_instead_of_jobs() -> None:
    """Without JOBS and --prompt, or with both, the command says so; a prompt in place of a file is recognised."""
    assert call("validate", "--prompt", "a red kite").stdout == "1 valid job, 0 invalid lines in 1 prompt\n"
    assert "Missing argument 'JOBS…', or --prompt TEXT" in call("validate").stderr
    assert "cannot be combined" in call("validate", "p.txt", "--prompt", "x").stderr
    assert "use --prompt 'a red kite'" in call("run", "a red kite", "--out", "r").stderr


def test_dry_run_is_plan(tmp_path: Path) -> None:
    """`run --dry-run` prints what `plan` prints, needs no key and writes nothing."""
    done = call("run", "p.txt", "--out", "r", "--dry-run", "--rate", "2/s")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == call("plan", "p.txt", "--rate", "2/s").stdout
    assert not (tmp_path / "r").exists()
    assert call("run", "p.txt", "--out", "r", "--dry-run", "--rate", "x").exit_code != 0


@pytest.mark.slow
def test_run_with_a_prompt_and_a_value(tmp_path: Path) -> None:
    """A prompt on the command line becomes an image with the values that are set."""
    command = ("run", "--prompt", "a red kite", "--set", "aspect_ratio=16:9", "--out", "r")
    done = run_command(*command, *FAST_SIMULATION, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "r/results.jsonl").read_text())
    assert (row["id"], row["request"]["prompt"], row["request"]["aspect_ratio"]) == ("00001", "a red kite", "16:9")


@pytest.mark.parametrize("command", ["run", "plan", "validate"])
def test_a_long_prompt_in_place_of_a_file(command: str) -> None:
    """A prompt that is too long for the name of a file gets the same advice as a short one."""
    prompt = " ".join(["a harbour at dawn"] * 20)
    done = call(command, prompt, *(["--out", "out"] if command == "run" else []))
    assert done.exit_code == 2
    assert f"There is no file '{prompt}'. If it is a prompt, use --prompt '{prompt}'." in done.stderr
