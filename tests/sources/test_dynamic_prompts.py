"""Dynamic prompts: choices, weights, counts and wildcards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from krea_batch.errors import InputError, JobError
from krea_batch.sources.dynamic_prompts import expand, read_wildcards

WILDCARDS = {
    "colour": ("red", "blue"),
    "place/city": ("Rome", "Bonn"),
    "place/any": ("a __place/city__ {street|square}",),
    "loop": ("__loop__",),
}

DOUBLING = {f"n{n}": (f"__n{n + 1}__ __n{n + 1}__",) for n in range(40)} | {"n40": ("x",)}


def texts(prompt: str, count: int = 300) -> Counter[str]:
    return Counter(expand(prompt, f"{number:05d}", WILDCARDS)[0] for number in range(count))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {red|blue} kite", {"a red kite", "a blue kite"}),
        ("a {red | {dark|light} blue} kite", {"a red kite", "a dark blue kite", "a light blue kite"}),
        ("a {|red }kite", {"a kite", "a redkite"}),
        ("a __colour__ kite", {"a red kite", "a blue kite"}),
        ("{2$$a|b|c}", {"a, b", "a, c", "b, a", "b, c", "c, a", "c, b"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{1-2$$-$$a|b}", {"a", "b", "a-b", "b-a"}),
        ("{-2$$$$a|b}", {"a", "b", "ab", "ba"}),
        ("{5$$a|b}", {"a, b", "b, a"}),
        ("{2$$__colour__}", {"red, blue", "blue, red"}),
        ("__place/*__", {"Rome", "Bonn", *(f"a {c} {p}" for c in ("Rome", "Bonn") for p in ("street", "square"))}),
        (r"\{a\} {b|c}", {"{a} b", "{a} c"}),
        ("{1::a|0::b}", {"a"}),
    ],
)
def test_every_choice_is_made(prompt: str, expected: set[str]) -> None:
    """Over many ids, every possible text occurs and no other."""
    assert set(texts(prompt)) == expected


def test_weights() -> None:
    """An option with twice the weight is chosen twice as often."""
    counts = texts("{2::a|b}", 3000)
    assert 1.7 < counts["a"] / counts["b"] < 2.4


def test_the_id_decides() -> None:
    """The same id gives the same text in every process; these are the choices of version 0.1."""
    prompt = "a {red|green|blue} kite over a __place/any__"
    assert expand(prompt, "00001", WILDCARDS) == expand(prompt, "00001", WILDCARDS)
    assert [expand("{a|b|c|d}", f"{number:05d}", {})[0] for number in range(1, 9)] == list("acaadadc")
    text, choices = expand(prompt, "00001", WILDCARDS)
    assert all(choice in text for choice in choices)
    assert len(choices) == 4


@pytest.mark.parametrize(
    ("prompt", "wildcards", "problem", "hint"),
    [
        ("a {red|blue kite", {}, "a brace is not closed", "close it"),
        ("a red} kite", {}, "a closing brace without an opening one", "write \\} for a brace"),
        ("a ${x=1} kite", {}, "variables such as", "write the value itself"),
        (
            "a __place__",
            {},
            "no values for the wildcard __place__",
            "pass --wildcards DIR with its values in place.txt",
        ),
        (
            "a __place__",
            WILDCARDS,
            "no values for the wildcard __place__",
            "the wildcards are colour, loop, place/any",
        ),
        ("a __empty__", {"empty": ()}, "no values for the wildcard __empty__", "into empty.txt"),
        ("a __loop__", WILDCARDS, "nested more than 50 deep", "may refer to itself"),
        ("__n0__", DOUBLING, "more than 1,000 choices", "use fewer wildcards in wildcards"),
        ("{" * 1000 + "}" * 1000, {}, "nested more than 50 deep", ""),
        ("{0::a|0::b}", {}, "all weights of a variant are 0", "above 0"),
    ],
)
def test_invalid_prompts(prompt: str, wildcards: dict[str, tuple[str, ...]], problem: str, hint: str) -> None:
    """What cannot be expanded is an error which says what would be right."""
    with pytest.raises(JobError) as caught:
        expand(prompt, "1", wildcards)
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def test_wildcard_files(tmp_path: Path) -> None:
    """A wildcard is named by the path of its file; comments and blank lines have no values."""
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "city.txt").write_bytes(b"\xef\xbb\xbf# cities\n\n Rome \r\nBonn\n")
    assert read_wildcards(tmp_path) == {"place/city": ("Rome", "Bonn")}


def test_unreadable_wildcards(tmp_path: Path) -> None:
    """A directory without wildcards, and a file that is not UTF-8, are named."""
    with pytest.raises(InputError, match=r"has no wildcard files; write one value per line into NAME\.txt"):
        read_wildcards(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"a\.txt: not UTF-8"):
        read_wildcards(tmp_path)
