"""The prompt syntax of other tools: what is recognised, and what A1111 and Midjourney arguments become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krea_batch.errors import JobError
from krea_batch.sources import InputOptions, JobFiles
from krea_batch.sources.options import PromptSyntax, TextUnit
from krea_batch.sources.prompt_recognition import may_have_syntax, recognise
from krea_batch.sources.prompt_syntax import ArgumentReader

INFO_TEXT = """a red kite, (sky:1.2) <lora:kites:0.8>
over a field
Negative prompt: blurry,
low quality
Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 42, Size: 768x512, Lora hashes: "kites: 12, x: 3\""""


RECOGNISED = [
    ("a {red|blue} kite", ["dynamic"]),
    ("a {red {kite|car}} there", ["dynamic"]),
    ("a {2$$calm|wild} sea", ["dynamic"]),
    ("a {2$$__moods__} sea", ["dynamic"]),
    ("a kite over a __place__", ["dynamic"]),
    ("a __colours/warm*__ kite", ["dynamic"]),
    ("${season={summer|winter}} in ${season}", ["dynamic"]),
    ('--prompt "a red kite" --seed 7', ["a1111"]),
    ("a red kite --negative_prompt blurry", ["a1111"]),
    ("a kite <lora:kites:0.8>", ["a1111"]),
    ("a (red:1.3) kite", ["a1111"]),
    ("Negative prompt: blurry", ["a1111"]),
    ("Steps: 20, Sampler: Euler a, Seed: 7", ["a1111"]),
    (INFO_TEXT, ["a1111"]),
    ("a red kite --ar 16:9", ["midjourney"]),
    ("a red kite --seed 7", ["midjourney"]),
    ("a red kite --v 6 --tile", ["midjourney"]),
    ("a red kite —ar 16:9", ["midjourney"]),
    ("a red kite –no clouds", ["midjourney"]),
    ("hot:: dog::2", ["weight"]),
    ("/imagine prompt: a kite", ["midjourney"]),
    ("/imagine a kite", ["midjourney"]),
    ("/r/kites", []),
    ("a {red, blue} kite", ["permutation"]),
    ("a {red|blue} kite --ar 16:9", ["dynamic", "midjourney"]),
    ("a well-known kite -- red, at 10:30 (at 16:9)", []),
    ("a kite — red — and --", []),
    ("snake_case ____ a::", ["weight"]),
    ("snake_case ____ <b>: (a:b)", []),
    ("a {color} kite", ["placeholder"]),
    ("a {{ color }} kite", ["placeholder"]),
    ("a {} kite", ["placeholder"]),
    ("a {first_name} and {0}", ["placeholder"]),
    ("a portrait of a [SUBJECT]", ["placeholder"]),
    ("a {red|blue} {animal}", ["dynamic", "placeholder"]),
    ('a sign with {"a": 1} and \\{b\\}', []),
    ("((masterpiece)), a kite", ["a1111"]),
    ("a (((red kite)))", ["a1111"]),
    ("a [[blurry]] kite", ["a1111"]),
    ("a (red:2) kite", ["a1111"]),
    ("a ( red : 1.3 ) kite", ["a1111"]),
    ("a ((red kite):1.3)", ["a1111"]),
    ("a kite \\(series\\)", ["a1111"]),
    ("a [cat:dog:0.5]", ["a1111"]),
    ("a [cat::10]", ["a1111"]),
    ("a [cat:0.5]", ["a1111"]),
    ("a [cow|horse] in a field", ["a1111"]),
    ("a blue sky BREAK a red kite", ["a1111"]),
    ("a blue sky,\nBREAK\nA red kite", ["a1111"]),
    ("embedding:kites, a kite", ["a1111"]),
    ("a photo (from 1990), a (black) cat & [sic]", []),
    ("a clock [12:30:45] (at 10:30), Matthew (5:3), [16:9], [Scene: 1], f((x))", []),
    ("a smile :-)) and another ((", []),
    ('a sign that says BREAK in red, "BREAK", COFFEE BREAK room', []),
    ("https://example.com/kite.png", ["url"]),
    ("www.example.com/kite", ["url"]),
    ("https://example.com/kite.png a kite --ar 16:9", ["url", "midjourney"]),
    ("data:image/png;base64,iVBORw0", ["url"]),
    ("a poster for https://example.com", []),
    ("kite.png", ["file_name"]),
    ("IMG 2024.JPG", ["file_name"]),
    ("images/a red kite.webp", ["file_name"]),
    ("C:\\images\\a kite.png", ["file_name"]),
    ("the icon of a file called kite.png", []),
    ("a kite, 8k. Nikon f/1.8.", []),
    ("-dash", []),
    ('a sign that says "Note: closed"', []),
]


def recognised(prompt: str) -> list[str]:
    return [str(syntax) for syntax, _ in recognise(prompt)]


def read(prompt: str, *syntaxes: PromptSyntax, **fields: Any) -> dict[str, Any]:
    row = {"prompt": prompt, "metadata": {}, **fields}
    ArgumentReader(syntaxes or (PromptSyntax.A1111,)).read(row)
    return row


@pytest.mark.parametrize(("prompt", "expected"), RECOGNISED)
def test_recognised(prompt: str, expected: list[str]) -> None:
    """Syntax of other tools is recognised wherever it is in the prompt; ordinary punctuation is not."""
    assert recognised(prompt) == expected
    assert may_have_syntax(prompt) or not expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cat\ta cat on a roof", ["tsv_cells"]),
        ('"a red kite","16:9"', ["csv_cells"]),
        ('"a red kite";7', ["csv_cells"]),
        ("\ta kite\t", []),
        ('"Yes", "No" on two buttons', []),
        ('"Hello", says the cat', []),
    ],
)
def test_cells(line: str, expected: list[str]) -> None:
    """A line of a text file may have cells of a table; a prompt of another format has none."""
    assert [str(syntax) for syntax, _ in recognise(line, is_line=True)] == expected
    assert recognised(line) == []


def test_a_check_counts_them(tmp_path: Path) -> None:
    """A check counts every row in which a syntax is recognised, and names the first."""
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt, _ in RECOGNISED))
    with JobFiles([str(path)]) as files:
        found = {each.syntax: (each.rows, each.line) for each in files.check().unread_syntax}
    lines: dict[str, list[int]] = {}
    for line, (_, syntaxes) in enumerate(RECOGNISED, 1):
        for syntax in syntaxes:
            lines.setdefault(syntax, []).append(line)
    assert found == {syntax: (len(numbers), numbers[0]) for syntax, numbers in lines.items()}


@pytest.mark.parametrize(
    ("prompt", "fields", "arguments"),
    [
        ('--prompt "a red kite" --seed 7', {"prompt": "a red kite", "seed": 7}, None),
        ("--prompt a king's hat --seed -1", {"prompt": "a king's hat"}, None),
        (
            '--prompt "a \\"big\\" kite" --negative_prompt "blurry, --x" --steps 50',
            {"prompt": 'a "big" kite'},
            {"negative_prompt": "blurry, --x", "steps": "50"},
        ),
        ('--prompt "a kite" over a field --seed=3', {"prompt": "a kite over a field", "seed": 3}, None),
        ("a kite --width 1024 --height 576", {"prompt": "a kite", "aspect_ratio": "16:9"}, None),
        ("a ((red:1.1) and (blue:0.5):1.3) kite", {"prompt": "a red and blue kite"}, None),
        ("a kite --width 1024", {"prompt": "a kite"}, {"width": "1024"}),
        ("a kite --AR 4:3 --seed 7 --v 6", {"prompt": "a kite", "aspect_ratio": "4:3", "seed": 7}, {"v": "6"}),
        ("a kite —ar 32:18 --no red, blue --tile", {"aspect_ratio": "16:9"}, {"no": "red, blue", "tile": ""}),
        ("a kite --ar 235:100", {"prompt": "a kite", "aspect_ratio": "2.35:1"}, None),
        ("a (red:1.3), kite <lora:kites:0.8>", {"prompt": "a red, kite"}, {"networks": "<lora:kites:0.8>"}),
        ("((best)), a (((red kite))), [[blurry]]", {"prompt": "best, a red kite, blurry"}, None),
        ("a ((red kite):1.3) (big: 2)", {"prompt": "a red kite big"}, None),
        ("a (kite \\(of paper\\):1.2)", {"prompt": "a kite (of paper)"}, None),
        ("a sky, BREAK, a kite BREAK a field", {"prompt": "a sky, a kite, a field"}, None),
        ("(embedding:kites:1.2), a kite", {"prompt": "a kite"}, {"networks": "embedding:kites"}),
        (
            INFO_TEXT,
            {"prompt": "a red kite, sky\nover a field", "seed": 42, "aspect_ratio": "3:2"},
            {
                "negative_prompt": "blurry,\nlow quality",
                "steps": "20",
                "sampler": "DPM++ 2M",
                "cfg_scale": "7",
                "lora_hashes": '"kites: 12, x: 3"',
                "networks": "<lora:kites:0.8>",
            },
        ),
    ],
)
def test_arguments(prompt: str, fields: dict[str, Any], arguments: dict[str, str] | None) -> None:
    """Seed and aspect ratio become fields, other arguments and the original prompt go into the metadata."""
    row = read(prompt)
    assert {"prompt": row["prompt"]} | fields == {key: value for key, value in row.items() if key != "metadata"}
    expected: dict[str, Any] = {"original_prompt": prompt}
    assert row["metadata"] == (expected | {"prompt_arguments": arguments} if arguments else expected)


def test_a_prompt_without_arguments() -> None:
    """A prompt without arguments stays as it is, and nothing is recorded about it."""
    for prompt in ("a well-known kite", "  a   kite -- red  "):
        assert read(prompt) == {"prompt": prompt, "metadata": {}}


@pytest.mark.parametrize(
    ("prompt", "problem", "hint"),
    [
        ("a kite --ar 21:9", '--ar is "21:9", an aspect ratio that the API does not have', "the nearest is 2.35:1"),
        ("a kite --ar wide", '--ar is "wide"', "use one of 1:1, 4:3, 3:2, 16:9, 2.35:1, 4:5, 2:3, 9:16"),
        ("a kite --ar 1:0", '--ar is "1:0"', "use one of"),
        ("a kite --width 832 --height 1216", "width and height are 832:1216", "the nearest is 2:3"),
        ("a kite --seed x", '--seed is "x"', "write a whole number"),
        ("a kite --seed 1 --seed 2", "--seed is given twice", "keep one of them"),
        ("a kite --v 6 over a field", 'text follows --v: "6 over a field"', "write it before the arguments"),
        ('a kite --no "red', "a quote of --no is not closed", 'write --no "…"'),
        ("--seed 7", 'no prompt in "--seed 7"', "write the prompt before the arguments"),
        ("a car --prompt a kite", 'both "a car" and --prompt are given', "keep one of them"),
        ("Steps: 20, Seed: 7", "has no prompt", "--whole-file"),
        (
            "a [cat:dog:0.5]",
            '"[cat:dog:0.5]" changes the prompt while an image is generated',
            "write one of its parts",
        ),
        ("a [cat|dog]", '"[cat|dog]" changes the prompt', "write one of its parts"),
    ],
)
def test_invalid_arguments(prompt: str, problem: str, hint: str) -> None:
    """An argument that cannot be used is an error which says what would be right."""
    with pytest.raises(JobError) as caught:
        read(prompt)
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def test_arguments_and_fields_that_differ() -> None:
    """A row may repeat the value of its prompt, but not give another."""
    assert read("a kite --seed 7", seed=7)["seed"] == 7
    with pytest.raises(JobError, match="seed is 8 in the row and 7 in its prompt"):
        read("a kite --seed 7", seed=8)


def test_midjourney_leaves_weights() -> None:
    """Weights and networks of A1111 are read with its syntax only."""
    prompt = "a (red:1.3) kite <lora:kites:0.8>"
    assert read(prompt, PromptSyntax.MIDJOURNEY)["prompt"] == prompt
    assert read(f"{prompt} --seed 7", PromptSyntax.MIDJOURNEY)["prompt"] == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "{" + "1" * 10**6,
        "{" + "a," * 500_000,
        "(" * 10**6 + "x:1",
        "a --no" + " " * 10**6 + ".",
        "__a/" * 250_000,
        "{" * 10**6,
        "[a" + ":" * 10**6,
        "[a|" * 300_000,
        "((" + "a" * 10**6,
        "(a:" + " " * 10**6,
        "a " * 500_000 + "BREAK",
        "[A" + "A " * 500_000,
        "a/" * 500_000 + ".pn",
        '"' * 10**6,
    ],
    ids=lambda text: text[:4],
)
def test_long_prompts(prompt: str) -> None:
    """A prompt of the greatest length is examined in time that grows with its length, not with its square."""
    assert len(recognised(prompt)) <= 1
    read(prompt)


def test_long_parameters() -> None:
    """So are long parameters that A1111 saved."""
    assert read("a kite\nSteps: 20, " + "x" * 10**6)["prompt"] == "a kite"


def test_the_fingerprint_of_the_options() -> None:
    """A checkpoint is used with `plain`, which changes no job, but not with another syntax or other wildcards."""
    plain = InputOptions(prompt_syntax=(PromptSyntax.PLAIN,))
    dynamic = (PromptSyntax.DYNAMIC,)
    assert plain.fingerprint() == InputOptions().fingerprint()
    texts = {
        InputOptions(prompt_syntax=dynamic, wildcards=wildcards).fingerprint()
        for wildcards in ({}, {"a": ("b",)}, {"a": ("c",)})
    }
    assert len(texts | {plain.fingerprint()}) == 4
    assert InputOptions(text_unit=TextUnit.FILE).fingerprint() != InputOptions(separator="---").fingerprint()


@pytest.mark.parametrize("prompt", ["/imagine prompt: a kite --seed 7", "/imagine a kite --seed 7"])
def test_imagine(prompt: str) -> None:
    """The command of Discord is not part of the prompt."""
    row = read(prompt, PromptSyntax.MIDJOURNEY)
    assert (row["prompt"], row["seed"]) == ("a kite", 7)
    assert row["metadata"] == {"original_prompt": prompt}
