"""Reads a YAML document of jobs, in the shapes of JSON documents, with PyYAML, an optional dependency.

Values are read by the core schema of YAML 1.2 (section 10.3), not by that of YAML 1.1, in which PyYAML would read
`16:9` as the number 969, `no` as false, and the id 007 as 7. But a number with an exponent has a point and a sign, as
in YAML 1.1, because PyYAML writes the texts 1e3 and 1.0e3 without quotes. Keys are always text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats.encoding import OnNotice
from krea_batch.sources.formats.json_document import Rows, read_text, rows_of_value
from krea_batch.sources.formats.line_file import LineFile
from krea_batch.sources.json_errors import MAX_DEPTH, TOO_DEEP, quoted
from krea_batch.sources.options import InputOptions

MAX_YAML_BYTES = 1 << 25  # chosen: a fifth of a million prompts; YAML is for lists that people write

_DEPTH_PROBLEM = "exceeded maximum nesting depth"  # of libyaml in PyYAML 6.0.4, which stops before this reader does
_QUOTES_HINT = 'put a prompt in quotes if it contains ": " or " #", or begins with one of { [ * & ! | > @ % `'

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,29})")  # longer ones stay text, which no field takes for a number
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]*([eE][-+][0-9]+)?")


def rows(file: LineFile, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Yield the jobs of the document, or one job for each of several documents, numbered from 1."""
    yaml = _import_yaml(file.name)
    text = read_text(file, MAX_YAML_BYTES)
    reader = _Reader(yaml, file.name, text)
    try:
        documents = list(reader.documents())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem, hint = _explain(error.problem, text, line)
        raise InputError(f"{file.name}:{line}: {problem}", hint) from None
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file.name}: cannot be read as YAML ({reason})", "write JSON instead") from None
    if reader.comment_lines:
        first, count = reader.comment_lines[0], len(reader.comment_lines)
        on_notice(f"comments after values are left out: {count:,}, the first in line {first}")
    if documents:
        value = documents[0] if len(documents) == 1 else documents
        for number, key, row in rows_of_value(value, file.name, options, on_notice):
            yield number, key, _without_split_prompt(row) if isinstance(row, dict) and not key else row


def _explain(problem: str, text: str, line: int) -> tuple[str, str]:
    """Return problem and hint for what PyYAML says about a line."""
    if problem == _DEPTH_PROBLEM:
        return TOO_DEEP
    has_tab = "\t" in text.split("\n")[line - 1] if line <= text.count("\n") + 1 else False
    return f"invalid YAML ({problem})", "use spaces instead of tabs" if has_tab else _QUOTES_HINT


def _without_split_prompt(row: dict[str, Any]) -> dict[str, Any] | JobError:
    """Return the row, or an error for a prompt that contains ": ", at which YAML splits it."""
    (name, value), *others = row.items() or [("", None)]
    if others or " " not in name:
        return row
    return JobError(f"{quoted(f'{name}: {value}')} is a key and its value", "put the prompt in quotes")


class _Reader:
    """Makes values from the events of a parser. `comment_lines`: where a comment follows a value without quotes.

    PyYAML's own loaders build values recursively in C, so a deeply nested file would crash the process.
    """

    def __init__(self, yaml: Any, name: str, text: str) -> None:
        self.comment_lines: list[int] = []
        self._name = name
        self._lines = text.split("\n")
        self._yaml = yaml
        self._events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def documents(self) -> Iterator[Any]:
        """Yield the value of each document. Raises YAMLError, or InputError for what JSON does not have."""
        for event in self._events:
            if isinstance(event, self._yaml.DocumentStartEvent):
                yield self._value(next(self._events), 0)

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, self._yaml.AliasEvent):
            raise self._error(event, f"the reference *{event.anchor} is not read", "write out what it refers to")
        if event.tag:
            raise self._error(event, f"the tag {event.tag} is not read", "leave it out")
        if isinstance(event, self._yaml.ScalarEvent):
            return self._scalar(event)
        if depth >= MAX_DEPTH:
            raise self._error(event, *TOO_DEEP)
        if isinstance(event, self._yaml.SequenceStartEvent):
            return [self._value(each, depth + 1) for each in self._until(self._yaml.SequenceEndEvent)]
        found: dict[str, Any] = {}
        for key in self._until(self._yaml.MappingEndEvent):
            if not isinstance(key, self._yaml.ScalarEvent):
                raise self._error(key, "a key that is a list or mapping is not read", "use text as the key")
            if key.value in found:
                raise self._error(key, f"duplicate key {quoted(key.value)}", "keep one")
            found[key.value] = self._value(next(self._events), depth + 1)
        return found

    def _until(self, end: Any) -> Iterator[Any]:
        while not isinstance(event := next(self._events), end):
            yield event

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if not event.implicit[0]:  # in quotes, or a block
            return text
        line = self._lines[event.end_mark.line] if event.end_mark.line < len(self._lines) else ""
        if line[event.end_mark.column :].lstrip().startswith("#"):
            self.comment_lines.append(event.end_mark.line + 1)
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def _error(self, event: Any, problem: str, hint: str) -> InputError:
        return InputError(f"{self._name}:{event.start_mark.line + 1}: {problem}", hint)


def _import_yaml(name: str) -> Any:
    try:
        return import_module("yaml")
    except ImportError:
        raise InputError(
            f"{name}: reading YAML requires PyYAML", "pip install 'krea-batch[yaml]', or write JSON"
        ) from None
