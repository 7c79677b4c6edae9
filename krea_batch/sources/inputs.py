"""Opens inputs by path and yields their numbered rows, in the same form for all formats.

A row is one of three things: the bytes of a JSONL line, which a fast parser reads; the fields of a job, from any
other format; or a JobError for a row that cannot be read. Rows are numbered by line if the format has lines, else by
record, and the numbers continue from file to file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from io import BufferedReader, BytesIO
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO

import msgspec

from krea_batch.errors import InputError
from krea_batch.sources import data_sets, own_files
from krea_batch.sources.folder_texts import TextCount, is_job_file, left_out_note, require_utf_8_name
from krea_batch.sources.formats import json_document, markdown, parquet, sheet, tables, text, yaml_document
from krea_batch.sources.formats.line_file import FILE_START, FilePosition, LineFile, OnBlock, as_input_errors
from krea_batch.sources.formats.renamed_keys import KeyRenamer, Row
from krea_batch.sources.formats.spool import is_read_once, spool, spool_path
from krea_batch.sources.formats.unread import require_readable, require_readable_start
from krea_batch.sources.key_paths import wrapper_path
from krea_batch.sources.options import COMPRESSED_SUFFIXES, FORMAT_BY_SUFFIX, SELECTABLE, Format, InputOptions
from krea_batch.storage.image_types import MEDIA_TYPES

SOURCE_FILE = "source_file"
"""Key of the metadata: the file of a directory that a row comes from."""

PROMPTS_NAME = "--prompt"
MIN_LIST_ITEMS = 3  # chosen: fewer lines may begin with a number or a hyphen by chance
STDIN_NAME = "<stdin>"  # the name of standard input in problems, as in compilers

_PROMPT_UNITS = {Format.TEXT: "line", Format.TEXT_FILE: "file", Format.TEXT_BLOCKS: "block"}
_TABLE_READERS = {Format.CSV: tables.csv_rows, Format.TSV: tables.tsv_rows, Format.SHEET: sheet.rows}
_PARQUET_MAGIC = b"PAR1"
_WRAPPED_LIST = re.compile(rb'\{\s*"[^"]*"\s*:\s*\[')
_JSON_START = re.compile(rb"""\s*(?:\[\s*["']|\[?\s*\{\s*["']|[\[{]\s*\n)""")
_QUOTED_ITEM = re.compile(rb"""\s*(["']).*\1\s*,\s*""")
_CODE_START = re.compile(rb"\s*\w+\s*=\s*[\[({]\s*")
_FIELD = re.compile(rb"\s*(?:prompt|seed|aspect_ratio|creativity)\s*[:=]", re.IGNORECASE)
_COMMENT = re.compile(rb"^[ \t]*#", re.MULTILINE)
_LIST_ITEM = re.compile(rb"\s*(?:[0-9]{1,6}[.)]|[-*+])\s+\S")
_DIGITS = re.compile(r"(\d+)")
_CHOICES = ", ".join(SELECTABLE)


class Input:
    """One file and its format. `notices` says what was guessed about it, once its rows have been read.

    `source_file` is put into the metadata of its rows. `text_count`: the lines of a text that may be one prompt or
    many, once its rows have been read; None if that is clear.
    """

    def __init__(
        self,
        file: LineFile,
        format_: Format,
        options: InputOptions,
        *,
        guess: str = "",
        source_file: str = "",
        text_count: TextCount | None = None,
    ) -> None:
        self.file = file
        file.encoding = options.encoding
        self.name = file.name
        self.format = format_
        self.notices = [f"{file.name}: {guess}"] if guess else []
        self.row_count = 0
        self.text_count = text_count
        self._source_file = source_file
        self._options = options
        self._renamer = KeyRenamer(options)
        self.directory = str(Path(file.name).parent)  # to which paths in its rows are relative
        self.on_read: Callable[[str], None] = lambda directory: None  # called when reading its rows starts
        self._keys_found = False  # whether all keys that options name were found

    @cached_property
    def _is_own_file(self) -> bool:
        """Whether krea-batch has written the file."""
        notice = own_files.jsonl_notice(self.file.head()) if self.format is Format.JSONL else None
        if notice:
            self._add_notice(notice)
        return notice is not None

    def rows(self, on_block: OnBlock | None = None, after: FilePosition = FILE_START) -> Iterator[tuple[int, Row]]:
        """Yield every row with its number, from 1. Raises InputError if the file cannot be read or has changed.

        `on_block` is called with the position reached, for formats that support checkpoints; only rows `after` such a
        position are yielded.
        """
        self.on_read(self.directory)
        if self._is_plain_jsonl():
            yield from self.file.lines(on_block, after)  # called directly, since a million lines go this way
            self.row_count = self.file.line_count
            self._add_file_notices()
            return
        self.row_count = 0
        for self.row_count, row in self._read(on_block, after):  # noqa: B020 - the last value is kept
            if self._source_file:
                row = self._with_source_file(row)  # noqa: PLW2901 - the same row, with more metadata
            yield self.row_count, self._without_extension(row) if self._options.columns.get("id") else row
        self.row_count = max(self.row_count, self.file.line_count)
        self._add_file_notices()

    def _is_plain_jsonl(self) -> bool:
        return (
            self.format is Format.JSONL
            and not self._options.columns
            and not self._source_file
            and not self._is_own_file
        )

    def _lines(self, on_block: OnBlock | None, after: FilePosition) -> Iterator[tuple[int, Row]]:
        """Return the rows of JSONL whose keys are renamed, or that krea-batch has written."""
        file, rename = self.file, self._renamer.rename
        if self._is_own_file:
            return ((number, rename(row)) for number, row in own_files.jsonl_rows(file.lines()))
        if not self._keys_found:
            self._renamer.require_keys(file.name, (line for _, line in file.lines()))
            self._keys_found = True
        return ((number, rename(line)) for number, line in file.lines(on_block, after))

    def _entries(self, source: json_document.Rows) -> Iterator[tuple[int, Row]]:
        rows = list(source)
        self._renamer.require_keys(self.name, (row for _, _, row in rows))
        return ((number, self._renamer.rename(row, key)) for number, key, row in rows)

    def _read(self, on_block: OnBlock | None, after: FilePosition) -> Iterator[tuple[int, Row]]:
        file, options, on_notice = self.file, self._options, self._add_notice
        match self.format:
            case Format.JSONL:
                return self._lines(on_block, after)
            case Format.TEXT:
                return text.lines(file, options, on_block, after)
            case Format.TEXT_FILE:
                return text.whole_file(file)
            case Format.TEXT_BLOCKS:
                return text.blocks(file, options.separator)
            case Format.JSON:
                return self._entries(json_document.rows(file, options, on_notice))
            case Format.YAML:
                return self._entries(yaml_document.rows(file, options, on_notice))
            case Format.MARKDOWN:
                return markdown.rows(file, on_notice)
            case Format.CSV | Format.TSV | Format.SHEET:
                return _TABLE_READERS[self.format](file, options, on_notice)
            case Format.PARQUET | Format.ARROW:
                return parquet.rows(file, options, on_notice, arrow=self.format is Format.ARROW)

    def _add_file_notices(self) -> None:
        for notice in self.file.notices:
            self._add_notice(notice)

    def _with_source_file(self, row: Row) -> Row:
        if not isinstance(row, dict):
            return row
        if self.text_count:
            self.text_count.count(row["prompt"])
        metadata = row.get("metadata", {})
        return row | {"metadata": {SOURCE_FILE: self._source_file} | metadata} if isinstance(metadata, dict) else row

    def _without_extension(self, row: Row) -> Row:
        """Return a row whose id is not followed by the extension of an image, since its image gets one."""
        job_id = row.get("id") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(job_id, str):
            return row
        stem, dot, extension = job_id.rpartition(".")
        if not stem or f"{dot}{extension.lower()}" not in (*MEDIA_TYPES, ".jpeg"):
            return row
        self._add_notice("the ids are names of images; their extension is left out, since each image gets its own")
        return row | {"id": stem}

    def _add_notice(self, notice: str) -> None:
        text = f"{self.name}: {notice}"
        if text not in self.notices:
            self.notices.append(text)


def with_positions(inputs: Sequence[Input], after: Sequence[FilePosition]) -> Iterator[tuple[Input, FilePosition]]:
    """Pair each input with the position after which its rows are to be read; by default its start."""
    return zip(inputs, chain(after, repeat(FILE_START)), strict=False)


def numbered_rows(
    inputs: Sequence[Input], on_block: Callable[[int], OnBlock] | None = None, after: Sequence[FilePosition] = ()
) -> Iterator[tuple[int, Row]]:
    """Yield the rows of all files with their running numbers, which continue from file to file.

    `on_block` returns the block callback for the file with an index. For the first files, only the rows `after` these
    positions are yielded.
    """
    rows_before = 0
    for file_index, (each, position) in enumerate(with_positions(inputs, after)):
        for number, row in each.rows(on_block(file_index) if on_block else None, position):
            yield rows_before + number, row
        rows_before += each.row_count


def open_inputs(
    path: str, options: InputOptions, stdin: BinaryIO | Callable[[], BinaryIO], spool_dir: Path | None
) -> Iterator[Input]:
    """Yield the inputs of a path: a file, a pipe, "-" for `stdin`, or the files of a directory. Raises InputError."""
    if not path:
        raise InputError("the name of a file is empty", "name a file, or . for all files of this directory")
    data_sets.require_local(path)
    with as_input_errors(path):
        if path == "-":
            source = stdin() if callable(stdin) else stdin
            yield _open_input(LineFile(STDIN_NAME, spool(source, STDIN_NAME, spool_dir)), options)
        elif Path(path).is_dir():
            yield from _open_folder(Path(path), options)
        else:
            spooled = spool_path(path, spool_dir) if is_read_once(path) else None
            opened = _open_input(LineFile(path, spooled), options)
            if spooled:
                opened.directory = ""  # that of a pipe means nothing
            yield opened


def prompts_input(prompts: Sequence[str], options: InputOptions) -> Input:
    """Return an input of prompts that are given directly, one row each."""
    content = b"".join(msgspec.json.encode({"prompt": prompt}) + b"\n" for prompt in prompts)
    return Input(
        LineFile(PROMPTS_NAME, BufferedReader(BytesIO(content))),
        Format.JSONL,
        msgspec.structs.replace(options, columns={}),
    )


def _open_input(file: LineFile, options: InputOptions) -> Input:
    """Open a file as input. Its format is the selected one, or detected from its name, or from its first bytes."""
    try:
        if options.format is Format.TEXT:
            return _text_input(file, options, is_guess=False)
        return Input(file, options.format, options) if options.format else _detect_format(file, options)
    except InputError:
        file.close()
        raise


def _detect_format(file: LineFile, options: InputOptions) -> Input:
    path = Path(file.name)
    suffix = (path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path).suffix.lower()
    require_readable(file.name, suffix)
    raw_head = file.raw_head()
    require_readable_start(file.name, raw_head)
    format_ = FORMAT_BY_SUFFIX.get(suffix)
    if format_ and format_ not in (Format.CSV, Format.TSV):
        return Input(file, format_, options)
    if raw_head.startswith(_PARQUET_MAGIC):
        return Input(file, Format.PARQUET, options, guess="read as Parquet")
    if raw_head.startswith(sheet.MAGICS):
        return Input(file, Format.SHEET, options, guess="read as a workbook")
    if format_:
        return Input(file, format_, options)
    file.encoding = options.encoding
    head = file.head()
    if suffix == ".txt" or (options.chooses_text and suffix != ".json"):
        if options.text_format() is Format.TEXT and _starts_with_job(head):
            return Input(file, Format.JSONL, options, guess="read as JSONL, because its first line is a job")
        _require_prompts(file.name, head, options)
        return _text_input(file, options)
    if head.lstrip()[:1] == b"[" or (suffix == ".json" and not _starts_with_job(head)) or _is_wrapped(head):
        return Input(file, Format.JSON, options, guess="" if suffix == ".json" else "read as JSON")
    if not head or head.isspace() or head.lstrip()[:1] == b"{":
        return Input(file, Format.JSONL, options, guess="read as JSONL" if suffix == ".json" else "")
    hint = f"set --input-format to one of {_CHOICES}"
    raise InputError(f"{file.name}: cannot detect the format from its name or first bytes", hint)


def _require_prompts(name: str, head: bytes, options: InputOptions) -> None:
    """Raise InputError for a text that begins like a table or JSON, unless options say what one prompt of it is."""
    if options.chooses_text:
        return
    if tables.starts_with_header(head):
        problem = f"{name}: the first line looks like the header of a table"
        raise InputError(problem, "set --input-format csv to read it as one, or text if it is a prompt")
    if _JSON_START.match(head):
        problem = f"{name}: the text begins like JSON"
        raise InputError(problem, "set --input-format json to read it as such, or text if these are prompts")
    first_line = next((line for line in head.splitlines() if line.strip()), b"")
    if _QUOTED_ITEM.fullmatch(first_line) or _CODE_START.fullmatch(first_line):
        problem = f"{name}: the text begins like a list in a program"
        raise InputError(
            problem, "leave out its quotes, commas and brackets, or set --input-format text to send them"
        )
    if _FIELD.match(first_line):
        problem = f"{name}: the first line begins with the name of a field"
        raise InputError(problem, "write only the prompts, or JSONL, or set --input-format text to send the lines")


def _text_input(file: LineFile, options: InputOptions, *, is_guess: bool = True) -> Input:
    """Return a text file as input, with what one prompt of it is."""
    format_ = options.text_format()
    guess = f"read as text, one prompt per {_PROMPT_UNITS[format_]}" if is_guess else ""
    opened = Input(file, format_, options, guess=guess)
    if is_guess and format_ is Format.TEXT and _is_list(file.head()):
        notice = "the lines begin with numbers or bullets, which are sent; --input-format markdown leaves them out"
        opened.notices.append(f"{file.name}: {notice}")
    if is_guess and format_ is Format.TEXT and not options.skip_comments and _COMMENT.search(file.head()):
        notice = "lines begin with #, which are sent as prompts; --skip-comments leaves them out"
        opened.notices.append(f"{file.name}: {notice}")
    return opened


def _is_list(head: bytes) -> bool:
    """Return whether the first lines that are not blank all begin like list items."""
    lines = [line for line in head.splitlines() if line.strip()][:MIN_LIST_ITEMS]
    return len(lines) == MIN_LIST_ITEMS and all(map(_LIST_ITEM.match, lines))


def _starts_with_job(head: bytes) -> bool:
    """Whether the first non-blank line is a complete object that has a prompt or is followed by more lines."""
    first, newline, rest = head.lstrip().partition(b"\n")
    try:
        value = msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(value, dict) and ("prompt" in value or bool(newline and rest.strip()))


def _is_wrapped(head: bytes) -> bool:
    """Whether this is the beginning of a document in one object, rather than of a job per line."""
    first, newline, rest = head.lstrip().partition(b"\n")
    if first.rstrip() == b"{":
        return True
    try:
        value = msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return bool(_WRAPPED_LIST.match(first))
    return not (newline and rest.strip()) and wrapper_path(value) is not None


def _open_folder(folder: Path, options: InputOptions) -> Iterator[Input]:
    """Open a Hugging Face dataset written by `save_to_disk`, Parquet files, or text files."""
    if (folder / "state.json").is_file():
        for name in parquet.dataset_files(folder):
            yield Input(LineFile(str(name)), Format.ARROW, options)
        return
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(str(each.parent) for each in sorted(folder.glob("*/state.json")))
        raise InputError(f"{folder}: a dataset with several splits", f"name one of them: {splits}")
    entries = sorted(folder.iterdir(), key=lambda each: natural_sort_key(each.name))
    visible = [each for each in entries if each.is_file() and is_job_file(each)]
    for suffix, format_ in ((".parquet", Format.PARQUET), (".txt", Format.TEXT_FILE)):
        if chosen := [each for each in visible if each.suffix.lower() == suffix]:
            for index, each in enumerate(chosen):
                opened = _open_in_folder(folder, each, format_, options)
                if not index:
                    kind = _kind_of_files(opened.format, len(chosen))
                    opened.notices.insert(0, f"{folder}: {kind}{left_out_note(entries, chosen)}")
                yield opened
            return
    yield from _open_data_set(folder, left_out_note(entries, ()), options)


def _open_data_set(folder: Path, left_out: str, options: InputOptions) -> Iterator[Input]:
    """Open the rows of an imagefolder, or the Parquet files of a dataset that was downloaded from the Hub."""
    metadata = folder / data_sets.METADATA_FILE
    if metadata.is_file():
        yield Input(LineFile(str(metadata)), Format.JSONL, options, guess="the rows of the images in its directory")
        return
    files = data_sets.snapshot_files(folder)
    if not files:
        raise data_sets.unreadable_folder(folder, left_out)
    count = f"{len(files):,} Parquet {'file' if len(files) == 1 else 'files'} of a dataset"
    for index, each in enumerate(files):
        yield Input(
            LineFile(str(each)),
            Format.PARQUET,
            options,
            guess="" if index else count,
            source_file=f"data/{each.name}",
        )


def _open_in_folder(folder: Path, path: Path, format_: Format, options: InputOptions) -> Input:
    """Open one file of a directory. A text file is one prompt unless options say something else."""
    require_utf_8_name(path)
    file, text_count, guess = LineFile(str(path)), None, ""
    if format_ is not Format.PARQUET:
        format_ = options.text_format()
        if not options.chooses_text and options.format is not Format.TEXT:
            format_, text_count = Format.TEXT_FILE, TextCount(str(folder))
        elif format_ is Format.TEXT and options.format is None and _starts_with_job(file.head()):
            format_, guess = Format.JSONL, "read as JSONL, because its first line is a job"
    return Input(file, format_, options, guess=guess, source_file=path.name, text_count=text_count)


def _kind_of_files(format_: Format, count: int) -> str:
    if format_ is Format.PARQUET:
        return f"{count:,} Parquet file{'s' * (count != 1)}"
    return f"{count:,} text file{'s' * (count != 1)}, one {'job' if format_ is Format.JSONL else 'prompt'} per " + (
        _PROMPT_UNITS.get(format_, "line")
    )


def natural_sort_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts `p10` after `p9`."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _DIGITS.split(name)]
