"""Test files as large as those of real data sets: every row is accounted for, and prompts stay the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krea_batch.jobs import Job
from krea_batch.sources.options import TextUnit
from tests.sources.test_formats import check_and_read

CAPTIONS = 30_000  # as in the COCO captions that models are evaluated with
LINES = 17_861  # in 40 files, as a person had them
NESTED_ROWS = 3_000
WORDS = (
    *("a", "man", "riding", "bike", "ünder", "雨", "🦊", "the", '"old"', "bridge,", "with;", "two\ndogs", "'and'"),
    *("a\tcat", "[x]", "50%", "\u2028", "e\u0301", "\ufeff", "=1+1", "\\n", " "),
)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """Return prompts with quotes, separators, newlines and letters of several scripts, and blanks around some."""
    random = Random(1)
    texts = [" ".join(random.choices(WORDS, k=random.randint(3, 14))) for _ in range(CAPTIONS)]
    texts = [text if text.strip() else "a cat" for text in texts]
    return [f"  {text}  " if n % 10 == 0 else text for n, text in enumerate(texts)]


def read_all(*paths: Path, rows: int, **options: Any) -> list[Job]:
    """Return the jobs of files without an invalid row."""
    checked, jobs = check_and_read(*map(str, paths), **options)
    assert (checked.rows, checked.bad_lines, checked.duplicates) == (rows, 0, 0), checked.problems[:3]
    return jobs


@pytest.mark.parametrize(("name", "delimiter", "encoding"), [("c.csv", ",", "utf-8"), ("c.csv", ";", "utf-8-sig")])
def test_captions(tmp_path: Path, captions: list[str], name: str, delimiter: str, encoding: str) -> None:
    """A CSV file of 30,000 captions has 30,000 jobs with these prompts, ids and metadata."""
    path = tmp_path / name
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["image_id", "caption", "split"])
        writer.writerows((n, caption, "val") for n, caption in enumerate(captions))
    jobs = read_all(path, rows=CAPTIONS, columns={"prompt": "caption", "id": "image_id"})
    assert [job.prompt for job in jobs] == captions
    assert [job.id for job in jobs] == [str(n) for n in range(CAPTIONS)]
    assert {json.dumps(job.metadata) for job in jobs} == {'{"split": "val"}'}


def test_a_folder_of_lists(tmp_path: Path) -> None:
    """17,861 lines in 40 files are as many prompts in the order of the files, and each names its file."""
    lines = [f"prompt number {n} é 雨 {'x' * (n % 90)}" for n in range(LINES)]
    size = LINES // 39
    parts = [lines[start : start + size] for start in range(0, LINES, size)]
    for n, part in enumerate(parts):
        (tmp_path / f"list{n}.txt").write_bytes(("\r\n" if n % 2 else "\n").join(part).encode())
    (tmp_path / "README.md").write_text("not a prompt")
    jobs = read_all(tmp_path, rows=LINES, text_unit=TextUnit.LINE)
    assert len(parts) == 40
    assert [job.prompt for job in jobs] == lines
    assert [job.metadata["source_file"] for job in jobs] == [
        f"list{n}.txt" for n, part in enumerate(parts) for _ in part
    ]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_nested_json(tmp_path: Path, captions: list[str], suffix: str) -> None:
    """Prompts and seeds deep in objects are read, in a document and on lines."""
    prompts = captions[:NESTED_ROWS]
    rows = [{"key": n, "request": {"body": {"prompt": text}, "n": {"seed": n}}} for n, text in enumerate(prompts)]
    path = tmp_path / f"n.{suffix}"
    path.write_text(json.dumps({"data": rows}) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    columns = {"prompt": "request.body.prompt", "seed": "request.n.seed", "id": "key"}
    jobs = read_all(path, rows=NESTED_ROWS, columns=columns)
    assert [(job.id, job.prompt, job.seed) for job in jobs] == [(str(n), text, n) for n, text in enumerate(prompts)]


def test_keyed_json(tmp_path: Path, captions: list[str]) -> None:
    """An object of ids and prompts has a job for each."""
    entries = {f"key {n}": text for n, text in enumerate(captions[:NESTED_ROWS])}
    path = tmp_path / "k.json"
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False), "utf-8")
    jobs = read_all(path, rows=NESTED_ROWS)
    assert [(job.id, job.prompt) for job in jobs] == list(entries.items())
