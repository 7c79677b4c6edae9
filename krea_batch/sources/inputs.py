"""Paths come in; what is read of each goes out: numbered rows, in one shape for all formats.

Newcomers: a row is the bytes of a line of JSONL, which a fast reader takes; the fields of a job, from any other
format; or the JobError that says why a row is neither. Numbers are those of lines where there are lines, of records
elsewhere, and they go on from file to file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats import json_document, parquet, tables, text
from krea_batch.sources.formats.line_file import BEGIN, AtBlock, FilePosition, LineFile
from krea_batch.sources.formats.spool import is_read_once, spool, spool_path
from krea_batch.sources.options import SELECTABLE, Format, InputOptions

STDIN = "<stdin>"  # how problems name standard input, as compilers do

Row = bytes | dict[str, Any] | JobError

_BY_NAME = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".parquet": Format.PARQUET,
    ".arrow": Format.ARROW,
}
_PACKED = (".gz", ".zst")
_PARQUET = b"PAR1"
_NUMBERS = re.compile(r"(\d+)")
_CHOICES = ", ".join(SELECTABLE)


class Input:
    """One file and its format. `said` tells what was guessed, once its rows have been read."""

    def __init__(self, file: LineFile, format_: Format, reading: InputOptions, *, guess: str = "") -> None:
        self.file = file
        self.name = file.name
        self.format = format_
        self.said = [f"{file.name}: {guess}"] if guess else []
        self.row_count = 0
        self._reading = reading

    @property
    def can_be_marked(self) -> bool:
        """Whether a later run can tell by the file's first bytes that its rows are still the same."""
        return self.format in (Format.JSONL, Format.TEXT)

    def rows(self, at_block: AtBlock | None = None, after: FilePosition = BEGIN) -> Iterator[tuple[int, Row]]:
        """Every row with its number, from 1. Raises InputError where the file cannot be read or has changed.

        `at_block` hears how far the file was read, where that can be marked, and rows `after` such a mark are given.
        """
        if self.format is Format.JSONL and not self._reading.columns:
            yield from self.file.lines(at_block, after)  # as it is: a million lines are read like this
            self.row_count = self.file.line_count
            return
        self.row_count = 0
        for self.row_count, row in self._read(at_block, after):  # noqa: B020 - the last one stays
            yield self.row_count, row
        self.row_count = max(self.row_count, self.file.line_count)

    def _read(self, at_block: AtBlock | None, after: FilePosition) -> Iterator[tuple[int, Row]]:
        file, reading, say = self.file, self._reading, self._say
        match self.format:
            case Format.JSONL:
                return json_document.renamed(file.lines(at_block, after), reading)
            case Format.TEXT:
                return text.lines(file, reading, at_block, after)
            case Format.TEXT_FILE:
                return text.whole_file(file)
            case Format.JSON:
                return json_document.renamed(json_document.rows(file), reading)
            case Format.CSV:
                return tables.csv_rows(file, reading, say)
            case Format.TSV:
                return tables.tsv_rows(file, reading, say)
            case Format.PARQUET | Format.ARROW:
                return parquet.rows(file, reading, say, arrow=self.format is Format.ARROW)

    def _say(self, sentence: str) -> None:
        said = f"{self.name}: {sentence}"
        if said not in self.said:
            self.said.append(said)


def with_places(inputs: Sequence[Input], after: Sequence[FilePosition]) -> Iterator[tuple[Input, FilePosition]]:
    """Each input with the place after which its rows are to be read; those that have none from their begin."""
    return zip(inputs, chain(after, repeat(BEGIN)), strict=False)


def numbered(
    inputs: Sequence[Input], at_block: Callable[[int], AtBlock] | None = None, after: Sequence[FilePosition] = ()
) -> Iterator[tuple[int, Row]]:
    """The rows of all files with their running numbers, which go on from file to file.

    `at_block` gives for the file of an index who is to hear of its blocks. Of the first files only the rows `after`
    these places are given.
    """
    rows_before = 0
    for n, (each, place) in enumerate(with_places(inputs, after)):
        for number, row in each.rows(at_block(n) if at_block else None, place):
            yield rows_before + number, row
        rows_before += each.row_count


def open_inputs(path: str, reading: InputOptions, stdin: BinaryIO, spool_dir: Path | None) -> Iterator[Input]:
    """The inputs of one path: a file, a pipe, "-" for `stdin`, or the files of a folder. Raises InputError."""
    if path == "-":
        yield _told(LineFile(STDIN, spool(stdin, STDIN, spool_dir)), reading)
    elif Path(path).is_dir():
        yield from _in_folder(Path(path), reading)
    else:
        yield _told(LineFile(path, spool_path(path, spool_dir) if is_read_once(path) else None), reading)


def _told(file: LineFile, reading: InputOptions) -> Input:
    """The input of a file, its format as the user says, or else by its name, or else by its first bytes."""
    try:
        return Input(file, reading.format, reading) if reading.format else _guessed(file, reading)
    except InputError:
        file.close()
        raise


def _guessed(file: LineFile, reading: InputOptions) -> Input:
    path = Path(file.name)
    ending = (path.with_suffix("") if path.suffix in _PACKED else path).suffix.lower()
    if format_ := _BY_NAME.get(ending):
        return Input(file, format_, reading)
    begin = file.begin()
    if begin.startswith(_PARQUET):
        return Input(file, Format.PARQUET, reading, guess="read as Parquet")
    if ending == ".txt":
        if _is_a_job(begin):
            return Input(file, Format.JSONL, reading, guess="read as JSONL, since its first line is a job")
        return Input(file, Format.TEXT, reading, guess="read as text, a prompt a line")
    if begin.lstrip()[:1] == b"[" or (ending == ".json" and not _is_a_job(begin)):
        return Input(file, Format.JSON, reading, guess="" if ending == ".json" else "read as JSON")
    if not begin or begin.isspace() or begin.lstrip()[:1] == b"{":
        return Input(file, Format.JSONL, reading, guess="read as JSONL" if ending == ".json" else "")
    right = f"give --input-format, one of {_CHOICES}"
    raise InputError(f"{file.name}: neither its name nor its first bytes tell how it is written", right)


def _is_a_job(begin: bytes) -> bool:
    """Whether the first line that is not blank is an object by itself, and has a prompt or more lines behind it."""
    first, newline, rest = begin.lstrip().partition(b"\n")
    try:
        value = msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(value, dict) and ("prompt" in value or bool(newline and rest.strip()))


def _in_folder(folder: Path, reading: InputOptions) -> Iterator[Input]:
    """A Hugging Face dataset as `save_to_disk` writes it, Parquet files, or texts of a prompt each."""
    if (folder / "state.json").is_file():
        for name in parquet.files_of(folder):
            yield Input(LineFile(str(name)), Format.ARROW, reading)
        return
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(str(each.parent) for each in sorted(folder.glob("*/state.json")))
        raise InputError(f"{folder}: it is a dataset of several splits", f"name the one you mean: {splits}")
    files = sorted(
        (each for each in folder.iterdir() if each.is_file()), key=lambda each: natural_sort_key(each.name)
    )
    seen = [each for each in files if not each.name.startswith(".")]
    for ending, format_ in ((".parquet", Format.PARQUET), (".txt", Format.TEXT_FILE)):
        if chosen := [each for each in seen if each.suffix.lower() == ending]:
            left = len(seen) - len(chosen)
            others = f"; {left:,} other files in it are left alone" if left else ""
            for n, each in enumerate(chosen):
                opened = Input(LineFile(str(each)), format_, reading)
                if not n:
                    what = "texts of a prompt each" if format_ is Format.TEXT_FILE else "Parquet files"
                    opened.said.append(f"{folder}: {len(chosen):,} {what}{others}")
                yield opened
            return
    raise InputError(f"{folder}: it is a folder without texts (.txt) or Parquet files", "name the job files in it")


def natural_sort_key(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts `p10` behind `p9`."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _NUMBERS.split(name)]
