"""`krea-batch validate` tells every bad line, and spends nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from krea_batch.cli.validate import validate


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(validate, arguments, input=stdin)


def test_all_good(folder: Path) -> None:
    """Good files: a summary on standard output, nothing on standard error, exit code 0."""
    (folder / "a.jsonl").write_text('{"prompt": "x"}\n' * 3)
    (folder / "b.jsonl").write_text('{"prompt": "x"}\n')
    result = call("a.jsonl", "b.jsonl")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "4 good jobs, 0 bad lines in 2 files\n", "")


def test_every_bad_line_is_listed(folder: Path) -> None:
    """Bad lines: each on standard error as FILE:LINE, however many, and exit code 2."""
    (folder / "a.jsonl").write_text('{"promt": "x"}\n' * 300 + '{"prompt": "x"}\n')
    result = call("a.jsonl")
    assert result.exit_code == 2
    assert result.stdout == "1 good job, 300 bad lines in 1 file\n"
    assert result.stderr.splitlines() == [
        f'a.jsonl:{number}: "promt" is not a field of a job, did you mean "prompt"?' for number in range(1, 301)
    ]


def test_json(folder: Path) -> None:
    """--json prints one object with the counts and the first problems, and still lists the lines."""
    (folder / "a.jsonl").write_text('{"prompt": "x"}\n{"prompt": ""}\n')
    result = call("a.jsonl", "--json")
    problem = {
        "path": "a.jsonl",
        "line": 2,
        "wrong": '"prompt" is empty',
        "right": "write in quotes what the picture shows",
    }
    assert json.loads(result.stdout) == {
        "jobs": 1,
        "rows": 1,
        "bad_lines": 1,
        "duplicates": 0,
        "problems": [problem],
        "notes": [],
    }
    assert result.stderr.startswith("a.jsonl:2: ")
    assert result.exit_code == 2


def test_keep_extra_and_notes(folder: Path) -> None:
    """--keep-extra lets unknown fields pass and warns of those that look mistyped; --quiet does not warn."""
    (folder / "a.jsonl").write_text('{"prompt": "x", "sead": 5}\n')
    assert call("a.jsonl").exit_code == 2
    result = call("a.jsonl", "--keep-extra")
    assert result.exit_code == 0
    assert result.stderr == 'a.jsonl:1: "sead" went into the metadata, did you mean "seed"?\n'
    assert call("a.jsonl", "--keep-extra", "--quiet").output == ""


def test_standard_input(folder: Path) -> None:
    """- is standard input."""
    result = call("-", stdin='{"prompt": "x"}\n{"prompt": "y"\n')
    assert result.stderr.startswith("<stdin>:2: the line ends before its object does")
    assert result.stdout == "1 good job, 1 bad line in 1 file\n"


def test_no_job_at_all(folder: Path) -> None:
    """A file without a job is hardly what was meant: exit code 2, and a sentence."""
    (folder / "a.jsonl").write_text("\n\n")
    result = call("a.jsonl")
    assert result.exit_code == 2
    assert "there is no job in what was given" in result.stderr


def test_missing_file(folder: Path) -> None:
    """A missing file is named in a sentence, with exit code 2."""
    result = call("none.jsonl")
    assert result.exit_code == 2
    assert result.stderr == "krea-batch: none.jsonl: there is no such file: check the path\n"


def test_as_a_command(folder: Path) -> None:
    """`krea-batch validate` works as a whole process, and says what is bad in any locale."""
    (folder / "a.jsonl").write_text('{"prompt": “x”}\n', encoding="utf-8")
    command = [sys.executable, "-m", "krea_batch", "validate", "a.jsonl"]
    done = subprocess.run(command, capture_output=True, env={"LC_ALL": "C"}, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("a.jsonl:1: there is the quote")
