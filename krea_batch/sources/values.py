"""Converts the values of a row to the types of a job's fields, alike for every format.

A format determines how a value is written, not what it means: the same table makes the same jobs as JSONL, JSON, CSV,
TSV and Parquet. A value whose meaning is not certain is not converted, and is then reported as invalid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from krea_batch.errors import JobError
from krea_batch.jobs import ASPECT_RATIOS, FIELDS
from krea_batch.sources.json_errors import parse_value, quoted

LIST_FIELDS = ("image_style_references", "styles", "moodboards")
JSON_EXAMPLES = {
    "image_style_references": '[{"image_url": "https://…", "strength": 1.0}]',
    "styles": '[{"id": "…", "strength": 1.0}]',
    "moodboards": '[{"id": "a UUID", "strength": 0.23}]',
    "metadata": '{"key": "value"}',
    "sweep": '{"creativity": ["raw", "high"]}',
}
"""The fields whose values are lists or objects, which tables and options write as JSON."""
_OPTIONAL_KEYS = ("strength", "image_url", "image_path")
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # the Unicode Standard, section 23.2: they have no width
_BLANKS = " \x7f\u00a0" + INVISIBLE + "".join(map(chr, range(32)))  # DOS ended texts with the character 26
_WHOLE_NUMBER = re.compile(r"\s*([+-]?[0-9]{1,20})(\.0+)?\s*")
_RATIO_AS_TIME = re.compile(r"\s*(\d{1,2}):(\d{1,2})(?::00)?\s*")  # a spreadsheet makes the time 16:09:00 of 16:9
_MAX_EXACT = 2**53  # IEEE 754: from here on, not every whole number is a float, so another seed may have been meant


def is_unusable(prompt: str) -> bool:
    """Return whether a prompt has a NUL character, as in a file that is no text, or nothing that is visible."""
    return "\0" in prompt or not prompt.strip(_BLANKS)


def is_missing(value: object) -> bool:
    """Return whether a value says that nothing is given: null, NaN or an empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def convert_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the fields of a row with converted values, without optional fields that are not given.

    Converting twice changes nothing. Names that are not fields are kept with their values. Raises JobError if the
    text of a list or object is not valid JSON.
    """
    converted: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "prompt" or (name not in FIELDS and name != "sweep"):
            converted[name] = value
        elif not is_missing(value) and not (name != "id" and isinstance(value, str) and value.isspace()):
            converted[name] = convert(name, value)
    return converted


def convert(field: str, value: Any) -> Any:
    """Return a value as its field needs it, or unchanged if that is not certain. Raises JobError for invalid JSON."""
    if field == "seed":
        number = _whole_number(value)
        return value if number is None else number
    if field == "id":
        number = None if isinstance(value, str) else _whole_number(value)
        return value if number is None else str(number)
    if field == "aspect_ratio" and isinstance(value, str) and (match := _RATIO_AS_TIME.fullmatch(value)):
        ratio = f"{int(match[1])}:{int(match[2])}"
        return ratio if ratio in ASPECT_RATIOS else value
    if field not in JSON_EXAMPLES:
        return value
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = parse_json(field, value)
    if field == "image_style_references" and isinstance(value, str) and value.lstrip()[:1] not in ("[", "{"):
        value = [{"image_url" if "://" in value else "image_path": value.strip()}]
    if field in LIST_FIELDS and isinstance(value, list):
        return [_without_missing(entry) for entry in value]
    return value


def parse_json(field: str, text: str) -> Any:
    """Return the value of a field that is written as JSON in a cell or an option. Raises JobError."""
    try:
        return parse_value(text)
    except JobError as error:
        problem = f"{quoted(field)} is {quoted(text)} ({error.problem})"
        raise JobError(problem, f"write JSON: {JSON_EXAMPLES[field]}") from None


def _whole_number(value: object) -> int | None:
    if isinstance(value, str):
        match = _WHOLE_NUMBER.fullmatch(value)
        if not match or (match[2] and abs(int(match[1])) >= _MAX_EXACT):
            return None
        return int(match[1])
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < _MAX_EXACT:
        return int(value)
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return int(value)
    return None


def _without_missing(entry: object) -> object:
    """Return an entry of a list without optional keys that are null; Parquet gives every entry the same keys."""
    if not isinstance(entry, dict):
        return entry
    return {key: value for key, value in entry.items() if value is not None or key not in _OPTIONAL_KEYS}
