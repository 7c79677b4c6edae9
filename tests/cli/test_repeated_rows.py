"""`krea-batch` tells of rows with the same request before anything is charged, and names those it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from krea_batch.cli.app import app
from tests.processes import FAST_SIMULATION, run_command

TABLE = "text,question\na red kite,is there a kite?\na red kite,is it red?\na blue door,is it blue?\n"


def test_repeated_rows_are_told(tmp_path: Path) -> None:
    """`validate` counts the rows that ask for the same image as an earlier row, and says what leaves them out."""
    (tmp_path / "p.csv").write_text(TABLE)
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "p.csv")])
    notice = "1 of 3 rows asks for the same image as an earlier row; --dedupe leaves it out"
    assert notice in done.stderr.splitlines()
    assert done.exit_code == 0
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "p.csv"), "--seeds", "1..2"])
    assert "2 of 6 jobs ask for the same image as an earlier job; --dedupe leaves them out" in done.stderr


@pytest.mark.slow
def test_rows_left_out_share_the_image(tmp_path: Path) -> None:
    """With --dedupe, duplicates.jsonl names each row that was left out and the image of the row that it repeats."""
    (tmp_path / "p.csv").write_text(TABLE)
    command = ("run", "p.csv", "--out", "out", *FAST_SIMULATION, "--dedupe")
    for _ in range(2):
        done = run_command(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
        files = {row["id"]: row["files"] for row in results}
        assert sorted(files) == ["00002", "00004"]
        assert json.loads((tmp_path / "out/duplicates.jsonl").read_text()) == {
            "id": "00003",
            "duplicate_of": "00002",
            "source": "p.csv:3",
            "status": "succeeded",
            "files": files["00002"],
        }
    exported = run_command("export", "out", "--format", "csv", "--output", "images.csv", cwd=tmp_path)
    assert exported.returncode == 0
    assert "jobs that --dedupe left out are not exported; out/duplicates.jsonl has the job" in exported.stderr
