"""Prompt templates: a prompt with column names in braces.

Values are inserted unchanged, in one pass, so braces in a value have no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from krea_batch.errors import JobError
from krea_batch.sources.json_errors import quoted


class Template:
    """A prompt such as `{animal} at {place}`; {{ and }} are braces. Raises JobError if it is not valid."""

    def __init__(self, text: str) -> None:
        hint = "write a column's name in braces, {animal}, and {{ }} for braces"
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise JobError(f"invalid template {quoted(text)} ({error})", hint) from None
        if any(name == "" or conversion or spec for _, name, spec, conversion in parts):
            raise JobError(f"the template {quoted(text)} has a brace without a name", hint)
        self._parts = [(before, name) for before, name, _, _ in parts]
        self.names = tuple(dict.fromkeys(name for _, name in self._parts if name))
        if not self.names:
            raise JobError(f"the template {quoted(text)} names no column", hint)

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the prompt with these values. Raises JobError if one is missing, or is neither text nor number."""
        return "".join(before + (self._value(values, name) if name else "") for before, name in self._parts)

    def _value(self, values: Mapping[str, Any], name: str) -> str:
        if name not in values:
            hint = f"the row has {', '.join(map(quoted, values))}" if values else "add it to the row"
            raise JobError(f"no {quoted(name)} for the template", hint)
        value = values[name]
        if isinstance(value, str):
            return value
        if value is None or isinstance(value, list | dict):
            raise JobError(f"{quoted(name)} is {quoted(value)}", "use text or a number")
        return quoted(value)
