"""A JSON document comes in; the objects of its jobs go out. And keys of another name become fields.

Newcomers: a document is read whole, unlike JSONL; JSON Lines are the format for millions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES, LineFile
from krea_batch.sources.json_errors import parse_document, parse_object, quoted
from krea_batch.sources.options import InputOptions

MAX_DOCUMENT_BYTES = 1 << 28  # chosen: some two million prompts; as objects they take ten times the memory
_EXPECTED_SHAPES = 'write [{"prompt": "…"}, …], ["a prompt", …] or {"an id": "a prompt", …}'

Rows = Iterator[tuple[int, dict[str, Any] | JobError]]


def rows(file: LineFile) -> Rows:
    """The jobs of an array of objects or of prompts, or of an object whose keys are ids, numbered from 1."""
    blocks, size_bytes = [], 0
    for block in file.text():
        blocks.append(block)
        size_bytes += len(block)
        if size_bytes > MAX_DOCUMENT_BYTES:
            problem = f"{file.name}: it is longer than {MAX_DOCUMENT_BYTES >> 20} MiB"
            raise InputError(problem, "write one object a line (JSONL), which is read piece by piece")
    value = parse_document(b"".join(blocks), file.name)
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        value = [value]
    if isinstance(value, list):
        entries = [("", each) for each in value]
    elif isinstance(value, dict):
        entries = list(value.items())
    else:
        raise InputError(f"{file.name}: it is {quoted(value)}, not an array or an object", _EXPECTED_SHAPES)
    for number, (job_id, each) in enumerate(entries, 1):
        yield number, _row(job_id, each)


def _row(job_id: str, value: object) -> dict[str, Any] | JobError:
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        return JobError(f"the entry is {quoted(value)}, neither an object nor a prompt", _EXPECTED_SHAPES)
    if job_id and "id" in value:
        return JobError(f"the entry has the key {quoted(job_id)} and an id of its own", "keep one of them")
    return {"id": job_id, **value} if job_id else value


def rename_keys(source: Iterable[tuple[int, bytes | dict[str, Any] | JobError]], options: InputOptions) -> Rows:
    """The rows with the keys that the user named as the fields that they stand for."""
    field_by_column = options.field_by_column()
    ignored_fields = {field for field, column in options.columns.items() if not column}
    for number, row in source:
        if isinstance(row, bytes):
            try:
                row = _parse_line(row)  # noqa: PLW2901 - the same row, read
            except JobError as error:
                row = error  # noqa: PLW2901
        yield number, row if isinstance(row, JobError) or not (field_by_column or ignored_fields) else _rename_fields(row, field_by_column, ignored_fields)


def _parse_line(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise JobError(
            f"the line is longer than {MAX_LINE_BYTES >> 20} MiB", "write one job a line, and less metadata"
        )
    return parse_object(line)


def _rename_fields(row: dict[str, Any], field_by_column: dict[str, Any], ignored_fields: set[str]) -> dict[str, Any] | JobError:
    fields: dict[str, Any] = {}
    for key, value in row.items():
        name = field_by_column.get(key, key)
        if key in ignored_fields:
            continue
        if name in fields or (name != key and name in row and name not in field_by_column):
            return JobError(f"both {quoted(key)} and {quoted(name)} give the {name}", "keep one of them")
        fields[name] = str(value) if name == "id" and isinstance(value, int) else value
    return fields
