"""Expands dynamic prompts: `{a|b}`, weights `{2::a|1::b}`, `{2$$a|b|c}` and wildcards `__name__`.

Every choice depends only on the id of the job, because a job whose prompt differs under the same id is refused. The
choices use `Random.random`, whose sequence for a seed is guaranteed by Python. The library `dynamicprompts` is not
used, because its choices may differ between versions, and it has had no release since March 2024.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from random import Random

from krea_batch.errors import InputError, JobError
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.prompt_recognition import is_placeholder

PROMPT_CHOICES = "prompt_choices"
"""Key of the metadata: what was chosen, in the order of the prompt."""

MAX_CHOICES = 1000  # chosen: far more than a prompt has; wildcards in wildcards can double at each level
MAX_DEPTH = 50  # chosen: wildcards of real collections are nested five deep

_SPECIAL = re.compile(r"\\([{}|])|\$\{|\{|\}|__([A-Za-z0-9*][\w*./-]*?)__")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?)::")
_COUNT = re.compile(r"\s*(\d{0,4})(-?)(\d{0,4})\$\$(?:(.*?)\$\$)?", re.DOTALL)
_SEPARATOR = ", "  # as in the syntax guide of Dynamic Prompts

Wildcards = Mapping[str, Sequence[str]]


def read_wildcards(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the values in the text files of a directory by name: `places/cities` for `places/cities.txt`.

    Blank lines and lines that start with # are left out. Raises InputError if a file cannot be read.
    """
    wildcards = {}
    try:
        for path in sorted(folder.rglob("*.txt")):
            lines = path.read_text("utf-8-sig").splitlines()
            values = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
            wildcards[path.relative_to(folder).with_suffix("").as_posix()] = values
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{path}: not UTF-8"
        raise InputError(f"{folder}: cannot read the wildcards ({reason})", "save them as UTF-8 text files") from None
    if not wildcards:
        raise InputError(f"{folder}: has no wildcard files", "write one value per line into NAME.txt for __NAME__")
    return wildcards


def expand(prompt: str, job_id: str, wildcards: Wildcards) -> tuple[str, list[str]]:
    """Return the prompt with a choice for each part, and the choices. Raises JobError if the prompt is not valid."""
    expansion = _Expansion(job_id, wildcards)
    text = expansion.expand(prompt)
    return text, expansion.choices


class _Expansion:
    """The expansion of one prompt."""

    def __init__(self, job_id: str, wildcards: Wildcards) -> None:
        self.choices: list[str] = []
        self._random = Random(job_id)  # noqa: S311 - reproducible on purpose
        self._wildcards = wildcards

    def expand(self, text: str, depth: int = 0) -> str:
        if depth > MAX_DEPTH:
            raise JobError(f"choices are nested more than {MAX_DEPTH} deep", "a wildcard may refer to itself")
        parts, position = [], 0
        while match := _SPECIAL.search(text, position):
            parts.append(text[position : match.start()])
            position = match.end()
            if match[1]:
                parts.append(match[1])
            elif match[2]:
                parts.append(self._choose(self._values(match[2]), depth))
            elif match[0] == "{":
                end = _closing_brace(text, position)
                parts.append(self._variant(text[position:end], depth))
                position = end + 1
            elif match[0] == "}":
                raise JobError(f"a closing brace without an opening one in {quoted(text)}", "write \\} for a brace")
            else:
                raise JobError(
                    f"variables such as {quoted(text[match.start() :])} are not read", "write the value itself"
                )
        return "".join(parts) + text[position:]

    def _variant(self, body: str, depth: int) -> str:
        """Return the expansion of what is between braces."""
        count = _COUNT.match(body)
        options = _split_options(body[count.end() :] if count else body)
        if not count:
            if is_placeholder(f"{{{body}}}"):
                hint = f"fill it in, write a second option: {{{body}|…}}, or write \\{{ and \\}} for braces"
                raise JobError(f"{{{body}}} has only one option", hint)
            return self._choose(options, depth)
        if len(options) == 1 and (wildcard := _SPECIAL.fullmatch(options[0].strip())) and wildcard[2]:
            options = list(self._values(wildcard[2]))
        low, high = _bounds(count, len(options))
        number = low + self._below(high - low + 1)
        chosen = []
        for _ in range(number):
            index = self._index(options)
            chosen.append(self._record(options.pop(index), depth))
        return (_SEPARATOR if count[4] is None else count[4]).join(chosen)

    def _choose(self, options: Sequence[str], depth: int) -> str:
        return self._record(options[self._index(options)], depth)

    def _record(self, option: str, depth: int) -> str:
        """Return the expansion of an option, and add it to the choices before those within it."""
        index = len(self.choices)
        if index >= MAX_CHOICES:
            raise JobError(f"the prompt has more than {MAX_CHOICES:,} choices", "use fewer wildcards in wildcards")
        self.choices.append("")
        self.choices[index] = self.expand(_WEIGHT.sub("", option, count=1).strip(), depth + 1)
        return self.choices[index]

    def _index(self, options: Sequence[str]) -> int:
        """Return the index of a random option; an option without a weight has the weight 1."""
        weights = [float(match[1]) if (match := _WEIGHT.match(each)) else 1.0 for each in options]
        if not sum(weights):
            raise JobError("all weights of a variant are 0", "give one of them a weight above 0")
        remaining = self._random.random() * sum(weights)
        for index, weight in enumerate(weights):
            remaining -= weight
            if remaining < 0:
                return index
        return max(index for index, weight in enumerate(weights) if weight)

    def _below(self, limit: int) -> int:
        return int(self._random.random() * limit)

    def _values(self, name: str) -> Sequence[str]:
        """Return the values of a wildcard, or of all that match a name with *. Raises JobError if there are none."""
        if "*" in name:
            values = [
                value
                for each in sorted(self._wildcards)
                if fnmatchcase(each, name)
                for value in self._wildcards[each]
            ]
        else:
            values = list(self._wildcards.get(name, ()))
        if values:
            return values
        if not self._wildcards:
            hint = f"pass --wildcards DIR with its values in {name}.txt, one per line"
        elif name in self._wildcards:
            hint = f"write its values into {name}.txt, one per line"
        else:
            hint = f"the wildcards are {', '.join(sorted(self._wildcards)[:10])}"
        raise JobError(f"no values for the wildcard __{name}__", hint)


def _closing_brace(text: str, start: int) -> int:
    depth, position = 1, start
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1
        depth += (char == "{") - (char == "}")
        if not depth:
            return position
        position += 1
    raise JobError(f"a brace is not closed in {quoted(text)}", "close it, or write \\{ for a brace")


def _split_options(body: str) -> list[str]:
    """Split at the bars that are not within inner braces."""
    options, depth, start, position = [], 0, 0, 0
    while position < len(body):
        char = body[position]
        if char == "\\":
            position += 1
        depth += (char == "{") - (char == "}")
        if char == "|" and not depth:
            options.append(body[start:position])
            start = position + 1
        position += 1
    return [*options, body[start:]]


def _bounds(count: re.Match[str], options: int) -> tuple[int, int]:
    """Return how many options are chosen, at least and at most, as `2$$`, `1-2$$`, `-2$$` or `1-$$` say."""
    low, dash, high = count[1], count[2], count[3]
    if not dash:
        number = min(int(low or 1), options)
        return number, number
    first = min(int(low or 1), options)
    return first, max(first, min(int(high or options), options))
