"""Reads the cells of CSV and TSV files, as spreadsheets write them, numbered by line."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from itertools import chain

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats.encoding import (
    BYTE_ORDER_MARK,
    LINE_ENDS_HINT,
    UTF_8_HINT,
    EncodingError,
    OnNotice,
)
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES, LineFile

Cells = Iterator[tuple[int, list[str] | JobError]]

_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?[,;\t]*\s*', re.IGNORECASE)  # Excel's own, not a row
_ENCLOSED = re.compile(r'"(?:[^"]|"")*"')
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")  # how `surrogateescape` represents a byte that is not UTF-8
_LONG_LINE_HINT = "leave out the column with the long cells"


def csv_cells(file: LineFile, on_notice: OnNotice) -> Cells:
    """Yield the cells of each row, with the number of the line on which it begins; or why it cannot be read."""
    _allow_long_cells()
    lines = _decode_lines(file)
    skipped_lines = 0
    first = next(lines, "")
    while first and first.isspace():
        first = next(lines, "")
        skipped_lines += 1
    delimiter = _delimiter(first)
    if match := _SEPARATOR_LINE.fullmatch(first):
        delimiter = match[1]
        first = next(lines, "")
        skipped_lines += 1
    if delimiter != ",":
        on_notice("separated by tabs" if delimiter == "\t" else f"separated by {delimiter}")
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    while True:
        number = skipped_lines + reader.line_num + 1
        try:
            cells = next(reader)
            yield number, _wrongly_encoded(cells) or cells
        except StopIteration:
            return
        except csv.Error as error:
            yield number, _row_error(str(error))


def tsv_cells(file: LineFile, *, is_chosen: bool) -> Cells:
    """Yield the cells of each line, in which quotes have no meaning, with its number; or why it cannot be read.

    Raises InputError for files with quotes around cells, which many programs write, unless the user has chosen the
    format: the quotes would be sent.
    """
    for number, line in enumerate(_decode_lines(file), 1):
        text = line.rstrip("\r\n")
        if number == 1 and _SEPARATOR_LINE.fullmatch(line):
            continue
        if "\r" in text:
            yield number, _row_error("new-line character")
            continue
        cells = text.split("\t") if text else []
        if not is_chosen and '"' in text and any(map(_seems_enclosed, cells)):
            problem = f"{file.name}:{number}: quotes seem to enclose a cell"
            raise InputError(problem, "set --input-format csv to read the cell in them, or tsv to keep the quotes")
        yield number, _wrongly_encoded(cells) or cells


def _seems_enclosed(cell: str) -> bool:
    """Return whether a cell is in quotes as in CSV, or begins one that goes on after a tab or a newline."""
    return cell.startswith('"') and (cell.count('"') % 2 == 1 or bool(_ENCLOSED.fullmatch(cell)))


def _delimiter(first: str) -> str:
    """Return the separator of the first line. A | is one only in a header with a prompt: {a|b} may be in a prompt."""
    cells = [cell.strip(' "').lower() for cell in first.strip().split("|")]
    if len(cells) > 1 and any(cell in ("prompt", "prompts") for cell in cells):
        return "|"
    return max(",;\t", key=first.count)


def _allow_long_cells() -> None:
    """Raise the limit of the csv module, which is one for the process and 131,072 characters by default.

    It is never lowered, so that other threads that read CSV are not disturbed.
    """
    if csv.field_size_limit() < MAX_LINE_BYTES:
        csv.field_size_limit(MAX_LINE_BYTES)


def _row_error(reason: str) -> JobError:
    """Return the problem of a row by the message of the csv module."""
    if "field limit" in reason:
        return JobError(f"a cell is longer than {MAX_LINE_BYTES >> 20} MiB", f"close its quote, or {_LONG_LINE_HINT}")
    if "unexpected end" in reason:
        return JobError("the quote of a cell is never closed", 'close it, or write " in a quoted cell as ""')
    if "new-line character" in reason:
        return JobError("a carriage return (CR) in the row: line ends are mixed", LINE_ENDS_HINT)
    return JobError(f"cannot read the row ({reason})", 'write " in a quoted cell as "", and no spaces around quotes')


def _wrongly_encoded(cells: list[str]) -> EncodingError | None:
    for cell in cells:
        if match := _NOT_UTF_8.search(cell):
            return EncodingError(f"byte 0x{ord(match[0]) - 0xDC00:02x} is not UTF-8", UTF_8_HINT)
    return None


def _decode_lines(file: LineFile) -> Iterator[str]:
    """Yield the lines of the file with their line ends."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    rest = ""
    number = 1
    for block in file.text():
        lines = (rest + decode(block)).split("\n")
        rest = lines.pop()
        number += len(lines)
        if len(rest) > MAX_LINE_BYTES:
            problem = f"{file.name}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB"
            raise InputError(problem, _LONG_LINE_HINT)
        for line in lines:
            yield line.removeprefix(BYTE_ORDER_MARK) + "\n"
    rest += decode(b"", True)
    if rest:
        yield rest.removeprefix(BYTE_ORDER_MARK)
