"""Tests of the check of the version and the changelog."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.version import ROOT, problems


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of a release without problems."""
    (tmp_path / "krea_batch").mkdir()
    (tmp_path / "krea_batch/__init__.py").write_text('MIN_SERVER = "11.2.30"\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-12-01)\n\n## 1.2.2 (2026-11-01)\n")
    return tmp_path


def test_this_checkout() -> None:
    """The version of this checkout is in pyproject.toml alone, and the changelog begins with it."""
    assert list(problems(ROOT)) == []


def test_a_release(checkout: Path) -> None:
    """A tag that is the version, with a dated section, has no problem."""
    assert list(problems(checkout, "v1.2.3")) == []


def test_another_tag(checkout: Path) -> None:
    """The tag must be that of the version."""
    assert list(problems(checkout, "v1.2.4")) == ["the tag is v1.2.4, but pyproject.toml has the version 1.2.3"]


def test_a_second_place(checkout: Path) -> None:
    """A module that repeats the version is named, with the line."""
    (checkout / "krea_batch/__init__.py").write_text('"""A package."""\n__version__ = "1.2.3"\n')
    assert list(problems(checkout)) == ["krea_batch/__init__.py, line 2 repeats the version 1.2.3"]


def test_a_changelog_without_the_version(checkout: Path) -> None:
    """The first section of the changelog must be that of the version, and have a date if there is a tag."""
    changelog = checkout / "CHANGELOG.md"
    changelog.write_text("## 1.2.2 (2026-11-01)\n")
    assert list(problems(checkout)) == ["the first section of CHANGELOG.md is not that of 1.2.3"]
    changelog.write_text("## 1.2.3 (unreleased)\n")
    assert list(problems(checkout)) == []
    assert list(problems(checkout, "v1.2.3")) == ["CHANGELOG.md has no date for 1.2.3, but (unreleased)"]
