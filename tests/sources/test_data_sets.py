"""Test that downloaded datasets are read, and that messages about tables and directories lead on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from krea_batch.cli.commands.validate import validate
from krea_batch.errors import InputError
from krea_batch.sources import InputOptions, JobFiles


def read(*paths: str, **options: Any) -> tuple[list[str], list[str]]:
    """Return the prompts of the files, and the notices about them."""
    with JobFiles(paths, options=InputOptions(**options)) as files:
        files.check()
        return [job.prompt for job in files], files.notices()


def write_snapshot(folder: Path, *names: str) -> None:
    (folder / "data").mkdir()
    (folder / "README.md").write_text("---\n")
    for name in names:
        pq.write_table(pa.table({"prompt": [f"{name} 1", f"{name} 2"]}), folder / "data" / name)


def test_a_snapshot(tmp_path: Path) -> None:
    """The Parquet files in `data` of a downloaded dataset are read in order, and a notice says so."""
    names = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")
    write_snapshot(tmp_path, *names)
    prompts, notices = read(str(tmp_path))
    assert prompts == [f"{name} {n}" for name in names for n in (1, 2)]
    assert notices[0].endswith("2 Parquet files of a dataset")


def test_several_splits(tmp_path: Path) -> None:
    """A dataset with several splits raises InputError, and the files that the hint names are read."""
    write_snapshot(tmp_path, "test-00000-of-00001.parquet", "train-00000-of-00001.parquet")
    with pytest.raises(
        InputError, match=r"a dataset with several splits \(test, train\); name the files of one"
    ) as error:
        read(str(tmp_path))
    named = shlex.split(error.value.hint.partition("such as ")[2])
    assert len(read(*named)[0]) == 2


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("hf://datasets/some/prompts", "hf download some/prompts --repo-type dataset --local-dir prompts)"),
        ("https://huggingface.co/datasets/some/prompts", "hf download some/prompts --repo-type dataset"),
        ("https://example.com/a/p.jsonl?x=1", "curl -fL -o p.jsonl 'https://example.com/a/p.jsonl?x=1')"),
        ("s3://bucket/p.jsonl", "copy it to this machine"),
    ],
)
def test_urls(url: str, expected: str) -> None:
    """A URL raises InputError with the command that downloads it."""
    with pytest.raises(InputError) as error:
        read(url)
    assert str(error.value).startswith(f"{url}: is a URL, not a file on this machine; ")
    assert expected in str(error.value)


def test_other_directories(tmp_path: Path) -> None:
    """The error about a directory names a run's results, or the job files and directories in it."""
    for name in ("run", "files"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "results.jsonl").touch()
    with pytest.raises(InputError, match=r"a run directory, not job files; name .*results\.jsonl"):
        read(str(tmp_path / "run"))
    (tmp_path / "files" / "a.csv").touch()
    with pytest.raises(InputError, match=r"name the job files in it: .*a\.csv"):
        read(str(tmp_path / "files"))


@pytest.mark.parametrize(
    ("header", "options", "expected"),
    [
        (
            "prompt",
            ["--id-column", "prompt"],
            '"prompt" is assigned to id, so no column is left for the prompt; choose',
        ),
        ("id,prompt", ["--id-column", ""], 'prompt from "prompt"; "id" put into the metadata'),
        ("metadata.cat,prompt", [], '"metadata.cat" put into the metadata'),
    ],
)
def test_messages_about_columns(tmp_path: Path, header: str, options: list[str], expected: str) -> None:
    """Messages do not suggest what was already given, or deny a column that is there."""
    path = tmp_path / "p.csv"
    path.write_text(f"{header}\nx,y\n" if "," in header else f"{header}\nx\n")
    result = CliRunner().invoke(validate, [str(path), *options])
    assert expected in result.output
    assert "did you mean" not in result.output


def test_singular(tmp_path: Path) -> None:
    """A directory with one text is said to have one text file."""
    (tmp_path / "a.txt").write_text("a red kite")
    (tmp_path / "b.md").touch()
    assert read(str(tmp_path))[1][0].startswith(f"{tmp_path}: 1 text file, one prompt per file")
