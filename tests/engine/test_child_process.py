"""Child processes run nothing from the working directory, and have the API key only if they need it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from krea_batch.engine.child_process import child_environment, forget_key, python_command
from krea_batch.settings import KEY_VARIABLE
from tests.processes import clean_environment

ROOT = Path(__file__).parents[2]


def test_the_working_directory_is_not_imported_from(tmp_path: Path) -> None:
    """A module of the working directory does not replace an installed one."""
    for name in ("click", "msgspec", "json", "krea_batch"):
        (tmp_path / f"{name}.py").write_text("print('owned')\n")
    done = subprocess.run(
        python_command("krea_batch", "--version"),
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("krea-batch")
    assert "owned" not in done.stdout


def test_the_key_is_passed_on_only_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that does not need the key has all other variables."""
    monkeypatch.setenv(KEY_VARIABLE, "very-secret")
    assert child_environment(with_key=True) == dict(os.environ)
    assert child_environment(with_key=False) == {
        name: value for name, value in os.environ.items() if name != KEY_VARIABLE
    }
    forget_key()
    assert KEY_VARIABLE not in os.environ
    forget_key()


def test_a_child_gets_no_options_but_those_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options in the environment reach a child only if they are meant for it; other variables always do."""
    for name in [name for name in os.environ if name.startswith("KREA_BATCH_")]:
        monkeypatch.delenv(name)
    others = child_environment(with_key=True)
    monkeypatch.setenv("KREA_BATCH_RATE", "5/s")
    monkeypatch.setenv("KREA_BATCH_SEEDS", "1..4")
    assert child_environment(with_key=True, options=()) == others
    assert child_environment(with_key=True, options=["KREA_BATCH_RATE"]) == others | {"KREA_BATCH_RATE": "5/s"}
    assert child_environment(with_key=True) == dict(os.environ)


def test_every_child_is_started_so() -> None:
    """No module of the package builds the command of a child by itself."""
    found = []
    for path in (ROOT / "krea_batch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.List) and any(ast.unparse(each) == "sys.executable" for each in node.elts):
                found.append(path.name)
    assert set(found) == {"child_process.py"}
    assert sys.executable == python_command("krea_batch")[0]
