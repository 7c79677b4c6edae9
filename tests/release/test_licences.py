"""Tests of the check of licences: what it accepts, and that it finds what it does not accept."""

from __future__ import annotations

import subprocess
import sys
from email.message import Message
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from release import licences
from release.licences import dependencies, is_accepted, licence_of, problems


@pytest.mark.parametrize(
    ("expression", "accepted"),
    [
        ("MIT", True),
        ("MIT AND BSD-3-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("MIT AND (BSD-3-Clause OR ISC)", True),
        ("GPL-3.0-only AND (MIT OR Apache-2.0)", False),
        ("Apache-2.0 WITH LLVM-exception", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_expressions(expression: str, accepted: bool) -> None:
    """All parts of AND and one part of OR are accepted licences; an unknown or missing licence is not accepted."""
    assert is_accepted(expression) is accepted


@pytest.mark.parametrize(
    ("headers", "licence"),
    [
        ({"License-Expression": "MIT", "License": "GPL"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License", "License": "GPL"}, "BSD-3-Clause"),
        ({"Classifier": "Typing :: Typed", "License": "Apache License 2.0\n\nTerms and conditions"}, "Apache-2.0"),
        ({"License": "A licence of our own"}, "A licence of our own"),
        ({}, ""),
    ],
    ids=["expression", "classifier", "first line of the field", "unknown", "none"],
)
def test_metadata(tmp_path: Path, headers: dict[str, str], licence: str) -> None:
    """The licence is the expression, else the classifiers, else the first line of the field."""
    message = Message()
    for name, value in headers.items():
        message[name] = value.replace("\n", "\n        ")
    (tmp_path / "METADATA").write_text(f"Name: x\n{message}")
    assert licence_of(PathDistribution(tmp_path)) == licence


def test_dependencies_of_dependencies_are_checked() -> None:
    """What the packages in pyproject.toml need is checked as well, and so are the extras that are wanted."""
    names = {found.name.lower() for found in dependencies("krea-batch", frozenset({"simulator"}))}
    assert {"aiohttp", "multidict", "pillow"} <= names
    assert not names & {"krea-batch", "pyarrow", "pytest"}


def test_what_is_not_accepted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose licence is not accepted is a problem, and so is an exception that is not needed."""
    monkeypatch.setattr(licences, "ACCEPTED", licences.ACCEPTED - {"Apache-2.0"})
    monkeypatch.setattr(licences, "EXCEPTIONS", {"click": "has the BSD licence"})
    found = list(problems("krea-batch", frozenset()))
    assert any(text.startswith("aiohttp has the licence Apache-2.0") for text in found)
    assert "click is in EXCEPTIONS, and needs no exception" in found


def test_the_dependencies_of_this_version() -> None:
    """Every dependency of `krea-batch[all]` has an accepted licence, or an exception with its reason."""
    done = subprocess.run([sys.executable, "-m", "release.licences"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
