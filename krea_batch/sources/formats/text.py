"""Reads plain text: one prompt per line, or one per file, without changing a byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats.encoding import LINE_ENDS_HINT, UTF_8_HINT, EncodingError
from krea_batch.sources.formats.line_file import MAX_LINE_BYTES, FilePosition, LineFile, OnBlock
from krea_batch.sources.options import InputOptions

Rows = Iterator[tuple[int, dict[str, Any] | JobError]]


def lines(file: LineFile, options: InputOptions, on_block: OnBlock | None, after: FilePosition) -> Rows:
    """Yield a prompt for each line that is not blank, nor a comment if comments are to be skipped."""
    for number, line in file.lines(on_block, after):
        if not (options.skip_comments and line.lstrip().startswith(b"#")):
            text = line.rstrip(b"\r")
            if b"\r" in text:
                yield number, JobError("a carriage return (CR) in the line: line ends are mixed", LINE_ENDS_HINT)
            else:
                yield number, _prompt_row(text, "the line")
    if file.mixes_line_ends:
        raise InputError(f"{file.name}: some lines end with CR and some with LF", LINE_ENDS_HINT)


def whole_file(file: LineFile) -> Rows:
    """Yield the whole file as one prompt; its id is the file name without `.txt`."""
    content = b"".join(file.text())
    row = _prompt_row(content.removesuffix(b"\n").removesuffix(b"\r"), "the file")
    yield 1, row if isinstance(row, JobError) else row | {"id": Path(file.name).stem}


def _prompt_row(text: bytes, source: str) -> dict[str, Any] | JobError:
    if len(text) > MAX_LINE_BYTES:
        return JobError(f"{source} is longer than {MAX_LINE_BYTES >> 20} MiB", "shorten the prompt")
    try:
        return {"prompt": text.decode()}
    except UnicodeDecodeError as error:
        return EncodingError(f"byte {error.start + 1} (0x{text[error.start]:02x}) is not UTF-8", UTF_8_HINT)
