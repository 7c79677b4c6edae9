"""Reads CSV and TSV files, and maps the columns of any table to the fields of a job.

In a table, columns that are not fields (categories, notes, scores) are normal, so they are put into the metadata
without an option. How each column is used is reported, since a wrong guess costs money.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from krea_batch.errors import InputError, JobError
from krea_batch.jobs import FIELDS
from krea_batch.sources.field_errors import closest_match
from krea_batch.sources.formats.encoding import UTF_8_HINT, EncodingError
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES, LineFile
from krea_batch.sources.json_errors import parse_value, quoted
from krea_batch.sources.options import InputOptions
from krea_batch.sources.template import Template

OnNotice = Callable[[str], None]
Rows = Iterator[tuple[int, dict[str, Any] | JobError]]

PROMPT_COLUMNS = ("prompt", "prompts", "text", "caption", "captions", "description")
_JSON_FIELDS = ("image_style_references", "styles", "moodboards", "metadata", "sweep")
_INTEGER = re.compile(r"\s*[+-]?\d{1,20}\s*")


class Columns:
    """Maps the columns of a table to fields. Raises InputError if that is ambiguous."""

    def __init__(self, name: str, header: Sequence[str], options: InputOptions, on_notice: OnNotice) -> None:
        self._name = name
        self._header = [column.strip() for column in header]
        for n, column in enumerate(self._header):
            if column and column in self._header[:n]:
                raise InputError(f"{name}: two columns are named {quoted(column)}", "rename one of them")
        self._fields: dict[int, str] = {}
        self._assign_chosen(options)
        self._assign_by_name(options)
        self._extra = {n: column for n, column in enumerate(self._header) if column and n not in self._fields}
        self._report(on_notice)

    def row(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of a row. Raises JobError if it has too many cells, or one holds invalid JSON."""
        if len(cells) > len(self._header) and any(cells[len(self._header) :]):
            problem = f"the row has {len(cells)} cells but the header {len(self._header)} columns"
            raise JobError(problem, "quote cells that contain the separator, or remove the extra cell")
        fields: dict[str, Any] = {}
        for n, field in self._fields.items():
            value = cells[n] if n < len(cells) else None
            if value is not None and (value != "" or field == "prompt"):
                fields[field] = _convert_cell(field, value)
        metadata = fields.setdefault("metadata", {})
        if not isinstance(metadata, dict):
            raise JobError(f'"metadata" is {quoted(metadata)}', 'write an object: {"key": "value"}')
        for n, column in self._extra.items():
            if column in metadata:
                raise JobError(f"{quoted(column)} is both a column and a key of the metadata", "keep one of them")
            metadata[column] = cells[n] if n < len(cells) else ""
        return fields

    def _assign_chosen(self, options: InputOptions) -> None:
        """Assign the columns that options name."""
        for field, column in options.columns.items():
            if not column:
                continue
            matches = [n for n, each in enumerate(self._header) if each == column] or [
                n for n, each in enumerate(self._header) if each.lower() == column.lower()
            ]
            if not matches:
                suggestion = closest_match(column, tuple(self._header))
                hint = (
                    f"did you mean {quoted(suggestion)}?" if suggestion else f"the columns are {self._column_list()}"
                )
                raise InputError(f"{self._name}: there is no column {quoted(column)}", hint)
            if matches[0] in self._fields:
                raise InputError(
                    f"{self._name}: {quoted(column)} is assigned to both {self._fields[matches[0]]} and {field}",
                    "choose two different columns",
                )
            self._fields[matches[0]] = field

    def _assign_by_name(self, options: InputOptions) -> None:
        """Assign the columns whose name is that of a field."""
        assigned = {*self._fields.values(), *(field for field, column in options.columns.items() if not column)}
        for n, column in enumerate(self._header):
            normalized = column.lower().replace(" ", "_").replace("-", "_")
            if n in self._fields or normalized not in (*FIELDS, "sweep") or normalized in assigned:
                continue
            self._fields[n] = normalized
            assigned.add(normalized)
        if "prompt" in assigned:
            return
        for name in PROMPT_COLUMNS:
            for n, column in enumerate(self._header):
                if column.lower() == name and n not in self._fields:
                    self._fields[n] = "prompt"
                    return
        if not options.template:
            hint = f"set --prompt-column; the columns are {self._column_list()}"
            raise InputError(f"{self._name}: no column is named prompt", hint)
        if missing := [name for name in Template(options.template).names if name not in self._header]:
            swept = [each.name for each in options.axes]
            if unknown := [name for name in missing if name not in swept]:
                hint = f"the columns are {self._column_list()}"
                raise InputError(f"{self._name}: the template uses {unknown[0]}, but no column has that name", hint)

    def _report(self, on_notice: OnNotice) -> None:
        parts = [f"{field} from {quoted(self._header[n])}" for n, field in self._fields.items()]
        if self._extra:
            parts.append(f"{', '.join(map(quoted, self._extra.values()))} put into the metadata")
        on_notice("; ".join(parts))
        for column in self._extra.values():
            suggestion = closest_match(column)
            if suggestion and suggestion != "prompt" and suggestion not in self._fields.values():
                on_notice(f'{quoted(column)} was put into the metadata; did you mean "{suggestion}"?')

    def _column_list(self) -> str:
        return ", ".join(map(quoted, self._header))


def _convert_cell(field: str, value: Any) -> Any:
    """Convert a cell to the type of its field; invalid values are left for the parser to report."""
    if isinstance(value, str):
        if field == "seed" and _INTEGER.fullmatch(value):
            return int(value)
        return parse_value(value) if field in _JSON_FIELDS else value
    if field == "id" and isinstance(value, int):
        return str(value)
    if field == "seed" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def csv_rows(file: LineFile, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Yield the rows of a CSV file with a header, numbered by the lines on which they begin."""
    lines = _decode_lines(file)
    first = next(lines, "")
    while first and first.isspace():
        first = next(lines, "")
    delimiter = max(",;\t", key=first.count)
    if delimiter != ",":
        on_notice("separated by tabs" if delimiter == "\t" else f"separated by {delimiter}")
    reader = csv.reader(_prepend(first, lines), delimiter=delimiter, strict=True)
    yield from _rows(file, reader, options, on_notice)


class _TsvReader:
    """Reads tab-separated rows, in which quotes have no meaning. Like `csv.reader`, it knows its line number."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.line_num = 0

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        line = next(self._lines)
        self.line_num += 1
        text = line.removesuffix("\n").removesuffix("\r")
        return text.split("\t") if text else []


def tsv_rows(file: LineFile, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Yield the rows of a TSV file with a header, numbered by their lines."""
    yield from _rows(file, _TsvReader(_decode_lines(file)), options, on_notice)


def _rows(file: LineFile, reader: Any, options: InputOptions, on_notice: OnNotice) -> Rows:
    columns: Columns | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
            _require_utf_8(cells)
            if columns is None:
                if any(cells):
                    columns = Columns(file.name, cells, options, on_notice)
            elif any(cells):
                yield number, columns.row(cells)
        except StopIteration:
            return
        except csv.Error as error:
            if columns is None:
                raise InputError(f"{file.name}: cannot read the header ({error})", "see --input-format") from None
            yield number, JobError(f"cannot read the row ({error})", 'write " in a quoted cell as ""')
        except JobError as error:
            if columns is None:
                raise InputError(f"{file.name}: {error.problem}", error.hint) from None
            yield number, error


def _require_utf_8(cells: Sequence[str]) -> None:
    for cell in cells:
        for char in cell:
            if "\udc80" <= char <= "\udcff":  # how `surrogateescape` represents a byte that is not UTF-8
                raise EncodingError(f"byte 0x{ord(char) - 0xDC00:02x} is not UTF-8", UTF_8_HINT)


def _prepend(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _decode_lines(file: LineFile) -> Iterator[str]:
    """Yield the lines of the file with their line endings."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    rest = ""
    for block in file.text():
        lines = (rest + decode(block)).split("\n")
        rest = lines.pop()
        if len(rest) > MAX_LINE_BYTES:
            raise InputError(f"{file.name}: a line is longer than {MAX_LINE_BYTES >> 20} MiB", "see --input-format")
        for line in lines:
            yield line + "\n"
    rest += decode(b"", True)
    if rest:
        yield rest
