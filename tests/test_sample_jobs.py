"""Test that the sample jobs are what their README says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from krea_batch.errors import LineProblem
from krea_batch.jobs import ASPECT_RATIOS, CREATIVITIES, Job
from krea_batch.sources import JobFiles

SAMPLES_DIR = Path(__file__).parent.parent / "sample_jobs"


def jobs_of(name: str) -> list[Job]:
    with JobFiles([str(SAMPLES_DIR / name)]) as files:
        assert files.check().problems == ()
        return list(files)


@pytest.mark.parametrize("name", ["first.jsonl", "styled.jsonl", "five_hundred.jsonl"])
def test_samples_are_valid(name: str) -> None:
    """Every line is a valid job with an id and a prompt of usual length."""
    jobs = jobs_of(name)
    assert all(not job.id.isdigit() for job in jobs)
    assert all(20 <= len(job.prompt) <= 250 for job in jobs)


def test_first() -> None:
    """The first file has about ten jobs in at least six aspect ratios."""
    jobs = jobs_of("first.jsonl")
    assert 8 <= len(jobs) <= 12
    assert len({job.aspect_ratio for job in jobs}) >= 6


def test_styled() -> None:
    """The styled file uses every kind of style and a negative strength; style ids and URLs are placeholders."""
    jobs = jobs_of("styled.jsonl")
    references = [reference for job in jobs for reference in job.image_style_references]
    assert any(reference.strength < 0 for reference in references)
    assert all(reference.image_url.startswith("https://example.com/placeholder/") for reference in references)
    assert all(style.id.startswith("placeholder-") for job in jobs for style in job.styles)
    assert any(job.moodboards for job in jobs)


def test_five_hundred() -> None:
    """The five hundred prompts are distinct and cover every aspect ratio and creativity."""
    jobs = jobs_of("five_hundred.jsonl")
    assert len({job.prompt for job in jobs}) == len(jobs) == 500
    ratios = Counter(job.aspect_ratio for job in jobs)
    assert set(ratios) == set(ASPECT_RATIOS)
    assert min(ratios.values()) >= 20
    assert set(Counter(job.creativity for job in jobs)) == set(CREATIVITIES)


def test_bad_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every invalid line has the message in the expected file, and no two have the same problem."""
    monkeypatch.chdir(SAMPLES_DIR)
    problems: list[LineProblem] = []
    with JobFiles(["bad_lines.jsonl"]) as files:
        checked = files.check(on_problem=problems.append)
    assert [str(problem) for problem in problems] == Path("bad_lines.expected.txt").read_text("utf-8").splitlines()
    assert len({problem.problem for problem in problems}) == checked.bad_lines
    assert checked.jobs == 2
