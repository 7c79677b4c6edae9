"""What the documentation says is so: its commands run, its Python passes mypy, the tests it names are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from krea_batch.jobs import State
from tests.processes import krea_batch, write_jobs
from tests.test_readme import make_doubts
from tests.test_security import names_in

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT / "docs").as_posix(): path.read_text("utf-8") for path in ROOT.glob("docs/**/*.md")}
OFFLINE = {"run": ["--simulate", "--time-scale=100"], "bench": ["--latency=fixed:0.1", "--poll-interval=0.1"]}
ELSEWHERE = ("--sink",)  # tests/sinks has a bucket


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The krea-batch commands of a page, as they can be run anywhere."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("krea-batch ")]
    local = [line.replace("0.0.0.0:8080", "127.0.0.1:0").replace("9100", "0") for line in lines]
    return [line.split()[1:] for line in local if not any(option in line for option in ELSEWHERE)]


def test_every_page_is_in_the_menu() -> None:
    """Nothing is written that nobody finds."""
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert len(PAGES) >= 13
    assert all(page in menu for page in PAGES)


def test_every_test_named_exists() -> None:
    """Each promise is held by a test that is there."""
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", PAGES["promises.md"])
    assert len(named) >= 12
    assert [f"{path}::{name}" for path, name in named if name not in names_in(ROOT / path)] == []


def test_the_states_are_those_that_there_are() -> None:
    """The table of states has each of them, once."""
    (table,) = re.findall(r"## States\n(.*?)\n## ", PAGES["reference/files.md"], re.DOTALL)
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [state.value for state in State]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_run(tmp_path: Path, page: str) -> None:
    """Each command of a page ends well, offline."""
    for n, command in enumerate(commands(page)):
        out = tmp_path / f"{n}"
        out.mkdir()
        write_jobs(out / "jobs.jsonl", 2)
        if command[0] in ("status", "resolve"):
            assert krea_batch("run", "jobs.jsonl", "--out", "runs/cats", *OFFLINE["run"], cwd=out).returncode == 0
        if command[0] == "resolve":
            make_doubts(out / "runs/cats")
        offline = [option for option in OFFLINE.get(command[0], []) if option not in command]
        done = krea_batch(*command, *offline, cwd=out)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.slow
def test_the_python_is_typed(tmp_path: Path) -> None:
    """Every block of Python passes mypy --strict as a module of its own."""
    plain = str.maketrans("/.-", "___")
    for page in PAGES:
        for n, block in enumerate(blocks(page, "python")):
            (tmp_path / f"{page.translate(plain)}_{n}.py").write_text(block)
    files = sorted(map(str, tmp_path.glob("*.py")))
    assert len(files) >= 10
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *files], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
