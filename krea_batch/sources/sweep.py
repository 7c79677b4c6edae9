"""Expands a sweep: every combination of its values, each with a suffix for the id.

The ids made here must not change from run to run, since a job with a new id is submitted and charged again. So the
order of the axes does not depend on the order in which they are given, and adding a value does not change other ids.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from krea_batch.errors import JobError
from krea_batch.jobs import FIELDS
from krea_batch.sources.field_errors import closest_match
from krea_batch.sources.json_errors import quoted

SWEEPABLE = tuple(name for name in FIELDS if name not in ("prompt", "id", "image_name", "metadata"))
REPEAT = "repeat"
MAX_JOBS_PER_ROW = 10_000  # chosen: more jobs for one prompt are probably a mistyped range
MAX_SLUG_CHARS = 40  # chosen: three slugs of this length fit into an id

_SEEDS_FROM_TO = re.compile(r"(-?\d+)\.\.(-?\d+)")
_INVALID_IN_SLUGS = re.compile(r"[^\w.,+-]+|\.{2,}")
_SWEEP_EXAMPLE = 'write "sweep": {"creativity": ["raw", "high"], "seed": [1, 2, 3]}'


class Axis(msgspec.Struct, frozen=True):
    """A name and its values, each with its slug for the id."""

    name: str
    values: tuple[tuple[str, Any], ...]


class Combination(msgspec.Struct, frozen=True):
    """One combination: the suffix of the id, and the values by name."""

    id_suffix: str
    values: dict[str, Any]


def make_axis(name: str, values: object) -> Axis:
    """Make an axis from a list of values, an object that names them, or a text such as `1..4`.

    Raises JobError if it is none of these, or two values have the same slug.
    """
    if name == REPEAT:
        return repeat_axis(values)
    if name == "seed" and isinstance(values, str):
        values = parse_seeds(values)
    if isinstance(values, Mapping):
        slugs_and_values = [(_slug(name, label), value) for label, value in values.items()]
    elif isinstance(values, Sequence) and not isinstance(values, str):
        slugs_and_values = [(_slug(name, value), value) for value in values]
    else:
        raise JobError(f"the sweep of {quoted(name)} is {quoted(values)}", _SWEEP_EXAMPLE)
    if not slugs_and_values:
        raise JobError(f"the sweep of {quoted(name)} has no values", "give at least one, or remove it")
    for n, (slug, value) in enumerate(slugs_and_values):
        for other_slug, other in slugs_and_values[:n]:
            if slug == other_slug and other == value:
                raise JobError(f"{quoted(value)} occurs twice in the sweep of {quoted(name)}", "keep one of them")
            if slug == other_slug:
                problem = (
                    f"{quoted(other)} and {quoted(value)} in the sweep of {quoted(name)} would be {slug} in an id"
                )
                raise JobError(problem, 'name them: {"first": …, "second": …}')
    return Axis(name, tuple(slugs_and_values))


def repeat_axis(count: object) -> Axis:
    """Return the axis for this number of images of one request."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_JOBS_PER_ROW:
        raise JobError(f"repeat is {quoted(count)}", f"write a whole number from 1 to {MAX_JOBS_PER_ROW:,}")
    return Axis(REPEAT, tuple((str(n), n) for n in range(1, count + 1)))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a text such as `1..4` or `7,11,20..22`; ranges include both ends. Raises JobError."""
    seeds: list[int] = []
    for part in text.split(","):
        item = part.strip()
        if match := _SEEDS_FROM_TO.fullmatch(item):
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise JobError(f"the seeds {item} end before they begin", f"write {last}..{first}")
            if last - first >= MAX_JOBS_PER_ROW:
                raise JobError(
                    f"the seeds {item} are {last - first + 1:,} in all",
                    f"use at most {MAX_JOBS_PER_ROW:,}, such as 1..4",
                )
            seeds.extend(range(first, last + 1))
        elif re.fullmatch(r"-?\d{1,20}", item):
            seeds.append(int(item))
        else:
            raise JobError(f"the seeds are {quoted(text)}", "write 1..4, or 7,11,12")
    return seeds


def parse_axis(text: str) -> Axis:
    """Return the axis of a command-line value such as `creativity=raw,high`. Raises JobError."""
    name, equals, values = text.partition("=")
    name = name.strip()
    if not name or not equals or not values:
        raise JobError(f"the sweep is {quoted(text)}", "write a field and its values: creativity=raw,high")
    if name == "seed":
        return make_axis(name, parse_seeds(values))
    if name == REPEAT:
        return repeat_axis(int(values) if values.isascii() and values.isdigit() else values)
    try:
        (texts,) = csv.reader([values], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise JobError(f"the sweep is {quoted(text)} ({error})", 'write place="Rome, Italy",Bonn') from None
    return make_axis(name, [value.strip() for value in texts])


def check_axis_names(axes: Iterable[Axis], template_names: Iterable[str] = ()) -> None:
    """Raise JobError for an axis that is neither an API field nor one of `template_names`."""
    for each in axes:
        if each.name not in (*SWEEPABLE, REPEAT) and each.name not in template_names:
            suggestion = closest_match(each.name, SWEEPABLE)
            hint = f'did you mean "{suggestion}"?' if suggestion else f"the fields are {', '.join(SWEEPABLE)}"
            raise JobError(f"{quoted(each.name)} cannot be swept", hint)


def count_combinations(axes: Iterable[Axis]) -> int:
    """Return the number of combinations."""
    return math.prod(len(each.values) for each in axes)


def combinations(axes: Iterable[Axis]) -> Iterator[Combination]:
    """Yield every combination, the last axis varying fastest: template names first, then fields, repeats last.

    Raises JobError if a name occurs twice or there are more than MAX_JOBS_PER_ROW combinations.
    """
    ordered = sorted(axes, key=_sort_key)
    for one, other in itertools.pairwise(ordered):
        if one.name == other.name:
            raise JobError(f"{quoted(one.name)} is swept twice", "give all its values in one sweep")
    if (count := count_combinations(ordered)) > MAX_JOBS_PER_ROW:
        raise JobError(f"the sweep makes {count:,} jobs from one row", f"use at most {MAX_JOBS_PER_ROW:,}")
    for chosen in itertools.product(*(each.values for each in ordered)):
        pairs = list(zip(ordered, chosen, strict=True))
        suffix = "".join(f"-{each.name}={slug}" for each, (slug, _) in pairs)
        yield Combination(suffix, {each.name: value for each, (_, value) in pairs})


def _sort_key(each: Axis) -> tuple[int, str]:
    if each.name == REPEAT:
        return len(FIELDS), ""
    return (FIELDS.index(each.name), "") if each.name in FIELDS else (-1, each.name)


def _slug(name: str, value: object) -> str:
    if isinstance(value, bool | int | float):
        return quoted(value)
    if not isinstance(value, str):
        raise JobError(
            f"a value in the sweep of {quoted(name)} is {quoted(value)}",
            f'name its values: "{name}": {{"first": …, "second": …}}',
        )
    slug = _INVALID_IN_SLUGS.sub("_", re.sub(r"(?<=\d):(?=\d)", "x", value)).strip("_.")
    if not slug:
        raise JobError(f"{quoted(value)} in the sweep of {quoted(name)} cannot be written in an id", "give it a name")
    if len(slug) <= MAX_SLUG_CHARS:
        return slug
    return f"{slug[:MAX_SLUG_CHARS]}~{hashlib.sha256(value.encode()).hexdigest()[:6]}"
