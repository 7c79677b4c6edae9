"""Test that what krea-batch writes is read back as the same jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from krea_batch.cli.app import app
from krea_batch.jobs import Job
from krea_batch.maintenance.export.recognition import COLUMNS
from krea_batch.sources import InputOptions, JobFiles, own_files
from tests.processes import FAST_SIMULATION

JOBS = [
    {
        "id": "kite",
        "prompt": "=a red kite",
        "seed": 7,
        "aspect_ratio": "16:9",
        "metadata": {"tag": "'a", "note": "b"},
    },
    {"id": "door", "prompt": "'a blue door\nand a wall", "creativity": "raw", "styles": [{"id": "ink"}]},
]


def call(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def read(path: Path, **options: Any) -> tuple[list[Job], list[str]]:
    """Return the jobs of a file and the notices about it."""
    with JobFiles([str(path)], options=InputOptions(**options)) as files:
        checked = files.check()
        assert not checked.bad_lines, checked.problems
        return list(files), files.notices()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of JOBS."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "p.jsonl").write_text("".join(json.dumps(job) + "\n" for job in JOBS))
    call("run", str(folder / "p.jsonl"), "--out", str(folder / "r"), *FAST_SIMULATION, "-q")
    return folder


@pytest.mark.parametrize("keep_extra", [False, True])
def test_results(run_dir: Path, keep_extra: bool) -> None:
    """The rows of `results.jsonl` are the jobs of the run, and a notice says what the file is."""
    expected, _ = read(run_dir / "p.jsonl")
    jobs, (notice,) = read(run_dir / "r" / "results.jsonl", keep_extra=keep_extra)
    assert sorted(jobs, key=lambda job: job.id) == sorted(expected, key=lambda job: job.id)
    assert notice.endswith(own_files.RESULTS_NOTICE)


@pytest.mark.parametrize(
    ("format_", "file"), [("csv", "."), ("parquet", "."), ("imagefolder", "metadata.jsonl"), ("imagefolder", ".")]
)
def test_exports(run_dir: Path, tmp_path: Path, format_: str, file: str) -> None:
    """An export is read as the jobs of its run, without what the run has added, and a notice says so."""
    expected, _ = read(run_dir / "p.jsonl")
    call("export", str(run_dir / "r"), "--format", format_, "--output", str(tmp_path / f"x.{format_}"), "-q")
    jobs, notices = read(tmp_path / f"x.{format_}" / file)
    assert sorted(jobs, key=lambda job: job.id) == sorted(expected, key=lambda job: job.id)
    assert any(notice.endswith(own_files.EXPORT_NOTICE) for notice in notices)


def test_a_job_with_several_images(tmp_path: Path) -> None:
    """Rows of an export that are images of one job are one job."""
    row = dict.fromkeys(COLUMNS) | {"id": "a", "prompt": "a cat", "styles": "[]", "metadata": "{}"}
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps({"file_name": name, **row}) + "\n" for name in ("a.png", "a-2.png")))
    assert read(path)[0] == [Job(prompt="a cat", id="a")]
    names = list(row)
    lines = [",".join(names), *([",".join(str(row[name] or "") for name in names)] * 2)]
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    assert read(tmp_path / "x.csv")[0] == [Job(prompt="a cat", id="a")]


def test_columns_of_exports() -> None:
    """The columns that are recognized are those that exports have."""
    assert set(COLUMNS) - set(Job.__struct_fields__) == own_files.EXPORT_COLUMNS


def test_metadata_columns(tmp_path: Path) -> None:
    """A column such as `metadata.cat` is the key `cat` of the metadata, and is not taken for a mistyped name."""
    path = tmp_path / "p.csv"
    path.write_text("prompt,metadata.cat\na red kite,x\n")
    (job,), notices = read(path)
    assert job.metadata == {"cat": "x"}
    assert not any("did you mean" in notice for notice in notices)
