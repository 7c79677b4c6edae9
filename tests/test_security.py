"""The threat model names tests; they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", (ROOT / "SECURITY.md").read_text())


def names_in(path: Path) -> set[str]:
    """Every test function of a file, as pytest names it."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def test_every_test_named_exists() -> None:
    """Each line of SECURITY.md is held by a test that is there."""
    assert len(NAMED) > 20
    missing = [f"{path}::{name}" for path, name in NAMED if name not in names_in(ROOT / path)]
    assert missing == []
