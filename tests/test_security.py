"""The threat model names tests; they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED_TESTS = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", (ROOT / "SECURITY.md").read_text())


def collect_test_names(path: Path) -> set[str]:
    """Every test function of a file, as pytest names it."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
    return names


def test_every_test_named_exists() -> None:
    """Each line of SECURITY.md is held by a test that is there."""
    assert len(NAMED_TESTS) > 20
    missing = [f"{path}::{name}" for path, name in NAMED_TESTS if name not in collect_test_names(ROOT / path)]
    assert missing == []
