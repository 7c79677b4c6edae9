"""Whatever the values are, a template makes a relative path that every file system takes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pathvalidate import is_valid_filename

from krea_batch.errors import JobError
from krea_batch.jobs import LIKE_A_FILE, Job, check_image_name
from krea_batch.rules.image_names import NameTemplate, safe_part, slug_of, values_of
from krea_batch.storage.image_types import EXTENSIONS

AWKWARD_TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=". aNULCO1/\\:png\u00e9\u732b$~", max_size=30),
    st.text(min_size=60, max_size=300),
)


@pytest.mark.parametrize(("template", "name"), [
    ("{id}_{seed}", "fox_7"),
    ("{seed:04}-{id:>6}", "0007-fox"),
    ("{set}/{prompt}", "train/a-red-fox-at-dawn"),
    ("{aspect_ratio}/{creativity}", "16x9/medium"),
    ("{{{id}}}", "{fox}"),
    ("{file}", "a_b"),
    ("{file}/{id}", "a_b_png/fox"),
    ("{up}/{id}", ".._x/fox"),
    ("{device}/{id}", "NUL_/fox"),
    ("{dots}x/{id} ", "a. .x/fox"),
    ("{rate}", "0.5"),
])  # fmt: skip
def test_names(template: str, name: str) -> None:
    """A template has the job's fields and its metadata; a slash, an extension and a device in a value are changed."""
    metadata = {"set": "train", "file": "a/b.png", "up": "../x", "device": "NUL", "dots": "a. .", "rate": 0.5}
    job = Job(prompt="A red fox, at dawn!", seed=7, aspect_ratio="16:9", metadata=metadata)
    assert NameTemplate(template).render(values_of(job, "fox")) == name


@pytest.mark.parametrize(("template", "problem"), [
    ("x", "has no field"),
    ("{}", "without a field"),
    ("{id!r}", "with more than a field"),
    ("{id:{seed}}", "with more than a field"),
    ("{id", "invalid name"),
    ("/{id}", "empty part"),
    ("{id}/", "empty part"),
    ("a//{id}", "empty part"),
    ("../{id}", "empty part, or . or .."),
    ("a/./{id}", "empty part, or . or .."),
    ("a:b/{id}", "':'"),
    ("a\\{id}", "forbid"),
    ("{id}\0", "forbid"),
])  # fmt: skip
def test_invalid_templates(template: str, problem: str) -> None:
    """A template that cannot be right is refused before any row is read."""
    with pytest.raises(JobError, match=re.escape(problem)):
        NameTemplate(template)


@pytest.mark.parametrize(("template", "values", "problem"), [
    ("{id}_{seed}", {"id": "1"}, 'no "seed" for the name of the image; give each job a seed'),
    ("{place}", {"id": "1", "animal": "cat"}, 'no "place" for the name of the image; there are id, animal'),
    ("{a}", {"a": None}, '"a" of the image\'s name is None; use text or a number'),
    ("{a}", {"a": [1]}, "use text or a number"),
    ("{a}", {"a": " "}, "a part of it is empty"),
    ("{a}/x", {"a": ".."}, "a part of it is empty"),
    ("{a:04d}", {"a": "x"}, "cannot be formatted"),
    ("/".join(["{a}"] * 5), {"a": "x" * 190}, "use fewer folders, or shorter values"),
])  # fmt: skip
def test_invalid_values(template: str, values: dict[str, Any], problem: str) -> None:
    """A row whose values make no name is refused, with what would be right."""
    with pytest.raises(JobError, match=re.escape(problem)):
        NameTemplate(template).render(values)


@pytest.mark.parametrize(("part", "portable"), [
    ("A Red Fox.v2", "a-red-fox.v2"), ("Café № 5", "cafe-no-5"), ("猫", safe_part("猫", portable=True)),
    ("NUL", "nul_"), ("--x--", "x"), ("a_b", "a_b"),
])  # fmt: skip
def test_portable_names(part: str, portable: str) -> None:
    """Accents go, other characters become hyphens, and a name of which nothing is left is a hash."""
    assert safe_part(part, portable=True) == portable
    assert re.fullmatch("[0-9a-f]{8}", safe_part("猫", portable=True))


@pytest.mark.parametrize(("prompt", "slug"), [
    ("A cat -- asleep", "a-cat-asleep"),
    ("नमस्ते दुनिया", "नमस्ते-दुनिया"),
    ("word " * 13, "-".join(["word"] * 12)),
    ("x" * 100, "x" * 60),
    ("🦊", "0a9f72e8"),
])  # fmt: skip
def test_slugs(prompt: str, slug: str) -> None:
    """A prompt is shortened at the end of a word. One without letters and digits has its hash."""
    assert slug_of(prompt) == slug


def test_every_extension_of_an_image_is_known() -> None:
    """A folder cannot have the name of an image of any type."""
    assert all(LIKE_A_FILE.search(f"cat{extension}") for extension in EXTENSIONS.values())


@given(text=AWKWARD_TEXTS, portable=st.booleans())
def test_any_value(text: str, portable: bool) -> None:
    """A part is valid on Windows and POSIX, and does not change if it is made safe again."""
    part = safe_part(text, portable=portable)
    assert is_valid_filename(part, platform="windows")
    assert is_valid_filename(part, platform="linux")
    assert part == part.strip()
    assert not part.endswith(".")
    assert safe_part(part, portable=portable) == part
    assert not portable or re.fullmatch("[a-z0-9._-]+", part)


@given(first=AWKWARD_TEXTS, second=AWKWARD_TEXTS, portable=st.booleans())
def test_any_name(first: str, second: str, portable: bool) -> None:
    """A name with any values has as many parts as the template, and is refused only if one of them is empty."""
    try:
        name = NameTemplate("{a}/x{b}/{b}-{a}", portable=portable).render({"a": first, "b": second})
    except JobError:
        assert not first.strip().strip(". ")
        return
    assert first.strip().strip(". ")
    check_image_name(name)
    assert name.count("/") == 2
