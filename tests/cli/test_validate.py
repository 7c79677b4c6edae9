"""`krea-batch validate` lists every invalid line, and sends nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from krea_batch.cli.commands.validate import validate
from krea_batch.cli.ui import check_progress
from tests.processes import run_in_terminal


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(validate, arguments, input=stdin)


def test_valid_files(folder: Path) -> None:
    """Valid files give a summary on standard output, nothing on standard error, and exit code 0."""
    (folder / "a.jsonl").write_text("".join(f'{{"prompt": "{n}"}}\n' for n in range(3)))
    (folder / "b.jsonl").write_text('{"prompt": "x"}\n')
    result = call("a.jsonl", "b.jsonl")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "4 valid jobs, 0 invalid lines in 2 files\n", "")


def test_every_invalid_line_is_listed(folder: Path) -> None:
    """Each invalid line is printed on standard error as FILE:LINE, without a limit, and the exit code is 2.

    The last line names the command that explains them.
    """
    (folder / "a.jsonl").write_text('{"promt": "x"}\n' * 300 + '{"prompt": "x"}\n')
    result = call("a.jsonl")
    assert result.exit_code == 2
    assert result.stdout == "1 valid job, 300 invalid lines in 1 file\n"
    assert result.stderr.splitlines() == [
        *(f'a.jsonl:{number}: "promt" is not a field of a job; did you mean "prompt"?' for number in range(1, 301)),
        "For details: krea-batch explain not-field-job",
    ]


def test_json(folder: Path) -> None:
    """--json prints one object with the counts and the first problems, and the lines are listed too."""
    (folder / "a.jsonl").write_text('{"prompt": "x"}\n{"prompt": ""}\n')
    result = call("a.jsonl", "--json")
    problem = {
        "path": "a.jsonl",
        "line": 2,
        "problem": '"prompt" is empty',
        "hint": "write in quotes what the image shows",
    }
    assert json.loads(result.stdout) == {
        "jobs": 1,
        "rows": 1,
        "bad_lines": 1,
        "duplicates": 0,
        "repeated": 0,
        "repeated_names": 0,
        "unselected": 0,
        "references": 0,
        "reference_bytes": 0,
        "problems": [problem],
        "notes": [],
        "unread_syntax": [],
        "kept_arguments": [],
    }
    assert result.stderr.startswith("a.jsonl:2: ")
    assert result.exit_code == 2


def test_keep_extra_and_notes(folder: Path) -> None:
    """--keep-extra accepts unknown fields, and warns of those that look mistyped; with --quiet it does not warn."""
    (folder / "a.jsonl").write_text('{"prompt": "x", "sead": 5}\n')
    assert call("a.jsonl").exit_code == 2
    result = call("a.jsonl", "--keep-extra")
    assert result.exit_code == 0
    assert result.stderr == 'a.jsonl:1: "sead" was put into the metadata; did you mean "seed"?\n'
    assert call("a.jsonl", "--keep-extra", "--quiet").output == ""


def test_standard_input(folder: Path) -> None:
    """The argument - reads standard input, which errors call <stdin>."""
    result = call("-", stdin='{"prompt": "x"}\n{"prompt": "y"\n')
    assert result.stderr.startswith("<stdin>:2: the line ends before the object is complete")
    assert result.stdout == "1 valid job, 1 invalid line in 1 file\n"


def test_a_file_without_jobs(folder: Path) -> None:
    """A file without jobs is an error, with exit code 2."""
    (folder / "a.jsonl").write_text("\n\n")
    result = call("a.jsonl")
    assert result.exit_code == 2
    assert "no jobs found" in result.stderr


def test_missing_file(folder: Path) -> None:
    """A missing file is named, and the exit code is 2."""
    result = call("none.jsonl")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "krea-batch: none.jsonl: there is no such file; check the path"


def test_a_path_with_the_name_of_a_parameter(folder: Path) -> None:
    """A path in an error is printed unchanged, also if it contains the name of a parameter."""
    result = call("max_charges/poll_rate.jsonl")
    assert result.exit_code == 2
    assert result.stderr.startswith("krea-batch: max_charges/poll_rate.jsonl: ")


def test_as_a_command(folder: Path) -> None:
    """As a process, the command lists invalid lines also in a locale without Unicode."""
    (folder / "a.jsonl").write_text('{"prompt": “x”}\n', encoding="utf-8")
    command = [sys.executable, "-m", "krea_batch", "validate", "a.jsonl"]
    done = subprocess.run(command, capture_output=True, env={"LC_ALL": "C"}, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("a.jsonl:1: unexpected quote")


@pytest.fixture
def immediate_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show progress immediately, and at every update."""
    monkeypatch.setattr(check_progress, "SHOW_AFTER_S", 0)
    monkeypatch.setattr(check_progress, "CHECK_LINE_INTERVAL_S", 0)


@pytest.mark.usefixtures("immediate_progress")
def test_long_files_show_progress(folder: Path) -> None:
    """Without a terminal, progress is printed as lines on standard error, but not with --quiet or --json."""
    (folder / "a.jsonl").write_text("".join(f'{{"prompt": "{n}"}}\n' for n in range(35_000)))
    percentages = [int(line.split()[1]) for line in call("a.jsonl").stderr.splitlines()]
    assert len(percentages) == 4  # every 10,000 lines, and at the end
    assert percentages == sorted(percentages)
    assert percentages[-1] == 100
    assert call("a.jsonl", "--quiet").stderr == ""
    assert call("a.jsonl", "--json").stderr == ""


def test_short_files_show_no_progress(folder: Path) -> None:
    """A check that takes less than a second prints no progress."""
    (folder / "a.jsonl").write_text("".join(f'{{"prompt": "{n}"}}\n' for n in range(20_000)))
    assert call("a.jsonl").stderr == ""


def test_in_a_terminal_a_bar_is_shown_and_removed(folder: Path) -> None:
    """Invalid lines are printed whole above the bar, and the bar is removed at the end."""
    (folder / "a.jsonl").write_text('{"prompt": "x"}\n' * 15_000 + "bad\n" + '{"prompt": "x"}\n' * 15_000)
    code = (
        "import sys; from krea_batch.cli.app import main; from krea_batch.cli.ui import check_progress;"
        "check_progress.SHOW_AFTER_S = check_progress.BAR_INTERVAL_S = 0;"
        "sys.argv = ['krea-batch', 'validate', 'a.jsonl']; main()"
    )
    exit_code, shown = run_in_terminal([sys.executable, "-c", code], folder)
    assert exit_code == 2
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"checking .* [1-9]\d% ", plain)
    assert re.search(r"[\r\n]a\.jsonl:15001: [^\r\n]+\r\n", plain)
    assert "\x1b[2K" in shown, "the bar's line is cleared"
    assert plain.rstrip().endswith("30,000 valid jobs, 1 invalid line in 1 file")
