"""Reads a sheet of a workbook: .xlsx, .xlsm, .xlsb, .xls and .ods.

The cells become the texts that a CSV file of the sheet would have, so both make the same jobs. They are read with
python-calamine, an optional dependency: it reads all these formats, and it is the reader that pandas recommends.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from typing import Any

from krea_batch.errors import InputError
from krea_batch.sources.formats.encoding import OnNotice
from krea_batch.sources.formats.line_file import LineFile
from krea_batch.sources.formats.tables import Rows, rows_of_cells
from krea_batch.sources.json_errors import quoted
from krea_batch.sources.options import InputOptions

MAGICS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
"""The first bytes of a ZIP file, as .xlsx and .ods are, and of a Compound File (MS-CFB, section 2.2), as .xls is."""

MAX_WORKBOOK_BYTES = 1 << 28  # chosen: as for JSON documents, since a workbook is read as a whole
_EXACT_FLOAT = 1 << 53


def rows(file: LineFile, options: InputOptions, on_notice: OnNotice) -> Rows:
    """Yield the rows of the chosen sheet, or of the first visible one, numbered as in the sheet."""
    calamine = _import_calamine(file.name)
    content = BytesIO()
    for block in file.raw_blocks():
        if content.tell() + len(block) > MAX_WORKBOOK_BYTES:
            raise InputError(
                f"{file.name}: longer than {MAX_WORKBOOK_BYTES >> 20} MiB", "save the sheet as CSV UTF-8"
            )
        content.write(block)
    content.seek(0)
    try:
        with calamine.CalamineWorkbook.from_filelike(content) as workbook:
            names = _sheet_names(workbook, calamine)
            name = _choose(file.name, names, options, on_notice)
            cells = workbook.get_sheet_by_name(name).to_python(skip_empty_area=False)
    except calamine.PasswordError:
        problem = f"{file.name}: the workbook is protected by a password"
        raise InputError(problem, "save it without one, or save the sheet as CSV UTF-8") from None
    except calamine.CalamineError as error:
        problem = f"{file.name}: cannot be read as a workbook ({error})"
        raise InputError(
            problem, "open it in a spreadsheet program, and save it as .xlsx, .ods or CSV UTF-8"
        ) from None
    numbered = ((number, [_text(value) for value in row]) for number, row in enumerate(cells, 1))
    try:
        yield from rows_of_cells(file.name, numbered, options, on_notice)
    except InputError as error:
        if options.sheet or len(names) == 1:
            raise
        hint = f"{error.hint}; or name another sheet with --sheet: {_list(each for each in names if each != name)}"
        raise InputError(error.problem, hint) from None


def _sheet_names(workbook: Any, calamine: Any) -> list[str]:
    """Return the names of the sheets that are not charts; hidden ones come last."""
    visible = calamine.SheetVisibleEnum.Visible
    sheets = [each for each in workbook.sheets_metadata if each.typ == calamine.SheetTypeEnum.WorkSheet]
    return [each.name for each in sorted(sheets, key=lambda each: each.visible != visible)]


def _choose(file_name: str, names: list[str], options: InputOptions, on_notice: OnNotice) -> str:
    if not options.sheet:
        if not names:
            raise InputError(f"{file_name}: a workbook without sheets", "name another file")
        if len(names) > 1:
            on_notice(f"read the sheet {quoted(names[0])} only; --sheet names another: {_list(names[1:])}")
        return names[0]
    for name in names:
        if name == options.sheet:
            return name
    raise InputError(f"{file_name}: there is no sheet {quoted(options.sheet)}", f"the sheets are {_list(names)}")


def _list(names: Iterator[str] | list[str]) -> str:
    return ", ".join(map(quoted, names))


def _text(value: Any) -> str:
    """Return the text that a CSV file has for a cell."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_FLOAT:
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    return str(value)


def _import_calamine(name: str) -> Any:
    try:
        return import_module("python_calamine")
    except ImportError:
        problem = f"{name}: reading a workbook requires python-calamine"
        raise InputError(problem, "pip install 'krea-batch[sheets]', or save the sheet as CSV UTF-8") from None
