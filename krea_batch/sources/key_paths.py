"""Finds values inside nested objects by paths such as `params.seed` or `images.0.prompt`.

A key that itself contains the dot takes precedence over a path: `{"params.seed": 1}` has a key of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Steps = tuple[str | int, ...]

WRAPPER_KEYS = ("prompts", "data", "items", "jobs", "rows", "records", "examples", "images", "requests", "results")
"""Chosen: names that programs give to a list of records. Other keys are ignored only beside one of these."""


def steps_to(value: object, path: str) -> Steps | None:
    """Return the keys and indexes that lead to a path, or None if there is no such value."""
    if isinstance(value, list):
        head, dot, tail = path.partition(".")
        if not (head.isascii() and head.isdecimal()) or len(head) > 9 or int(head) >= len(value):
            return None
        steps = steps_to(value[int(head)], tail) if dot else ()
        return None if steps is None else (int(head), *steps)
    if not isinstance(value, dict):
        return None
    if path in value:
        return (path,)
    end = path.rfind(".")
    while end > 0:
        head, tail = path[:end], path[end + 1 :]
        steps = steps_to(value[head], tail) if head in value else None
        if steps is not None:
            return (head, *steps)
        end = path.rfind(".", 0, end)
    return None


def value_at(value: Any, steps: Steps) -> Any:
    """Return the value at the end of the steps."""
    for step in steps:
        value = value[step]
    return value


def without(value: dict[str, Any], steps: Sequence[str | int]) -> dict[str, Any]:
    """Return a copy of an object without the value at the end of the steps, and without objects that are then empty.

    Lists stay as they are, so that the indexes of other paths stay valid.
    """
    key, *rest = steps
    copy = dict(value)
    inner = copy.get(str(key))
    if rest and isinstance(inner, dict):
        copy[str(key)] = without(inner, rest)
    if not rest or copy.get(str(key)) == {}:
        copy.pop(str(key), None)
    return copy


def paths_in(value: object, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all values that are not objects, the outermost first."""
    if not isinstance(value, dict):
        return
    for key, child in value.items():
        if not isinstance(child, dict) or not child:
            yield prefix + key
    for key, child in value.items():
        yield from paths_in(child, f"{prefix}{key}.")


def wrapper_path(value: object) -> tuple[str, ...] | None:
    """Return the keys that lead to the list that an object wraps, or None.

    The list must be the only list in its object. It must also be the only value, or have a usual name for a list of
    records. The object may itself be the only value of another object.
    """
    if not isinstance(value, dict):
        return None
    if len(value) == 1 and isinstance(next(iter(value.values())), dict):
        (key, inner), *_ = value.items()
        path = wrapper_path(inner)
        return None if path is None else (key, *path)
    lists = [key for key, each in value.items() if isinstance(each, list)]
    is_wrapper = len(lists) == 1 and (len(value) == 1 or (lists[0] in WRAPPER_KEYS and "prompt" not in value))
    return (lists[0],) if is_wrapper else None
