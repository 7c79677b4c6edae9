"""Explains why the fields of an object are not a valid job.

What is valid is defined only by the types in `jobs`. Each field is checked against them on its own to find the
invalid one, and only then is a message made.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import msgspec

from krea_batch.errors import JobError
from krea_batch.jobs import (
    ASPECT_RATIOS,
    CREATIVITIES,
    FIELDS,
    MAX_ID_BYTES,
    MAX_IMAGE_NAME_BYTES,
    MAX_MOODBOARDS,
    MAX_REFERENCES,
    MAX_STYLES,
    ImageStyleReference,
    Moodboard,
    Style,
    as_url_entry,
    convert_job,
    without_image_extension,
)
from krea_batch.rules.image_names import safe_path
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.key_paths import paths_in, steps_to, value_at, wrapper_path
from krea_batch.sources.values import JSON_EXAMPLES, is_unusable

SIMILARITY = 0.7  # chosen: matches a swapped, missing or doubled letter, but not "tag" or "include"
_CACHED_NAMES = 1024  # chosen: the names in a file repeat
_MAX_SUGGESTED_CHARS = 80  # chosen: a message that fits into a line or two

_SYNONYMS = {"text": "prompt", "caption": "prompt", "description": "prompt", "ratio": "aspect_ratio"}

_LIST_FIELDS: dict[str, tuple[type[msgspec.Struct], int]] = {
    "image_style_references": (ImageStyleReference, MAX_REFERENCES),
    "styles": (Style, MAX_STYLES),
    "moodboards": (Moodboard, MAX_MOODBOARDS),
}
_ENTRY_EXAMPLES = {name: JSON_EXAMPLES[name][1:-1] for name in _LIST_FIELDS}
_ENTRY_EXAMPLES["image_style_references"] += ', or {"image_path": "…"} for a local file'
_HINTS = {
    "prompt": "write in quotes what the image shows",
    "aspect_ratio": f"use one of {', '.join(ASPECT_RATIOS)}",
    "creativity": f"use one of {', '.join(CREATIVITIES)}",
    "seed": "use an integer of at most 64 bits, or leave it out",
    "id": f"an id is used as a file name: no / \\ .. or control characters, at most {MAX_ID_BYTES} bytes",
    "image_name": "write the path of the image below images/, such as cats/1: no .. or control characters, at most"
    f" {MAX_ID_BYTES} bytes in a part and {MAX_IMAGE_NAME_BYTES} in all",
    "metadata": f"write an object: {JSON_EXAMPLES['metadata']}",
    "image_url": "use a complete https:// URL, or image_path for a local file",
    "image_path": "use the path of an image, relative to the job file",
    "strength": "use a number like 0.5 or -1",
}
_EXPONENT = re.compile(r"\s*[+-]?\d+([.,]\d+)?[eE][+-]?\d+\s*")
_NO_VALUES = ("null", "none", "nan", "na", "n/a", "#n/a", "-")
_STYLE_ID = "use the style's id from Krea's catalogue"
_MOODBOARD_ID = "use the moodboard's UUID, like 01234567-89ab-cdef-0123-456789abcdef"


@lru_cache(_CACHED_NAMES)
def closest_match(name: str, names: tuple[str, ...] = FIELDS) -> str | None:
    """Return the one of `names` that was probably meant, or None."""
    normalized = (
        "".join("_" + char.lower() if char.isupper() else char for char in name).strip("_ ").replace("-", "_")
    )
    for spelling in (normalized.replace(" ", "_"), name.lower()):
        close = get_close_matches(spelling, names, n=1, cutoff=SIMILARITY)
        if close:
            return close[0]
    synonym = _SYNONYMS.get(normalized)
    return synonym if synonym in names else None


def diagnose(fields: dict[str, Any], *, keep_extra: bool = False) -> JobError | None:
    """Return what is wrong with the fields of a job, or None if they are valid."""
    return (
        _nested_prompt(fields)
        or (_metadata_conflict(fields) if keep_extra else _unknown_field(fields, FIELDS, "a job"))
        or _missing_prompt(fields)
        or _first(_field_error(name, fields[name]) for name in FIELDS if name in fields)
    )


def _first(errors: Iterable[JobError | None]) -> JobError | None:
    return next((error for error in errors if error), None)


def _unknown_field(fields: dict[str, Any], names: tuple[str, ...], owner: str) -> JobError | None:
    for name in fields:
        if name not in names:
            suggestion = closest_match(name, names)
            hint = f'did you mean "{suggestion}"?' if suggestion else f"the fields are {', '.join(names)}"
            if names == FIELDS and not suggestion:
                hint += "; --keep-extra puts others into metadata"
            return JobError(f"{quoted(name)} is not a field of {owner}", hint)
    return None


def _metadata_conflict(fields: dict[str, Any]) -> JobError | None:
    metadata = fields.get("metadata")
    for name in fields:
        if name not in FIELDS and isinstance(metadata, dict) and name in metadata:
            return JobError(f"{quoted(name)} is given twice, on the line and in metadata", "keep one")
    return None


def _nested_prompt(fields: dict[str, Any]) -> JobError | None:
    """Explain a row whose prompts are nested in it."""
    if "prompt" in fields:
        return None
    if (keys := wrapper_path(fields)) and keys[0] not in FIELDS and _has_prompts(value_at(fields, keys)):
        return JobError(
            f"the line is an object around the list {quoted('.'.join(keys))}, not a job",
            "read it with --input-format json",
        )
    path = next((each for each in paths_in(fields) if each.endswith(".prompt")), None)
    if path is None or not isinstance(value_at(fields, steps_to(fields, path) or ()), str):
        return None
    id_option = " --id-column custom_id" if "custom_id" in fields else ""
    return JobError(
        f'missing "prompt", but the job has {quoted(path)}',
        f"choose it with --prompt-column {shlex.quote(path)}{id_option} --keep-extra",
    )


def _has_prompts(entries: list[Any]) -> bool:
    return bool(entries) and (
        isinstance(entries[0], str) or (isinstance(entries[0], dict) and "prompt" in entries[0])
    )


def _missing_prompt(fields: dict[str, Any]) -> JobError | None:
    if "prompt" in fields:
        return None
    return JobError('missing "prompt"', 'write {"prompt": "what the image shows"}')


def _field_error(name: str, value: object) -> JobError | None:
    try:
        convert_job({"prompt": "x", name: value})
    except msgspec.ValidationError:
        return _list_error(name, value) if name in _LIST_FIELDS else _value_error(name, value)
    return unusable_prompt(value) if name == "prompt" and isinstance(value, str) else None


def unusable_prompt(prompt: str) -> JobError | None:
    """Return why a prompt is probably a mistake, or None."""
    if "\0" in prompt:
        return JobError('"prompt" contains a NUL character', "remove it, or name the encoding with --encoding")
    return JobError('"prompt" is empty', _HINTS["prompt"]) if prompt.isspace() or is_unusable(prompt) else None


def _value_error(name: str, value: object) -> JobError | None:
    if name == "prompt" and isinstance(value, str):
        return unusable_prompt(value)
    if name == "prompt" and isinstance(value, list | dict):
        return JobError(f'"prompt" is {quoted(value)}', 'write one job for each prompt: {"prompt": "…"}')
    if name == "id" and not isinstance(value, str):
        return JobError(f'"id" is {quoted(value)}', "write it in quotes")
    if (
        name == "id"
        and isinstance(value, str)
        and (size := len(value.encode("utf-8", "surrogatepass"))) > MAX_ID_BYTES
    ):
        return JobError(f'"id" is {size} bytes long', f"use at most {MAX_ID_BYTES}, which fit into a file name")
    return JobError(f'"{name}" is {quoted(value)}', _suggestion(name, value) or _HINTS[name])


def _suggestion(name: str, value: object) -> str | None:
    """Return what to write instead, if the value suggests it."""
    if name == "seed" and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return "write all its digits; in a spreadsheet, format the column as a number without decimals"
    if name == "seed" and isinstance(value, str) and value.strip().lower() in _NO_VALUES:
        return "leave it empty, or leave it out"
    if name in ("aspect_ratio", "creativity") and isinstance(value, str):
        allowed = ASPECT_RATIOS if name == "aspect_ratio" else CREATIVITIES
        normalized = value.strip().lower().replace("x", ":").replace("/", ":")
        return f'write "{normalized}"' if normalized in allowed else None
    if name == "image_name" and isinstance(value, str):
        return _suggested_path(value)
    return None


def _suggested_path(name: str) -> str | None:
    """Return what to write instead of a path of an image that has other slashes, or a folder named like a file."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    is_clear = (
        parts and ".." not in parts and without_image_extension(parts[-1]) and len(name) <= _MAX_SUGGESTED_CHARS
    )
    return f"write {quoted(safe_path('/'.join(parts)))}" if is_clear else None


def _list_error(name: str, value: object) -> JobError:
    entry_type, max_entries = _LIST_FIELDS[name]
    if not isinstance(value, list):
        return JobError(f'"{name}" is {quoted(value)}', f'write a list: "{name}": {JSON_EXAMPLES[name]}')
    if len(value) > max_entries:
        return JobError(f'"{name}" has {len(value)} entries', f"use at most {max_entries}")
    error = _first(
        _entry_error(f'entry {position} of "{name}"', entry, entry_type, _ENTRY_EXAMPLES[name])
        for position, entry in enumerate(value, 1)
    )
    return error or JobError(f'"{name}" is {quoted(value)}', f"write {JSON_EXAMPLES[name]}")


def _entry_error(location: str, entry: object, entry_type: type[msgspec.Struct], example: str) -> JobError | None:
    if entry_type is ImageStyleReference:
        entry = as_url_entry(entry)
    try:
        msgspec.convert(entry, entry_type)
    except msgspec.ValidationError:
        pass
    else:
        return None
    if not isinstance(entry, dict):
        return JobError(f"{location} is {quoted(entry)}", f"write {example}")
    key = entry_type.__struct_fields__[0]
    if entry_type is ImageStyleReference and entry.get("image_path", "") != "":
        if entry.get("image_url", "") != "":
            return JobError(f'{location} has both "image_url" and "image_path"', "keep one of them")
        key = "image_path"
    if unknown := _unknown_field(entry, entry_type.__struct_fields__, location):
        return unknown
    if key not in entry:
        return JobError(f'{location} has no "{key}"', f"write {example}")
    strength = entry.get("strength", 1.0)
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        return JobError(f'"strength" in {location} is {quoted(strength)}', _HINTS["strength"])
    hint = {ImageStyleReference: _HINTS.get(key, ""), Style: _STYLE_ID}.get(entry_type, _MOODBOARD_ID)
    return JobError(f'"{key}" in {location} is {quoted(entry[key])}', hint)
