"""Provide a finished run to export and verify, made by the command with the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import run_command

FINISHED_RUN_PROMPTS = ["a cat", "=1+1, a 'formula'", 'füße, "quoted"\nand a 🦊', "a dog"]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of four jobs with one image each. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    lines = [
        {"id": f"job.{n}", "prompt": prompt, "seed": 2**63 + n, "metadata": {"set": n % 2, "tags": ["x"]}}
        for n, prompt in enumerate(FINISHED_RUN_PROMPTS)
    ]
    lines[3].pop("seed")
    (folder / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--simulate", "--time-scale=1000", "--poll-interval=0.1", "--rate=100/s", "-q")
    done = run_command("run", "jobs.jsonl", "--out", "out", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"
