"""`--lines` and `--whole-file` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from krea_batch.cli.app import app
from tests.processes import FAST_SIMULATION, run_command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a working directory with a directory of lists, and return it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "animals.txt").write_text("a red kite\na brown owl\n")
    (tmp_path / "lists" / "places.txt").write_text("a blue door\n")
    (tmp_path / "lists" / "README.txt").write_text("about\nthe lists\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "ids"), [("--lines", ["00001", "00002", "00003"]), ("--whole-file", ["animals", "places"])]
)
def test_a_run(folder: Path, option: str, ids: list[str]) -> None:
    """A run is refused before anything is charged, and each way out that the refusal names works."""
    command = ("run", "lists", *FAST_SIMULATION, "--out=out")
    done = run_command(*command, cwd=folder)
    assert done.returncode == 2
    assert "lists: text files with several lines: 1 of 2, the first animals.txt (2 lines)" in done.stderr
    assert f"{option} makes {len(ids)}" in done.stderr
    assert not (folder / "out").exists()
    done = run_command(*command, option, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "left out: README.txt" in done.stderr
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ids
    assert [row["metadata"]["source_file"] for row in rows][-1] in ("animals.txt", "places.txt")


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_validate_and_plan(folder: Path, command: str) -> None:
    """`validate` and `plan` refuse what a run refuses."""
    refused = CliRunner().invoke(app, [command, "lists"])
    assert refused.exit_code != 0
    assert "several lines" in refused.stderr + str(refused.exception)
    assert CliRunner().invoke(app, [command, "lists", "--lines"]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--lines", "--whole-file"], "--lines: cannot be combined with --whole-file; keep one of them"),
        (["--whole-file", "--separator=---"], "--whole-file: cannot be combined with --separator"),
        (["--lines", "--input-format=csv"], "--lines: is for text files; leave out --input-format csv"),
    ],
)
def test_options_that_contradict(folder: Path, options: list[str], expected: str) -> None:
    """Options that contradict each other are refused, and both are named."""
    done = CliRunner().invoke(app, ["validate", "lists", *options])
    assert done.exit_code == 2
    assert expected in done.stderr
