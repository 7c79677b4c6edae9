"""Validate request bodies against the API document. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

VALID_ASPECT_RATIOS = ("1:1", "4:3", "3:2", "16:9", "2.35:1", "4:5", "2:3", "9:16")
CREATIVITY = ("raw", "low", "medium", "high")
_LOOPBACK_URL = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])[:/]")
_UUID_FORMAT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def validate_body(body: Any, *, lenient: bool) -> str | None:
    """Return the first problem of a body as a sentence, or None if the API accepts the body."""
    if not isinstance(body, dict):
        return "the body has to be a JSON object"
    if not isinstance(body.get("prompt"), str) or not body["prompt"].strip():
        return "prompt is required and has to be a string"
    for field, value in body.items():
        check = _FIELDS.get(field)
        if check is None:
            if not lenient:
                return f"unknown parameter {field!r}"
        elif problem := check(value):
            return f"{field} {problem}"
    return None


def _one_of(*choices: str) -> Callable[[Any], str | None]:
    return lambda value: (
        None if isinstance(value, str) and value in choices else f"has to be one of {', '.join(choices)}"
    )


def _integer(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) else "has to be an integer"


def _list_of(
    max_items: int, key: str, is_valid: Callable[[str], bool], description: str
) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if not isinstance(value, list) or len(value) > max_items:
            return f"has to be an array of at most {max_items}"
        for entry in value:
            if not isinstance(entry, dict) or set(entry) - {key, "strength"}:
                return f"entries have {key} and strength"
            if not isinstance(entry.get(key), str) or not is_valid(entry[key]):
                return f"{key} has to be {description}"
            strength = entry.get("strength", 1.0)
            if isinstance(strength, bool) or not isinstance(strength, int | float):
                return "strength has to be a number"
        return None

    return check


def _is_https(url: str) -> bool:
    """Return whether the URL is one of HTTPS. An object store of a test on this machine may have HTTP."""
    return url.startswith("https://") or _LOOPBACK_URL.match(url) is not None


_FIELDS: dict[str, Callable[[Any], str | None]] = {
    "prompt": lambda value: None,
    "aspect_ratio": _one_of(*VALID_ASPECT_RATIOS),
    "creativity": _one_of(*CREATIVITY),
    "seed": _integer,
    "image_style_references": _list_of(10, "image_url", _is_https, "an HTTPS URL"),
    "styles": _list_of(10, "id", bool, "a style identifier"),
    "moodboards": _list_of(1, "id", lambda text: _UUID_FORMAT.fullmatch(text) is not None, "a UUID"),
}
