"""Test that sweeps are expanded into jobs with stable ids, and that templates are rendered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.errors import JobError
from krea_batch.jobs import check_id
from krea_batch.sources.sweep import (
    MAX_JOBS_PER_ROW,
    Axis,
    check_axis_names,
    combinations,
    make_axis,
    parse_axis,
    parse_seeds,
    repeat_axis,
)
from krea_batch.sources.template import Template


def suffixes(*axes: Axis) -> list[str]:
    return [combination.id_suffix for combination in combinations(axes)]


def error_text(error: pytest.ExceptionInfo[JobError]) -> str:
    return f"{error.value.problem}; {error.value.hint}"


def test_id_suffixes() -> None:
    """Each combination has a suffix of its names and values; the last axis varies fastest."""
    assert suffixes(make_axis("creativity", ["raw", "high"]), make_axis("seed", [3, 4])) == [
        "-creativity=raw-seed=3",
        "-creativity=raw-seed=4",
        "-creativity=high-seed=3",
        "-creativity=high-seed=4",
    ]
    assert suffixes(make_axis("aspect_ratio", ["16:9", "2.35:1"])) == ["-aspect_ratio=16x9", "-aspect_ratio=2.35x1"]


def test_ids_do_not_depend_on_the_order_of_axes() -> None:
    """The same sweeps in another order have the same ids, so no image is charged again."""
    axes = [
        make_axis("seed", [1, 2]),
        repeat_axis(2),
        make_axis("style", ["ink"]),
        make_axis("creativity", ["raw", "high"]),
    ]
    assert suffixes(*axes) == suffixes(*reversed(axes))
    assert suffixes(*axes)[0] == "-style=ink-creativity=raw-seed=1-repeat=1"


def test_adding_a_value_changes_no_id() -> None:
    """When a sweep grows, charged images keep their ids."""
    assert set(suffixes(make_axis("seed", [1, 2]))) < set(suffixes(make_axis("seed", [3, 1, 2])))
    assert set(suffixes(repeat_axis(2))) < set(suffixes(repeat_axis(3)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1..4", [1, 2, 3, 4]), ("7,11,12", [7, 11, 12]), ("1..2, 9", [1, 2, 9]), ("-1..1", [-1, 0, 1]), ("5..5", [5])],
)
def test_valid_seeds(text: str, expected: list[int]) -> None:
    """A range includes both ends, and commas join seeds and ranges."""
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["", "1..", "4..1", "a", "1-4", f"1..{MAX_JOBS_PER_ROW + 1}", "1,,2"])
def test_invalid_seeds(text: str) -> None:
    """An invalid text of seeds raises a JobError that shows the notation."""
    with pytest.raises(JobError, match=r"1\.\.4"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("seed", [1, 1], '1 occurs twice in the sweep of "seed"; keep one of them'),
        ("style", ["a b", "a/b"], '"a b" and "a/b" in the sweep of "style" would be a_b in an id; name them: '),
        ("style", [], 'the sweep of "style" has no values; '),
        ("style", "ink", 'the sweep of "style" is "ink"; write '),
        ("style", ["?"], '"?" in the sweep of "style" cannot be written in an id; give it a name'),
        ("styles", [[{"id": "x"}]], 'a value in the sweep of "styles" is [{"id": "x"}]; name its values: '),
        ("repeat", 0, "repeat is 0; write a whole number from 1 to 10,000"),
        ("repeat", True, "repeat is true; "),
        ("repeat", [1], "repeat is [1]; "),
    ],
)
def test_invalid_axes(name: str, values: object, expected: str) -> None:
    """The problem names the sweep and the value, and the hint says what to write."""
    with pytest.raises(JobError) as error:
        make_axis(name, values)
    assert error_text(error).startswith(expected)


def test_named_values() -> None:
    """An object names values that cannot be written in an id, such as lists."""
    styles = make_axis("styles", {"ink": [{"id": "ink-7"}], "none": []})
    assert [(combination.id_suffix, combination.values) for combination in combinations([styles])] == [
        ("-styles=ink", {"styles": [{"id": "ink-7"}]}),
        ("-styles=none", {"styles": []}),
    ]


def test_long_values_are_truncated_and_distinct() -> None:
    """Two long texts with the same start have different suffixes."""
    first, second = suffixes(make_axis("place", ["x" * 100 + "1", "x" * 100 + "2"]))
    assert first != second
    assert len(first) < 60


@pytest.mark.parametrize("text", ["creativity", "=raw", "creativity=", "seed=a", "repeat=x"])
def test_invalid_sweeps_on_the_command_line(text: str) -> None:
    """A text that is not a field with valid values raises JobError."""
    with pytest.raises(JobError):
        parse_axis(text)


def test_sweeps_on_the_command_line() -> None:
    """Commas separate values, seeds are integers, and repeat is a count."""
    assert parse_axis("creativity=raw, high") == make_axis("creativity", ["raw", "high"])
    assert parse_axis("seed=1..3,9") == make_axis("seed", [1, 2, 3, 9])
    assert parse_axis("repeat=3") == repeat_axis(3)


def test_names_that_cannot_be_swept() -> None:
    """Only API fields other than the prompt, and names in the template, can be swept."""
    check_axis_names([make_axis("animal", ["cat"]), make_axis("seed", [1]), repeat_axis(2)], ["animal"])
    with pytest.raises(JobError) as error:
        check_axis_names([make_axis("creativty", ["raw"])])
    assert error_text(error) == '"creativty" cannot be swept; did you mean "creativity"?'
    with pytest.raises(JobError):
        check_axis_names([make_axis("prompt", ["a cat"])])


def test_too_many_jobs_and_duplicate_sweeps() -> None:
    """Too many combinations, and a name swept twice, raise JobError before any job is made."""
    with pytest.raises(JobError, match="20,000"):
        next(combinations([make_axis("seed", "1..10000"), repeat_axis(2)]))
    with pytest.raises(JobError, match="swept twice"):
        next(combinations([make_axis("seed", [1]), make_axis("seed", [2])]))


@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=5, unique=True))
def test_any_value_gives_a_valid_id_or_an_error(values: list[str]) -> None:
    """Every value gives a valid and distinct id, or a JobError."""
    try:
        id_suffixes = suffixes(make_axis("name", values))
    except JobError:
        return
    assert len(set(id_suffixes)) == len(values)
    for suffix in id_suffixes:
        check_id("00001" + suffix)


def test_template() -> None:
    """Names are replaced by values in one pass; doubled braces become single braces."""
    template = Template("{{{animal}}} at {place}, {n}")
    assert template.names == ("animal", "place", "n")
    assert template.render({"animal": "a {place}", "place": "sea", "n": 2}) == "{a {place}} at sea, 2"


@pytest.mark.parametrize("text", ["a cat", "{", "{}", "}", "{animal!r}", "{animal:>5}"])
def test_invalid_templates(text: str) -> None:
    """A template without a name, which would give every row the same prompt, raises JobError, as does bad syntax."""
    with pytest.raises(JobError, match="template"):
        Template(text)


@pytest.mark.parametrize("values", [{}, {"animal": None}, {"animal": ["cat"]}])
def test_values_a_template_cannot_render(values: dict[str, object]) -> None:
    """A missing value, null or a list raises JobError, since the prompt would be wrong."""
    with pytest.raises(JobError, match='"animal"'):
        Template("a {animal}").render(values)
