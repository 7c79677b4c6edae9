"""The sample jobs are what their README says."""

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
def test_samples_are_good(name: str) -> None:
    """Every line is a good job with an id and a prompt of its own kind of image."""
    jobs = jobs_of(name)
    assert all(not job.id.isdigit() for job in jobs)
    assert all(20 <= len(job.prompt) <= 250 for job in jobs)


def test_first() -> None:
    """The first file is small and varied."""
    jobs = jobs_of("first.jsonl")
    assert 8 <= len(jobs) <= 12
    assert len({job.aspect_ratio for job in jobs}) >= 6


def test_styled() -> None:
    """The styled file shows every kind of style, a negative strength, and only addresses that are placeholders."""
    jobs = jobs_of("styled.jsonl")
    references = [reference for job in jobs for reference in job.image_style_references]
    assert any(reference.strength < 0 for reference in references)
    assert all(reference.image_url.startswith("https://example.com/placeholder/") for reference in references)
    assert all(style.id.startswith("placeholder-") for job in jobs for style in job.styles)
    assert any(job.moodboards for job in jobs)


def test_five_hundred() -> None:
    """Five hundred different prompts are spread over every ratio and creativity, half of them with a seed."""
    jobs = jobs_of("five_hundred.jsonl")
    assert len({job.prompt for job in jobs}) == len(jobs) == 500
    ratios = Counter(job.aspect_ratio for job in jobs)
    assert set(ratios) == set(ASPECT_RATIOS)
    assert min(ratios.values()) >= 20
    assert set(Counter(job.creativity for job in jobs)) == set(CREATIVITIES)


def test_bad_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bad line gets the message that is in the expected file, each a different one."""
    monkeypatch.chdir(SAMPLES_DIR)
    problems: list[LineProblem] = []
    with JobFiles(["bad_lines.jsonl"]) as files:
        checked = files.check(on_problem=problems.append)
    assert [str(problem) for problem in problems] == Path("bad_lines.expected.txt").read_text("utf-8").splitlines()
    assert len({problem.problem for problem in problems}) == checked.bad_lines
    assert checked.jobs == 2
