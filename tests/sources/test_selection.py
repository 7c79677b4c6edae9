"""Test that some of the jobs can be selected, and that values can be set for all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krea_batch.errors import JobError
from krea_batch.gateway import wire
from krea_batch.jobs import Job
from krea_batch.sources import CheckResult, InputOptions, JobFiles
from krea_batch.sources.fixed_values import parse_fixed_value


def read(path: Path, **options: Any) -> tuple[CheckResult, list[str]]:
    with JobFiles([str(path)], options=InputOptions(**options)) as files:
        return files.check(), [job.id for job in files]


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "{n}", "id": "n{n}"}}\n' for n in range(100)))
    return path


def test_limit(numbers: Path) -> None:
    """`limit` takes the first jobs; a limit above the number of jobs takes all."""
    checked, ids = read(numbers, limit=3)
    assert (ids, checked.jobs, checked.unselected) == (["n0", "n1", "n2"], 3, 97)
    checked, ids = read(numbers, limit=1000)
    assert (len(ids), checked.jobs, checked.unselected) == (100, 100, 0)


def test_sample(numbers: Path) -> None:
    """A sample is the same in each run, in the order of the rows, and differs for another seed."""
    checked, ids = read(numbers, sample=10)
    assert (len(ids), checked.jobs, checked.unselected) == (10, 10, 90)
    assert read(numbers, sample=10)[1] == ids
    assert ids == sorted(ids, key=lambda job_id: int(job_id[1:]))
    assert read(numbers, sample=10, sample_seed=1)[1] != ids
    assert len(read(numbers, sample=1000)[1]) == 100


def test_a_new_row_changes_one_job_of_a_sample(numbers: Path) -> None:
    """A row put in changes at most one job of a sample, so that little is charged again."""
    before = read(numbers, sample=20)[1]
    numbers.write_text('{"prompt": "new", "id": "new"}\n' + numbers.read_text())
    assert len(set(before) - set(read(numbers, sample=20)[1])) <= 1


def test_only_selected_jobs_count_as_recorded(numbers: Path) -> None:
    """Of the jobs in the ledger, those that are not selected are not counted; there is no checkpoint."""
    recorded = {f"n{n}": wire.fingerprint(Job(prompt=str(n))) for n in range(1, 50)}
    with JobFiles([str(numbers)], options=InputOptions(limit=5)) as files:
        checked = files.check(lambda ids: {each: recorded[each] for each in ids if each in recorded})
        assert (checked.jobs, checked.recorded) == (5, 4)
        assert len(list(files)) == 5
        assert files.checkpoint() is None


def test_prompts_without_a_file() -> None:
    """Prompts given directly are rows; a prompt may have several lines."""
    with JobFiles([], prompts=["a red kite", "two\nlines"], options=InputOptions(columns={"prompt": "x"})) as files:
        files.check()
        assert list(files) == [Job(prompt="a red kite", id="00001"), Job(prompt="two\nlines", id="00002")]


def test_fixed_values(tmp_path: Path) -> None:
    """A fixed value is that of every row; a row with another value is invalid, one with the same is not."""
    path = tmp_path / "p.csv"
    path.write_text("prompt,aspect_ratio\na,\nb,16:9\n")
    with JobFiles([str(path)], options=InputOptions(fixed={"aspect_ratio": "16:9", "seed": 7})) as files:
        assert files.check().bad_lines == 0
        assert [(job.aspect_ratio, job.seed) for job in files] == [("16:9", 7)] * 2
    with JobFiles([str(path)], options=InputOptions(fixed={"aspect_ratio": "1:1"})) as files:
        (problem,) = files.check().problems
    assert str(problem) == f'{path}:3: "aspect_ratio" is "16:9" in the row and "1:1" for all rows; keep one of them'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("aspect_ratio=16:9", ("aspect_ratio", "16:9")),
        (" seed = -7 ", ("seed", -7)),
        ('styles=[{"id": "ink"}]', ("styles", [{"id": "ink"}])),
    ],
)
def test_valid_fixed_values(text: str, value: tuple[str, Any]) -> None:
    """A seed is a number, a list is JSON, everything else text."""
    assert parse_fixed_value(text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("aspect_ratio", "write a field and its value"),
        ("=1", "write a field and its value"),
        ("aspectratio=1:1", 'did you mean "aspect_ratio"'),
        ("prompt=x", "cannot be set for all rows"),
        ("id=x", "cannot be set for all rows"),
        ("seed=x", '"seed" is "x"'),
        ("seed=7.5", '"seed" is "7.5"'),
        ("aspect_ratio=16:8", "use one of 1:1"),
        ("styles=ink", "ink"),
    ],
)
def test_invalid_fixed_values(text: str, problem: str) -> None:
    """An invalid value is reported, and what would be valid."""
    with pytest.raises(JobError) as caught:
        parse_fixed_value(text)
    assert problem in f"{caught.value.problem}; {caught.value.hint}"
