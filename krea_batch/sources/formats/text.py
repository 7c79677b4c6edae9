"""Reads plain text: one prompt per line, per file, or per block between separators, without changing a byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats.encoding import BYTE_ORDER_MARK, LINE_ENDS_HINT, EncodingError, decode_utf_8
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES, FilePosition, LineFile, OnBlock
from krea_batch.sources.formats.tables import Rows
from krea_batch.sources.options import InputOptions


def lines(file: LineFile, options: InputOptions, on_block: OnBlock | None, after: FilePosition) -> Rows:
    """Yield a prompt for each line that is not blank, nor a comment if comments are to be skipped."""
    for number, line in file.lines(on_block, after):
        if not (options.skip_comments and line.lstrip().startswith(b"#")):
            text = line.rstrip(b"\r").removeprefix(BYTE_ORDER_MARK.encode())
            if b"\r" in text:
                yield number, JobError("a carriage return (CR) in the line: line ends are mixed", LINE_ENDS_HINT)
            else:
                yield number, _prompt_row(text, "the line")
    if file.mixes_line_ends:
        raise InputError(f"{file.name}: some lines end with CR and some with LF", LINE_ENDS_HINT)


def whole_file(file: LineFile) -> Rows:
    """Yield the whole file as one prompt; its id is the file name without `.txt`, or none if it has no name."""
    content = b"".join(file.text())
    row = _prompt_row(content.removesuffix(b"\n").removesuffix(b"\r"), "the file")
    name = Path(file.name).name.removesuffix(".gz").removesuffix(".zst")
    yield 1, row if isinstance(row, JobError) or file.is_spooled else row | {"id": Path(name).stem}


def blocks(file: LineFile, separator: str) -> Rows:
    """Yield the text between lines that are the separator as one prompt, numbered by the lines on which they begin.

    Blank lines at the start and the end of a block are left out, and so are blocks without text.
    """
    wanted = separator.strip().encode()
    block: list[bytes] = []
    first_number = size_bytes = 0
    for number, line in _all_lines(file):
        if line.strip() == wanted:
            if block:
                yield first_number, _block_row(block)
            block, size_bytes = [], 0
        elif block or (not line.isspace() and line):
            first_number = first_number if block else number
            if size_bytes <= MAX_LINE_BYTES:  # The rest of a block that is too long is not kept.
                block.append(line)
            size_bytes += len(line) + 1
    if block:
        yield first_number, _block_row(block)


def _block_row(block: list[bytes]) -> dict[str, Any] | JobError:
    while not block[-1].strip():
        block.pop()
    return _prompt_row(b"\n".join(block).removesuffix(b"\r"), "the block")


def _all_lines(file: LineFile) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its number, without its newline. One that is too long is truncated but stays too long."""
    number, rest = 0, b""
    for data in file.text():
        parts = (rest + data).split(b"\n")
        rest = parts.pop()[: MAX_LINE_BYTES + 1]
        for line in parts:
            number += 1
            yield number, line
    if rest:
        yield number + 1, rest


def _prompt_row(text: bytes, source: str) -> dict[str, Any] | JobError:
    if len(text) > MAX_LINE_BYTES:
        hint = "shorten the prompt" + ", or read each line as one: --lines" * (source == "the file")
        return JobError(f"{source} is longer than {MAX_LINE_BYTES >> 20} MiB", hint)
    try:
        return {"prompt": decode_utf_8(text)}
    except EncodingError as error:
        return error
