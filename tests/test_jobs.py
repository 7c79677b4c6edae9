"""Test that every `Job` that can be created is valid for the API."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.errors import JobError
from krea_batch.jobs import (
    MAX_ID_BYTES,
    SEED_RANGE,
    ImageStyleReference,
    Job,
    Moodboard,
    Style,
    check_id,
    check_image_url,
    validate_job,
)


@pytest.mark.parametrize(
    "job_id", ["a", "00001", "cat-7_b", "née", "a.b", ".a", "a b", "é" * 100, "x" * MAX_ID_BYTES, "猫"]
)
def test_good_ids(job_id: str) -> None:
    """An id may be anything that is safe as a file name in the run directory."""
    check_id(job_id)


@pytest.mark.parametrize(
    "job_id",
    ["/", "a/b", "\\", "..", ".", "a..b", "../a", "a\n", "\0", "\x7f", "\x9b", "\ud800", "é" * 101, "x" * 201],
)
def test_bad_ids(job_id: str) -> None:
    """An id that would leave the run directory, contains control characters or is too long is a ValueError."""
    with pytest.raises(ValueError, match="id "):
        check_id(job_id)


@given(st.text())
def test_no_id_leaves_the_run_directory(job_id: str) -> None:
    """An id that passes has no path separator, no parent and no line break, and fits into a file name."""
    try:
        check_id(job_id)
    except ValueError:
        return
    assert job_id != "."
    assert not {"/", "\\", "\0", "\n"} & set(job_id)
    assert ".." not in job_id
    assert len(job_id.encode()) <= MAX_ID_BYTES


@pytest.mark.parametrize("url", ["https://a.b", "https://a.b/c?d=e#f", "https://a.b:8443/c.png", "HTTPS://a.b/ü"])
def test_valid_urls(url: str) -> None:
    """An image_url is an absolute HTTPS URL."""
    check_image_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.png",
        "http://a.b",
        "https://",
        "https:///c",
        "file:///c",
        "https://[a",
        "https://a.b/ c",
        "https://a.b\n",
    ],
)
def test_invalid_urls(url: str) -> None:
    """Anything else is a ValueError, including spaces and line breaks, which URL parsers drop silently."""
    with pytest.raises(ValueError, match="is not an HTTPS URL"):
        check_image_url(url)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Job(prompt=""),
        lambda: Job(prompt=" \n"),
        lambda: Job(prompt="x", id="a/b"),
        lambda: Job(prompt="x", seed=SEED_RANGE[0] - 1),
        lambda: Job(prompt="x", seed=SEED_RANGE[1] + 1),
        lambda: Moodboard("calm"),
        lambda: Moodboard("01234567-89ab-cdef-0123-456789abcdef\n"),
        lambda: Style("a", math.nan),
        lambda: Moodboard("01234567-89ab-cdef-0123-456789abcdef", math.inf),
        lambda: ImageStyleReference("https://a.b", -math.inf),
    ],
)
def test_values_that_are_not_allowed(make: Callable[[], object]) -> None:
    """A value that its type allows and the API does not is a ValueError when the struct is created."""
    with pytest.raises(ValueError, match=r"."):
        make()


@pytest.mark.parametrize(
    "fields",
    [
        {"aspect_ratio": "1:2"},
        {"creativity": "High"},
        {"seed": True},
        {"styles": (Style("a"),) * 11},
        {"moodboards": (Moodboard("01234567-89ab-cdef-0123-456789abcdef"),) * 2},
        {"styles": (Style(""),)},
        {"styles": (Style("\ud800"),)},
        {"metadata": [1]},
        {"metadata": {"a": object()}},
        {"metadata": {"a": 10**5000}},
        {"metadata": {"a": "\ud800"}},
    ],
)
def test_validate_job_refuses(fields: dict[str, Any]) -> None:
    """A job that a caller created passes the same checks as a line of a job file; the error names the job."""
    with pytest.raises(JobError, match=r"^job 'mine': "):
        validate_job(Job(prompt="x", id="mine", **fields))


@pytest.mark.parametrize("fields", [{"prompt": 5}, {"prompt": "x", "seed": "5"}, {"prompt": "x", "seed": None}])
def test_wrong_types_of_a_caller(fields: dict[str, Any]) -> None:
    """A prompt or seed of another type is a TypeError when the job is created."""
    with pytest.raises(TypeError, match=r"^the (prompt|seed) is \w+, not (str|int)$"):
        Job(**fields)


def test_validate_job_refuses_a_prompt_that_cannot_be_encoded() -> None:
    """A lone surrogate in a prompt is found before a request is built."""
    with pytest.raises(JobError, match="surrogates not allowed"):
        validate_job(Job(prompt="\ud800"))


def test_validate_job_keeps_valid_jobs() -> None:
    """A valid job is returned unchanged."""
    job = Job(
        prompt="x",
        seed=SEED_RANGE[1],
        id="mine",
        image_style_references=(ImageStyleReference("https://a.b", -0.5),),
        styles=(Style("a"),),
        moodboards=(Moodboard("01234567-89ab-cdef-0123-456789abcdef"),),
        metadata={"a": [1, {"b": None}]},
    )
    assert validate_job(job) == job
