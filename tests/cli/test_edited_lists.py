"""`krea-batch run` with a list that was edited since it was run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.processes import FAST_SIMULATION, run_command

HEADERS = {"p.txt": "", "p.csv": "prompt\n", "p.jsonl": ""}


def write(path: Path, prompts: list[str]) -> None:
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts] if path.suffix == ".jsonl" else prompts
    path.write_text(HEADERS[path.name] + "".join(f"{row}\n" for row in rows))


def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ("run", path.name, "--out", "r", *FAST_SIMULATION)
    return run_command(*command, *options, cwd=path.parent)


def prompts_by_id(folder: Path) -> dict[str, str]:
    lines = (folder / "r/results.jsonl").read_text().splitlines()
    return {row["id"]: row["request"]["prompt"] for row in map(json.loads, lines)}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADERS)
def test_an_edited_list(tmp_path: Path, name: str) -> None:
    """A row put in costs one charge; a changed row is refused, and the advice costs one charge, too."""
    path = tmp_path / name
    write(path, ["kite", "door", "boat"])
    assert run(path).returncode == 0
    before = prompts_by_id(tmp_path)

    write(path, ["new", "kite", "door", "boat"])
    done = run(path)
    assert done.returncode == 0, done.stderr
    assert "rows that moved and keep their ids: 3; new rows that get the next free numbers: 1" in done.stderr
    after = prompts_by_id(tmp_path)
    assert before.items() <= after.items()
    assert sorted(after.values()) == ["boat", "door", "kite", "new"]
    assert run(path).returncode == 0
    assert prompts_by_id(tmp_path) == after

    write(path, ["new", "kite", "a green door", "boat"])
    done = run(path)
    assert done.returncode == 0, done.stderr

    write(path, ["new", "kite", "a green door", "a big boat", "fox"])
    done = run(path, "--submit-changed")
    assert done.returncode == 0, done.stderr
    made = sorted(prompts_by_id(tmp_path).values())
    assert made == ["a big boat", "a green door", "boat", "door", "fox", "kite", "new"]


@pytest.mark.slow
def test_a_changed_list_is_refused(tmp_path: Path) -> None:
    """A line changed in place is refused; with --submit-changed it is a new image, and so is another --prompt."""
    path = tmp_path / "p.txt"
    write(path, ["kite", "door"])
    assert run(path).returncode == 0
    write(path, ["kite", "a green door"])
    done = run(path)
    assert done.returncode == 2
    assert 'the line or an option changed since its id "00002" was submitted; restore it;' in done.stderr
    assert "or --submit-changed, which pays for new images" in done.stderr
    assert run(path, "--submit-changed").returncode == 0
    assert prompts_by_id(tmp_path) == {"00001": "kite", "00002": "door", "00003": "a green door"}
    assert run(path).returncode == 0

    command = ("run", "--out", "r", *FAST_SIMULATION, "--prompt", "fox", "--prompt", "kite")
    for _ in range(2):
        assert run_command(*command, cwd=tmp_path).returncode == 0
    assert sorted(prompts_by_id(tmp_path).values()) == ["a green door", "door", "fox", "kite"]
