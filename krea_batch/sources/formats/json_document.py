"""Reads a JSON document of jobs, and renames keys to fields.

The document is read into memory as a whole; JSONL is the format for millions of jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats.encoding import EncodingError, decode_utf_8
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES, LineFile
from krea_batch.sources.json_errors import parse_document, parse_object, quoted
from krea_batch.sources.options import InputOptions
from krea_batch.sources.template import Template

MAX_DOCUMENT_BYTES = 1 << 28  # chosen: about two million prompts; parsed, they take ten times the memory
_EXPECTED_SHAPES = 'write [{"prompt": "…"}, …], ["a prompt", …] or {"an id": "a prompt", …}'

Rows = Iterator[tuple[int, dict[str, Any] | JobError]]


def rows(file: LineFile) -> Rows:
    """Yield the jobs of an array of objects or prompts, or of an object whose keys are ids, numbered from 1."""
    yield from rows_of_value(parse_document(read_document(file, MAX_DOCUMENT_BYTES), file.name), file.name)


def read_document(file: LineFile, max_bytes: int) -> bytes:
    """Return the text of a file as a whole. Raises InputError if it is longer."""
    blocks, size_bytes = [], 0
    for block in file.text():
        blocks.append(block)
        size_bytes += len(block)
        if size_bytes > max_bytes:
            problem = f"{file.name}: longer than {max_bytes >> 20} MiB"
            raise InputError(problem, "write one object per line (JSONL), which is not read as a whole")
    return b"".join(blocks)


def read_text(file: LineFile, max_bytes: int) -> str:
    """Return the decoded text of a file as a whole. Raises InputError if it is longer, or not UTF-8."""
    try:
        return decode_utf_8(read_document(file, max_bytes))
    except EncodingError as error:
        raise InputError(f"{file.name}: {error.problem}", error.hint) from None


def rows_of_value(value: Any, name: str) -> Rows:
    """Yield the jobs of the value of a document, numbered from 1."""
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        value = [value]
    if isinstance(value, list):
        entries = [("", each) for each in value]
    elif isinstance(value, dict):
        entries = list(value.items())
    else:
        raise InputError(f"{name}: {quoted(value)} is neither an array nor an object", _EXPECTED_SHAPES)
    for number, (job_id, each) in enumerate(entries, 1):
        yield number, _row(job_id, each)


def _row(job_id: str, value: object) -> dict[str, Any] | JobError:
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        return JobError(f"{quoted(value)} is neither an object nor a prompt", _EXPECTED_SHAPES)
    if job_id and "id" in value:
        return JobError(f"the entry has both the key {quoted(job_id)} and an id", "keep one of them")
    return {"id": job_id, **value} if job_id else value


def rename_keys(source: Iterable[tuple[int, bytes | dict[str, Any] | JobError]], options: InputOptions) -> Rows:
    """Rename the keys that options assign to fields."""
    field_by_column = options.field_by_column()
    template_names = Template(options.template).names if options.template else ()
    ignored_fields = {field for field, column in options.columns.items() if not column}
    for number, row in source:
        if isinstance(row, bytes):
            try:
                row = _parse_line(row)  # noqa: PLW2901 - the same row, parsed
            except JobError as error:
                row = error  # noqa: PLW2901
        yield (
            number,
            row
            if isinstance(row, JobError) or not (field_by_column or ignored_fields)
            else _rename_fields(row, field_by_column, ignored_fields, template_names),
        )


def _parse_line(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise JobError(
            f"the line is longer than {MAX_LINE_BYTES >> 20} MiB", "write one job per line, with less metadata"
        )
    return parse_object(line)


def _rename_fields(
    row: dict[str, Any], field_by_column: dict[str, Any], ignored_fields: set[str], template_names: Sequence[str]
) -> dict[str, Any] | JobError:
    fields: dict[str, Any] = {}
    for key, value in row.items():
        name = field_by_column.get(key, key)
        if key in ignored_fields:
            continue
        if name in fields or (name != key and name in row and name not in field_by_column):
            return JobError(f"both {quoted(key)} and {quoted(name)} set {name}", "keep one of them")
        fields[name] = value
        if name != key and key in template_names:
            fields[key] = value  # the parser puts it into the metadata
    return fields
