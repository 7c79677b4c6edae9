"""Tests of the workflows for a public host: what they name exists, and they have no more rights than they need."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = {name for names in re.findall(r"^(\w[\w -]*):", MAKEFILE, re.MULTILINE) for name in names.split()}


def jobs_of(path: Path) -> dict[str, dict[str, Any]]:
    jobs: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text("utf-8"))["jobs"]
    return jobs


def commands_of(job: dict[str, Any]) -> Iterator[str]:
    """Yield the commands of a job, with each combination of its matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    for values in itertools.product(*matrix.values()):
        chosen = dict(zip(matrix, values, strict=True))
        for step in job["steps"]:
            command = step.get("run", "")
            for name, value in step.get("env", {}).items():
                command = command.replace(f"${name}", value)
            for name, value in chosen.items():
                command = command.replace(f"${{{{ matrix.{name} }}}}", value)
            yield command


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_exists(path: Path) -> None:
    """Each target of make, script, file of constraints and marker of pytest that a workflow names exists."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    markers = {text.partition(":")[0] for text in settings["tool"]["pytest"]["ini_options"]["markers"]}
    named = 0
    for command in (command for job in jobs_of(path).values() for command in commands_of(job)):
        targets = set(re.findall(r'\bmake "?([\w-]+)', command))
        assert targets <= TARGETS, command
        scripts = set(re.findall(r"(?:^|-c )(\.?[\w/]+(?:/run|\.txt))\b", command, re.MULTILINE))
        assert all((ROOT / script).is_file() for script in scripts), command
        chosen = set(re.findall(r"pytest -m (\w+)", command))
        assert chosen <= markers, command
        named += len(targets | scripts | chosen)
    assert named


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_of_workflows(path: Path) -> None:
    """A workflow has no rights but those of its jobs, whose actions have exact versions, and each job has an end."""
    assert yaml.safe_load(path.read_text("utf-8"))["permissions"] == {}
    for job in jobs_of(path).values():
        assert job["timeout-minutes"] <= 360
        assert set(job["permissions"].items()) <= {("contents", "read"), ("pages", "write"), ("id-token", "write")}
        for step in job["steps"]:
            assert "uses" not in step or re.search(r"@v\d+\.\d+\.\d+$", step["uses"])


def test_the_versions_of_python() -> None:
    """The workflows test the versions that `make release-check` tests; the classifiers claim none besides."""
    (pythons,) = re.findall(r"^PYTHONS \?= (.*)$", MAKEFILE, re.MULTILINE)
    matrix = jobs_of(ROOT / ".github/workflows/tests.yml")["all"]["strategy"]["matrix"]
    assert matrix["python"] == pythons.split()
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    claimed = {text.rpartition(" ")[2] for text in classifiers if re.search(r":: 3\.\d+$", text)}
    assert claimed <= set(pythons.split())
