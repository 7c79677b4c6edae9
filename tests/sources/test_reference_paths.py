"""Test the local reference images of job files: `image_path` in each format, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources import InputOptions, JobFiles
from krea_batch.storage.reference_files import content_names, read_reference
from krea_batch.testing import make_png

ENTRY = '[{"image_path": "refs/fox.png", "strength": 0.7}]'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the images refs/fox.png, refs/copy.png with equal bytes, and refs/owl.png; and another one."""
    (tmp_path / "refs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name, text in (("fox", b"fox"), ("copy", b"fox"), ("owl", b"owl")):
        (tmp_path / "refs" / f"{name}.png").write_bytes(make_png(text=text))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def read(path: Path, **options: Any) -> list[Job]:
    """Return the jobs of a file in which every row is valid."""
    with JobFiles([str(path)], options=InputOptions(**options)) as files:
        checked = files.check()
        assert not checked.problems
        return list(files)


def problem_of(path: Path, line: str) -> str:
    """Return the problem of a file with one line."""
    path.write_text(line + "\n")
    with JobFiles([str(path)]) as files:
        (problem,) = files.check().problems
    return str(problem)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jobs.jsonl", f'{{"prompt": "a", "image_style_references": {ENTRY}}}\n'),
        ("jobs.json", f'[{{"prompt": "a", "image_style_references": {ENTRY}}}]'),
        ("jobs.csv", 'prompt,image_style_references\na,"' + ENTRY.replace('"', '""') + '"\n'),
        ("jobs.tsv", f"prompt\timage_style_references\na\t{ENTRY}\n"),
        ("jobs.yaml", "- prompt: a\n  image_style_references:\n  - image_path: refs/fox.png\n    strength: 0.7\n"),
    ],
)
def test_every_format(folder: Path, name: str, text: str) -> None:
    """A path is relative to the directory of its job file, in every format, and the jobs are the same."""
    (folder / name).write_text(text)
    (job,) = read(folder / name)
    fox = read_reference(str(folder / "refs/fox.png"))
    assert content_names(job) == [fox.name]
    assert job.image_style_references[0].strength == 0.7
    assert job.image_style_references[0].image_path == str(folder / "refs/fox.png")


def test_a_column_of_paths(folder: Path) -> None:
    """A cell may be a path or a URL alone, and an empty cell is no reference."""
    (folder / "jobs.csv").write_text("prompt,ref\na,refs/fox.png\nb,https://example.com/x.png\nc,\n")
    a, b, c = read(folder / "jobs.csv", columns={"image_style_references": "ref"})
    assert content_names(a) == [read_reference(str(folder / "refs/fox.png")).name]
    assert b.image_style_references[0].image_url == "https://example.com/x.png"
    assert c.image_style_references == ()


def test_two_directories(folder: Path) -> None:
    """Files in different directories have different images at the same path, in the check and afterwards."""
    (folder / "elsewhere/refs").mkdir()
    (folder / "elsewhere/refs/fox.png").write_bytes(make_png(text=b"another fox"))
    line = f'{{"prompt": "a", "image_style_references": {ENTRY}}}\n'
    paths = [folder / "jobs.jsonl", folder / "elsewhere/more.jsonl"]
    for path in paths:
        path.write_text(line)
    with JobFiles([str(path) for path in paths]) as files:
        checked = files.check()
        first, second = files
    assert checked.references == 2
    assert wire.fingerprint(first) != wire.fingerprint(second)


def test_counts_and_duplicates(folder: Path) -> None:
    """Equal images count once, whatever their paths, and --dedupe compares their contents; --limit counts its own."""
    rows = [
        {"prompt": "a", "image_style_references": [{"image_path": f"refs/{name}.png"}]}
        for name in ("fox", "copy", "owl")
    ]
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options, jobs, references in (
        (InputOptions(), 3, 2),
        (InputOptions(dedupe=True), 2, 2),
        (InputOptions(limit=2), 2, 1),
    ):
        with JobFiles([str(path)], options=options) as files:
            checked = files.check()
        assert (checked.jobs, checked.references) == (jobs, references)
    size_bytes = sum((folder / "refs" / name).stat().st_size for name in ("fox.png", "owl.png"))
    with JobFiles([str(path)]) as files:
        assert files.check().reference_bytes == size_bytes


def test_no_checkpoint(folder: Path) -> None:
    """A file with local images has no checkpoint: equal bytes of the file do not prove that the images are equal."""
    (folder / "jobs.jsonl").write_text(f'{{"prompt": "a", "image_style_references": {ENTRY}}}\n')
    with JobFiles([str(folder / "jobs.jsonl")]) as files:
        files.check()
        list(files)
        assert files.checkpoint() is None


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ('{"image_path": "refs/no.png"}', "there is no reference image"),
        ('{"image_path": "jobs.jsonl"}', "is not an image; use a PNG, JPEG or WebP file"),
        ('{"image_path": "refs"}', "not a regular file"),
        (
            '{"image_path": "refs/fox.png", "image_url": "https://a.b/c.png"}',
            'entry 1 of "image_style_references" has both "image_url" and "image_path"; keep one of them',
        ),
        ('{"image_path": 7}', '"image_path" in entry 1 of "image_style_references" is 7'),
        (
            '{"image_pth": "x"}',
            '"image_pth" is not a field of entry 1 of "image_style_references"; did you mean "image_path"?',
        ),
        ('{"strength": 1}', 'entry 1 of "image_style_references" has no "image_url"'),
    ],
)  # fmt: skip
def test_errors(folder: Path, entry: str, problem: str) -> None:
    """An image that cannot be uploaded is an error of its line."""
    line = f'{{"prompt": "a", "image_style_references": [{entry}]}}'
    assert (found := problem_of(folder / "jobs.jsonl", line)).startswith(f"{folder / 'jobs.jsonl'}:1: ")
    assert problem in found


def test_the_check_is_kept(folder: Path) -> None:
    """An image that is edited after the check does not make another job: the upload will refuse it."""
    (folder / "jobs.jsonl").write_text(f'{{"prompt": "a", "image_style_references": {ENTRY}}}\n')
    fox = read_reference(str(folder / "refs/fox.png"))
    with JobFiles([str(folder / "jobs.jsonl")]) as files:
        files.check()
        (folder / "refs/fox.png").write_bytes(make_png(text=b"edited"))
        (job,) = files
    assert content_names(job) == [fox.name]
