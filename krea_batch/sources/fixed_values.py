"""Values of fields that apply to every row, as given on the command line: `aspect_ratio=16:9`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from krea_batch.errors import JobError
from krea_batch.jobs import Job
from krea_batch.sources import field_errors
from krea_batch.sources.field_errors import closest_match
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.sweep import SWEEPABLE
from krea_batch.sources.values import parse_json

_TEXT_FIELDS = ("aspect_ratio", "creativity")
_INTEGER = re.compile(r"\s*[+-]?\d{1,20}\s*")


def parse_fixed_value(text: str) -> tuple[str, Any]:
    """Return field and value of a command-line value such as `seed=7`. Raises JobError if it is not valid."""
    name, equals, value_text = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise JobError(f"the value is {quoted(text)}", "write a field and its value: aspect_ratio=16:9")
    if name not in SWEEPABLE:
        suggestion = closest_match(name, SWEEPABLE)
        hint = f'did you mean "{suggestion}"?' if suggestion else f"the fields are {', '.join(SWEEPABLE)}"
        raise JobError(f"{quoted(name)} cannot be set for all rows", hint)
    value: Any = value_text
    if name == "seed" and _INTEGER.fullmatch(value_text):
        value = int(value_text)
    elif name not in (*_TEXT_FIELDS, "seed"):
        value = parse_json(name, value_text)
    fields = {"prompt": "a prompt", name: value}
    try:
        msgspec.convert(fields, Job)
    except (msgspec.ValidationError, RecursionError) as error:
        diagnosis = field_errors.diagnose(fields, keep_extra=False)
        raise diagnosis or JobError(f"not a valid value ({error})", "see `krea-batch schema`") from None
    return name, value


def with_fixed_values(fields: dict[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row with those that apply to every row. Raises JobError if the row has another value."""
    for name, value in fixed.items():
        given = fields.get(name)
        if given is not None and given != value:
            raise JobError(
                f"{quoted(name)} is {quoted(given)} in the row and {quoted(value)} for all rows", "keep one of them"
            )
    return {**fields, **fixed}
