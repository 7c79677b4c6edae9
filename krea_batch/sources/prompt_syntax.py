"""Reads what A1111 and Midjourney write into prompts: arguments, weights and networks.

`prompt_recognition` finds the prompts that have this syntax. `dynamic_prompts` expands `{a|b}` and `__name__`.
"""

from __future__ import annotations

import re
import shlex
from fractions import Fraction
from typing import Any

from krea_batch.errors import JobError
from krea_batch.jobs import ASPECT_RATIOS
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.options import PromptSyntax
from krea_batch.sources.prompt_recognition import (
    ARGUMENT,
    BREAK,
    EDITING,
    EMPHASIS,
    ESCAPE,
    IMAGINE,
    INFO_LINE,
    NETWORK,
    WEIGHT,
)

ORIGINAL_PROMPT = "original_prompt"
PROMPT_ARGUMENTS = "prompt_arguments"
"""Keys of the metadata: the prompt as it was in the file, and the arguments that the API does not have."""

MAX_NESTED_WEIGHTS = 10  # chosen: real prompts have three

_QUOTED = re.compile(r"\s*\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_INFO_VALUE = re.compile(r"([\w ./-]{1,60}):\s*(\"(?:[^\"\\]|\\.)*\"|[^,]*)(?:,|$)")
_TEXT_ARGUMENTS = (
    *("prompt", "negative_prompt", "prompt_for_display", "no", "n", "styles", "style", "sampler_name", "sd_model"),
    *("sampler_index", "outpath_samples", "outpath_grids", "sref", "cref", "oref", "p", "profile"),
)
"""Arguments whose value may have several words. Words after any other value would be lost, so they are an error."""
_RATIO_NAMES = ("ar", "aspect", "aspect_ratio")
_RANDOM_SEED = "-1"  # of A1111
# Parentheses and brackets with a backslash before them are part of the text: "a hat \\(of felt\\)".
_ESCAPED = {"(": "\ue000", ")": "\ue001", "[": "\ue002", "]": "\ue003"}  # private-use characters of Unicode
_UNESCAPED = {ord(code): char for char, code in _ESCAPED.items()}


class ArgumentReader:
    """Reads the arguments in prompts into the fields of a job. `kept` has the names that the API has no field for."""

    def __init__(self, syntaxes: tuple[PromptSyntax, ...]) -> None:
        self.kept: dict[str, None] = {}  # in the order in which they were found
        self._reads_a1111 = PromptSyntax.A1111 in syntaxes
        self._reads_midjourney = PromptSyntax.MIDJOURNEY in syntaxes

    def read(self, fields: dict[str, Any]) -> None:
        """Move the arguments of the prompt into fields and metadata. Raises JobError."""
        prompt, metadata = fields.get("prompt"), fields.get("metadata")
        if not isinstance(prompt, str) or not isinstance(metadata, dict) or not prompt:
            return
        text = IMAGINE.sub("", prompt, count=1) if self._reads_midjourney and prompt[0] == "/" else prompt
        arguments: dict[str, str] = {}
        if self._reads_a1111 and INFO_LINE.search(text):
            text, arguments = _read_info(text)
        elif (self._reads_a1111 or self._reads_midjourney) and ARGUMENT.search(text):
            text, arguments = _read_arguments(text)
        if self._reads_a1111:
            text, networks = _without_emphasis(text)
            if networks:
                arguments["networks"] = " ".join(networks)
        if text == prompt:
            return
        if not text or text.isspace():
            raise JobError(f"no prompt in {quoted(prompt)}", "write the prompt before the arguments")
        set_once(fields, "aspect_ratio", _take_aspect_ratio(arguments))
        set_once(fields, "seed", _take_seed(arguments))
        add_metadata(metadata, ORIGINAL_PROMPT, prompt)
        if arguments:
            add_metadata(metadata, PROMPT_ARGUMENTS, arguments)
            self.kept |= dict.fromkeys(arguments)
        fields["prompt"] = text


def set_once(fields: dict[str, Any], name: str, value: object) -> None:
    """Set a field from the prompt, unless the value is None. Raises JobError if the row has another value."""
    if value is None:
        return
    if fields.get(name, value) != value:
        problem = f"{name} is {quoted(fields[name])} in the row and {quoted(value)} in its prompt"
        raise JobError(problem, "keep one of them")
    fields[name] = value


def add_metadata(metadata: dict[str, Any], name: str, value: object) -> None:
    """Add a key to the metadata. Raises JobError if the row has it already."""
    if name in metadata:
        raise JobError(f"the metadata already has {quoted(name)}", "rename that column or key")
    metadata[name] = value


def _read_arguments(text: str) -> tuple[str, dict[str, str]]:
    """Return the prompt and the other arguments of a line. Raises JobError."""
    match = ARGUMENT.search(text)
    before = text[: match.start()].strip() if match else text
    arguments: dict[str, str] = {}
    while match:
        name = match[0].strip().lstrip("-—–").lower().replace("-", "_")
        if name in arguments:
            raise JobError(f"--{name} is given twice", "keep one of them")
        start = match.end() + text.startswith("=", match.end())
        quoted_value = _QUOTED.match(text, start)
        match = ARGUMENT.search(text, quoted_value.end() if quoted_value else start)
        value = _unquote(text[start : match.start() if match else len(text)].strip(), name)
        arguments[name] = value
        if len(value.split()) > 1 and name not in _TEXT_ARGUMENTS:
            raise JobError(f"text follows --{name}: {quoted(value)}", "write it before the arguments")
    prompt = arguments.pop("prompt", "")
    if prompt and before:
        raise JobError(f"both {quoted(before)} and --prompt are given", "keep one of them")
    return prompt or before, arguments


def _unquote(value: str, name: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == "'":
        return value[1:-1]
    if '"' not in value:
        return value
    try:
        return " ".join(shlex.split(value))
    except ValueError:
        raise JobError(
            f"a quote of --{name} is not closed", f'write --{name} "…", and \\" for a quote in it'
        ) from None


def _read_info(text: str) -> tuple[str, dict[str, str]]:
    """Return the prompt and the parameters of a text that A1111 saves beside an image. Raises JobError."""
    parts: dict[str, list[str]] = {"prompt": []}
    part = "prompt"
    arguments: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("Negative prompt:"):
            part = "negative_prompt"
            parts[part] = [line.removeprefix("Negative prompt:")]
        elif INFO_LINE.match(line):
            for match in _INFO_VALUE.finditer(line):
                arguments[match[1].strip().lower().replace(" ", "_")] = match[2].strip()
        else:
            parts[part].append(line)
    texts = {name: "\n".join(lines).strip() for name, lines in parts.items()}
    prompt = texts.pop("prompt")
    if not prompt:
        raise JobError(f"{quoted(text)} has no prompt", "read the text as a whole: --whole-file, or --separator")
    return prompt, texts | arguments


def _without_emphasis(text: str) -> tuple[str, list[str]]:
    """Return the text without `<lora:…>`, BREAK and the emphasis of `((word))` and `(word:1.2)`, and the former.

    Raises JobError for `[cat:dog:0.5]` and `[cat|dog]`.
    """
    if match := EDITING.search(text):
        problem = f"{quoted(match[0])} changes the prompt while an image is generated, which the API cannot do"
        raise JobError(problem, "write one of its parts")
    text = ESCAPE.sub(lambda match: _ESCAPED[match[1]], text)
    for pattern in (WEIGHT, EMPHASIS):
        for _ in range(MAX_NESTED_WEIGHTS):
            text, count = pattern.subn(lambda match: match[match.lastindex or 0].strip(), text)
            if not count:
                break
    networks = NETWORK.findall(text)
    if networks:
        text = re.sub(rf"[ ,]{{0,4}}(?:{NETWORK.pattern})", "", text).strip(" ,")
    return BREAK.sub(", ", text).translate(_UNESCAPED), networks


def _take_seed(arguments: dict[str, str]) -> int | None:
    seed = arguments.pop("seed", _RANDOM_SEED)
    if seed == _RANDOM_SEED:
        return None
    if not re.fullmatch(r"[+-]?\d{1,20}", seed):
        raise JobError(f"--seed is {quoted(seed)}", "write a whole number")
    return int(seed)


def _take_aspect_ratio(arguments: dict[str, str]) -> str | None:
    """Remove the aspect ratio, or width and height, and return the API's name for it. Raises JobError."""
    name = next((each for each in _RATIO_NAMES if each in arguments), "")
    if name:
        shown, text = f"--{name} is {quoted(arguments[name])}", arguments.pop(name)
    elif "size" in arguments:
        text = arguments.pop("size")
        shown = f"the size is {quoted(text)}"
    elif "width" in arguments and "height" in arguments:
        text = f"{arguments.pop('width')}:{arguments.pop('height')}"
        shown = f"width and height are {text}"
    else:
        return None
    ratio = _ratio(text)
    if ratio is None:
        raise JobError(shown, f"use one of {', '.join(ASPECT_RATIOS)}")
    by_ratio = {_ratio(each): each for each in ASPECT_RATIOS}  # no two are equal
    if ratio not in by_ratio:
        nearest = min(ASPECT_RATIOS, key=lambda each: _difference(ratio, _ratio(each)))
        raise JobError(
            f"{shown}, an aspect ratio that the API does not have",
            f"use one of {', '.join(ASPECT_RATIOS)}; the nearest is {nearest}",
        )
    return by_ratio[ratio]


def _ratio(text: str) -> Fraction | None:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*[:x/]\s*(\d{1,6}(?:\.\d{1,6})?)", text.lower())
    if not match or not Fraction(match[2]):
        return None
    return Fraction(match[1]) / Fraction(match[2])


def _difference(one: Fraction, other: Fraction | None) -> Fraction:
    """Return how many times the wider of two ratios is as wide as the narrower."""
    return max(one / other, other / one) if one and other else Fraction(10**6)
