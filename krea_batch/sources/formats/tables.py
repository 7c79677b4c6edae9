"""Reads CSV and TSV files, and maps the columns of any table to the fields of a job.

In a table, columns that are not fields (categories, notes, scores) are normal, so they are put into the metadata
without an option. The use of each column is reported, since a wrong guess costs money.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from krea_batch.errors import InputError, JobError
from krea_batch.jobs import FIELDS
from krea_batch.sources import own_files
from krea_batch.sources.field_errors import closest_match
from krea_batch.sources.formats.cells import Cells, csv_cells, tsv_cells
from krea_batch.sources.formats.encoding import OnNotice
from krea_batch.sources.formats.line_file import LineFile
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.key_paths import steps_to, value_at, without
from krea_batch.sources.options import Format, InputOptions
from krea_batch.sources.template import Template
from krea_batch.sources.values import INVISIBLE, convert_fields

Rows = Iterator[tuple[int, dict[str, Any] | JobError]]

PROMPT_COLUMNS = ("prompt", "prompts", "text", "caption", "captions", "description")
_BLANKS_IN_HEADERS = " \t\r\n\u00a0" + INVISIBLE  # web pages and spreadsheets put them around names
_MIN_PROMPT_WORDS = 3  # chosen: names of columns are seldom longer; only the order of a hint depends on it
_WHOLE_FLOAT = re.compile(r"(0|[1-9][0-9]{0,14})\.0")
_ERROR_VALUE = re.compile(r"#(NULL!|DIV/0!|VALUE!|REF!|NAME\?|NUM!|N/A|SPILL!|CALC!)|Err:\d{3}")


class _HeaderError(InputError):
    """The first row cannot be a header. The table may have none."""


class Columns:
    """Maps the columns of a table to fields. Raises InputError if that is ambiguous.

    With `is_text`, cells have no type: an id "7.0" is a whole number that another program wrote as a float, because
    an id is missing elsewhere in its column. `has_quotes`: quotes enclose cells in the format. `nested` are the
    paths of values inside columns that options may name.
    """

    def __init__(
        self,
        name: str,
        header: Sequence[str],
        options: InputOptions,
        on_notice: OnNotice,
        *,
        is_text: bool = True,
        has_quotes: bool = True,
        nested: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._on_notice = on_notice
        self._is_text = is_text
        self._has_quotes = has_quotes
        self._header = [column.strip(_BLANKS_IN_HEADERS) for column in header]
        for n, column in enumerate(self._header):
            if column and column in self._header[:n]:
                raise _HeaderError(f"{name}: two columns are named {quoted(column)}", "rename one of them")
        self._nested = nested
        self._last_id: object = None
        self._fields: dict[int, str] = {}
        self._paths: dict[str, str] = {}  # field to the path of its value inside a column
        self._assign_chosen(options)
        self._assign_by_name(options)
        self._is_export = own_files.is_export(self._header)
        self._extra = {
            n: column
            for n, column in enumerate(self._header)
            if column and n not in self._fields and not (self._is_export and own_files.is_added_by_run(column))
        }
        names = Template(options.template).names if options.template else ()
        self._in_template = {
            n: self._header[n] for n, field in self._fields.items() if field != self._header[n] in names
        }
        self._report(options, on_notice)

    def row(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of a row. Raises JobError if it has too many cells, or one holds invalid JSON."""
        if len(cells) > len(self._header) and any(cells[len(self._header) :]):
            problem = f"the row has {len(cells)} cells, and the header has {len(self._header)}"
            raise JobError(problem, self._extra_cell_hint(cells))
        if self._paths:
            cells, nested_fields = self._take_nested(cells)
        else:
            nested_fields = {}
        fields = nested_fields | {field: self._cell(cells, n) for n, field in self._fields.items()}
        metadata = fields["metadata"] = convert_fields({"metadata": fields.get("metadata")}).get("metadata", {})
        if not isinstance(metadata, dict):
            raise JobError(f'"metadata" is {quoted(metadata)}', 'write an object: {"key": "value"}')
        for n, column in (self._extra | self._in_template).items():
            key = column.removeprefix(own_files.METADATA_PREFIX) or column
            value = self._cell(cells, n)
            if key in metadata:
                raise JobError(f"{quoted(column)} is both a column and a key of the metadata", "keep one of them")
            if not self._is_export or value != "":  # in an export, an empty cell is a key that the job does not have
                metadata[key] = value
        return fields

    def _extra_cell_hint(self, cells: Sequence[Any]) -> str:
        if not self._has_quotes:
            return "remove the extra cell, or set --input-format csv if quotes enclose cells"
        if any(isinstance(cell, str) and cell.lstrip() != cell and cell.lstrip().startswith('"') for cell in cells):
            return "remove the spaces before quotes"
        hint = "put cells that contain the separator in quotes, or remove the extra cell"
        return hint if len(self._header) > 1 else f"{hint}; --input-format tsv reads each line as one cell"

    def _take_nested(self, cells: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the cells without the nested values that options name as fields, and these fields."""
        row = rest = dict(zip(self._header, cells, strict=True))
        fields = {}
        for field, path in self._paths.items():
            if steps := steps_to(row, path):
                fields[field] = value_at(row, steps)
                rest = without(rest, steps)
        return [rest.get(column) for column in self._header], fields

    def _cell(self, cells: Sequence[Any], n: int) -> Any:
        """Return a cell; rows may be shorter than the header."""
        value = cells[n] if n < len(cells) else ""
        if self._is_text and self._is_export:
            value = own_files.unescape_cell(value)
        if self._is_text and self._fields.get(n) == "id" and (match := _WHOLE_FLOAT.fullmatch(value)):
            self._on_notice('ids such as "7.0" are read as "7"')
            return match[1]
        return value

    def numbered_row(self, number: int, cells: Sequence[Any]) -> Rows:
        """Yield a row or its error; nothing if it is another image of the job before it in an export."""
        try:
            row = _without_error_value(self.row(cells))
        except JobError as error:
            yield number, error
            return
        if not self._is_export or row.get("id") != self._last_id:
            yield number, row
        self._last_id = row.get("id")

    def _assign_chosen(self, options: InputOptions) -> None:
        """Assign the columns that options name."""
        for field, column in options.columns.items():
            if not column:
                continue
            matches = [n for n, each in enumerate(self._header) if each == column] or [
                n for n, each in enumerate(self._header) if each.lower() == column.lower()
            ]
            if not matches and column in self._nested:
                self._paths[field] = column
                continue
            if not matches:
                suggestion = closest_match(column, (*self._header, *self._nested))
                problem = f"{self._name}: there is no column {quoted(column)}"
                if suggestion:
                    raise InputError(problem, f"did you mean {quoted(suggestion)}?")
                raise _HeaderError(problem, f"the columns are {self._column_list()}")
            if matches[0] in self._fields:
                raise InputError(
                    f"{self._name}: {quoted(column)} is assigned to both {self._fields[matches[0]]} and {field}",
                    "choose two different columns",
                )
            self._fields[matches[0]] = field

    def _assign_by_name(self, options: InputOptions) -> None:
        """Assign the columns whose name is that of a field."""
        assigned = {
            *self._fields.values(),
            *self._paths,
            *(field for field, column in options.columns.items() if not column),
        }
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
            raise self._no_prompt_error(options)
        if missing := [name for name in Template(options.template).names if name not in self._header]:
            swept = [each.name for each in options.axes]
            if unknown := [name for name in missing if name not in swept]:
                hint = f"the columns are {self._column_list()}"
                raise InputError(f"{self._name}: the template uses {unknown[0]}, but no column has that name", hint)

    def _no_prompt_error(self, options: InputOptions) -> InputError:
        for field, column in options.columns.items():
            if column and column.lower() in PROMPT_COLUMNS:
                problem = (
                    f"{self._name}: {quoted(column)} is assigned to {field}, so no column is left for the prompt"
                )
                return InputError(problem, f"choose another column for {field}, or set --prompt-column")
        hint = f"set --prompt-column; the columns are {self._column_list()}"
        return _HeaderError(f"{self._name}: no column is named prompt", hint)

    def _report(self, options: InputOptions, on_notice: OnNotice) -> None:
        if self._is_export:
            on_notice(own_files.EXPORT_NOTICE)
        sources = [(field, self._header[n]) for n, field in self._fields.items()] + list(self._paths.items())
        parts = [f"{field} from {quoted(source)}" for field, source in sources]
        if self._extra:
            parts.append(f"{', '.join(map(quoted, self._extra.values()))} put into the metadata")
        on_notice("; ".join(parts))
        for column in self._extra.values():
            suggestion = closest_match(column)
            taken = (*self._fields.values(), *self._paths, *options.columns, "prompt")
            if suggestion and suggestion not in taken and not column.startswith(own_files.METADATA_PREFIX):
                on_notice(f'{quoted(column)} was put into the metadata; did you mean "{suggestion}"?')

    def _column_list(self) -> str:
        return ", ".join(map(quoted, (*self._header, *self._nested)))


def starts_with_header(head: bytes) -> bool:
    """Return whether the first line of a text looks like a header with a column of prompts."""
    line = head.lstrip().partition(b"\n")[0].decode(errors="replace")
    cells = [cell.strip(' "') for cell in re.split("[,;\t]", line.strip())]
    return any(map(_is_prompt_column, cells)) if len(cells) > 1 else cells[0].lower() in ("prompt", "prompts")


def csv_rows(file: LineFile, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Yield the rows of a CSV file, numbered by the lines on which they begin."""
    return rows_of_cells(file.name, csv_cells(file, on_notice), options, on_notice)


def tsv_rows(file: LineFile, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Yield the rows of a TSV file, numbered by their lines."""
    cells = tsv_cells(file, is_chosen=options.format is Format.TSV)
    return rows_of_cells(file.name, cells, options, on_notice, has_quotes=False)


def rows_of_cells(
    name: str, cells: Cells, options: InputOptions, on_notice: OnNotice, *, has_quotes: bool = True
) -> Rows:
    """Yield the rows of a table of text cells, whose first row is the header unless options say otherwise.

    Empty rows, further copies of the header, and rows without a prompt at the end are left out.
    """
    filled: Cells = ((number, row) for number, row in cells if isinstance(row, JobError) or any(map(str.strip, row)))
    number, header = next(filled, (0, JobError("", "")))
    if not number:
        return
    if isinstance(header, JobError):
        raise InputError(f"{name}:{number}: cannot read the header: {header.problem}", header.hint)
    if options.no_header:
        columns = _numbered_columns(name, header, options, on_notice)
        filled = chain([(number, header)], filled)
        header = []
    else:
        try:
            columns = Columns(name, header, options, on_notice, has_quotes=has_quotes)
        except _HeaderError as error:
            raise InputError(error.problem, _header_hint(error.hint, header, next(filled, None))) from None
    rows = _rows(filled, columns, header, on_notice)
    yield from without_empty_end(rows, options, on_notice)


def _rows(cells: Cells, columns: Columns, header: Sequence[str], on_notice: OnNotice) -> Rows:
    header = [cell.strip(_BLANKS_IN_HEADERS) for cell in header]
    repeated = array("q")
    for number, row in cells:
        if isinstance(row, JobError):
            yield number, row
        elif header and [cell.strip(_BLANKS_IN_HEADERS) for cell in row] == header:
            repeated.append(number)
        else:
            yield from columns.numbered_row(number, row)
    if repeated:
        on_notice(_left_out(repeated, "like the header"))


def _without_error_value(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields. Raises JobError if the prompt is what a spreadsheet shows for a formula that failed."""
    prompt = str(fields.get("prompt", ""))
    if _ERROR_VALUE.fullmatch(prompt):
        raise JobError(f'"prompt" is {prompt}, the error value of a spreadsheet', "write the prompt as text")
    return fields


def without_empty_end(rows: Rows, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Leave out rows at the end that have no prompt, such as those in which only a box is ticked.

    Elsewhere a missing prompt is a mistake, which the parser reports.
    """
    names = Template(options.template).names if options.template else ("prompt",)
    pending = array("q")
    for number, row in rows:
        if isinstance(row, dict) and not any(_has_value(row, name) for name in names):
            pending.append(number)
            continue
        for earlier in pending:
            yield earlier, JobError(f'"{names[0]}" is empty', "write a prompt, or remove the row")
        pending = array("q")
        yield number, row
    if pending:
        on_notice(_left_out(pending, "without a prompt at the end"))


def _has_value(row: dict[str, Any], name: str) -> bool:
    """Return whether a field, or else a key of the metadata, is not blank; True for one that the table lacks."""
    value = row.get(name, row["metadata"].get(name, "" if name in FIELDS else None))
    return value is None or bool(str(value).strip())


def _left_out(numbers: Sequence[int], kind: str) -> str:
    if len(numbers) == 1:
        return f"left out 1 row {kind}, in line {numbers[0]}"
    return f"left out {len(numbers):,} rows {kind}; the first is in line {numbers[0]}"


def _numbered_columns(name: str, first_row: Sequence[str], options: InputOptions, on_notice: OnNotice) -> Columns:
    """Return columns named 1, 2, …, of which the first is the prompt. Raises InputError if the first is a header."""
    chosen = {**options.columns}
    if "prompt" not in chosen and not options.template:
        chosen["prompt"] = "1"
    numbers = [str(n) for n in range(1, len(first_row) + 1)]
    columns = Columns(name, numbers, msgspec.structs.replace(options, columns=chosen), on_notice)
    prompt = dict(zip(numbers, first_row, strict=True)).get(chosen.get("prompt", ""), "")
    if _is_prompt_column(prompt):
        raise InputError(f"{name}: the first row is a header", "leave out --no-header, or remove the row")
    return columns


def _header_hint(hint: str, header: Sequence[str], next_row: tuple[int, list[str] | JobError] | None) -> str:
    """Return the hint for a first row that may be a title, or a row of a table without a header."""
    if next_row and isinstance(next_row[1], list) and any(map(_is_prompt_column, next_row[1])):
        return f"line {next_row[0]} looks like the header; remove the lines before it"
    if any(len(cell.split()) >= _MIN_PROMPT_WORDS or cell.strip().isdecimal() for cell in header):
        return f"if the first row is a prompt and not a header, add --no-header; else {hint}"
    return f"{hint}; or add --no-header if the first row is not a header"


def _is_prompt_column(name: str) -> bool:
    return name.strip().lower() in PROMPT_COLUMNS
