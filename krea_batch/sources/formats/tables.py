"""Tables come in (CSV, TSV, and the columns of anything else); the fields of a job for each row go out.

Newcomers: in a table, columns that are no fields are the rule (categories, notes, scores), so they go to the metadata
unasked. What was made of each column is said, since a guess costs money.
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
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES, LineFile
from krea_batch.sources.json_errors import parse_value, quoted
from krea_batch.sources.options import InputOptions
from krea_batch.sources.template import Template

Say = Callable[[str], None]
Rows = Iterator[tuple[int, dict[str, Any] | JobError]]

PROMPT_NAMES = ("prompt", "prompts", "text", "caption", "captions", "description")
_JSON_FIELDS = ("image_style_references", "styles", "moodboards", "metadata", "sweep")
_WHOLE = re.compile(r"\s*[+-]?\d{1,20}\s*")


class Columns:
    """Which column of a table is which field. Raises InputError where that cannot be told."""

    def __init__(self, name: str, header: Sequence[str], reading: InputOptions, say: Say) -> None:
        self._name = name
        self._header = [column.strip() for column in header]
        for n, column in enumerate(self._header):
            if column and column in self._header[:n]:
                raise InputError(f"{name}: two columns are called {quoted(column)}", "rename one of them")
        self._fields: dict[int, str] = {}
        self._chosen(reading)
        self._guessed(reading)
        self._extra = {n: column for n, column in enumerate(self._header) if column and n not in self._fields}
        self._tell(say)

    def row(self, cells: Sequence[Any]) -> dict[str, Any]:
        """The fields of a row. Raises JobError where it has more cells than there are columns, or one is no JSON."""
        if len(cells) > len(self._header) and any(cells[len(self._header) :]):
            wrong = f"the row has {len(cells)} cells, and there are {len(self._header)} columns"
            raise JobError(wrong, "put a cell that holds the separator into quotes, or take the cell away")
        fields: dict[str, Any] = {}
        for n, field in self._fields.items():
            value = cells[n] if n < len(cells) else None
            if value is not None and (value != "" or field == "prompt"):
                fields[field] = _typed(field, value)
        metadata = fields.setdefault("metadata", {})
        if not isinstance(metadata, dict):
            raise JobError(f'"metadata" is {quoted(metadata)}', 'write an object: {"key": "value"}')
        for n, column in self._extra.items():
            if column in metadata:
                raise JobError(f"{quoted(column)} is a column and stands in the metadata, too", "keep one of them")
            metadata[column] = cells[n] if n < len(cells) else ""
        return fields

    def _chosen(self, reading: InputOptions) -> None:
        """The columns that the user names."""
        for field, column in reading.columns.items():
            if not column:
                continue
            found = [n for n, each in enumerate(self._header) if each == column] or [
                n for n, each in enumerate(self._header) if each.lower() == column.lower()
            ]
            if not found:
                meant = closest_match(column, tuple(self._header))
                right = f"did you mean {quoted(meant)}?" if meant else f"the columns are {self._columns()}"
                raise InputError(f"{self._name}: there is no column {quoted(column)}", right)
            if found[0] in self._fields:
                raise InputError(
                    f"{self._name}: {quoted(column)} is to be {self._fields[found[0]]} and {field}",
                    "name two columns",
                )
            self._fields[found[0]] = field

    def _guessed(self, reading: InputOptions) -> None:
        """The columns that are called as a field is."""
        taken = {*self._fields.values(), *(field for field, column in reading.columns.items() if not column)}
        for n, column in enumerate(self._header):
            plain = column.lower().replace(" ", "_").replace("-", "_")
            if n in self._fields or plain not in (*FIELDS, "sweep") or plain in taken:
                continue
            self._fields[n] = plain
            taken.add(plain)
        if "prompt" in taken:
            return
        for name in PROMPT_NAMES:
            for n, column in enumerate(self._header):
                if column.lower() == name and n not in self._fields:
                    self._fields[n] = "prompt"
                    return
        if not reading.template:
            right = f"name it by --prompt-column; the columns are {self._columns()}"
            raise InputError(f"{self._name}: no column is called prompt", right)
        if missing := [name for name in Template(reading.template).names if name not in self._header]:
            swept = [each.name for each in reading.axes]
            if absent := [name for name in missing if name not in swept]:
                right = f"the columns are {self._columns()}"
                raise InputError(f"{self._name}: the template names {absent[0]}, which no column is called", right)

    def _tell(self, say: Say) -> None:
        what = [f"{field} from {quoted(self._header[n])}" for n, field in self._fields.items()]
        if self._extra:
            what.append(f"{', '.join(map(quoted, self._extra.values()))} into the metadata")
        say("; ".join(what))
        for column in self._extra.values():
            meant = closest_match(column)
            if meant and meant != "prompt" and meant not in self._fields.values():
                say(f'{quoted(column)} went into the metadata, did you mean "{meant}"?')

    def _columns(self) -> str:
        return ", ".join(map(quoted, self._header))


def _typed(field: str, value: Any) -> Any:
    """A cell as the field has it; what it cannot be is left for the reader of jobs to name."""
    if isinstance(value, str):
        if field == "seed" and _WHOLE.fullmatch(value):
            return int(value)
        return parse_value(value) if field in _JSON_FIELDS else value
    if field == "id" and isinstance(value, int):
        return str(value)
    if field == "seed" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def csv_rows(file: LineFile, reading: InputOptions, say: Say) -> Rows:
    """The rows of a CSV file with a header, by the numbers of the lines where they begin."""
    lines = _decoded_lines(file)
    first = next(lines, "")
    while first and first.isspace():
        first = next(lines, "")
    delimiter = max(",;\t", key=first.count)
    if delimiter != ",":
        say("parted by tabs" if delimiter == "\t" else f"parted by {delimiter}")
    parsed = csv.reader(_before(first, lines), delimiter=delimiter, strict=True)
    yield from _rows(file, parsed, reading, say)


class _Tabbed:
    """Reads rows parted by tabs, where a quote is a quote. Like `csv.reader`, it knows the line it is at."""

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


def tsv_rows(file: LineFile, reading: InputOptions, say: Say) -> Rows:
    """The rows of a TSV file with a header, by the numbers of their lines."""
    yield from _rows(file, _Tabbed(_decoded_lines(file)), reading, say)


def _rows(file: LineFile, parsed: Any, reading: InputOptions, say: Say) -> Rows:
    columns: Columns | None = None
    while True:
        number = parsed.line_num + 1
        try:
            cells = next(parsed)
            _check_utf_8(cells)
            if columns is None:
                if any(cells):
                    columns = Columns(file.name, cells, reading, say)
            elif any(cells):
                yield number, columns.row(cells)
        except StopIteration:
            return
        except csv.Error as error:
            if columns is None:
                raise InputError(f"{file.name}: its header cannot be read ({error})", "see --input-format") from None
            yield number, JobError(f"the row cannot be read ({error})", 'write a " in a quoted cell as ""')
        except JobError as error:
            if columns is None:
                raise InputError(f"{file.name}: {error.problem}", error.hint) from None
            yield number, error


def _check_utf_8(cells: Sequence[str]) -> None:
    for cell in cells:
        for char in cell:
            if "\udc80" <= char <= "\udcff":  # how `surrogateescape` keeps a byte that is not UTF-8
                raise JobError(f"byte 0x{ord(char) - 0xDC00:02x} is not UTF-8", "save the file as UTF-8")


def _before(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _decoded_lines(file: LineFile) -> Iterator[str]:
    """The file's lines with their ends."""
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
