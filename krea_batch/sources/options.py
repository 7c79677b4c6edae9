"""How job files are read: format, columns, template, sweep, prompt syntax."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from krea_batch.sources.sweep import Axis


class Format(StrEnum):
    """The format of a job file."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    SHEET = "sheet"
    YAML = "yaml"
    MARKDOWN = "markdown"
    TEXT = "text"
    PARQUET = "parquet"
    ARROW = "arrow"
    TEXT_FILE = "text file"
    TEXT_BLOCKS = "text blocks"


SELECTABLE = (
    Format.JSONL,
    Format.JSON,
    Format.CSV,
    Format.TSV,
    Format.SHEET,
    Format.TEXT,
    Format.PARQUET,
    Format.YAML,
    Format.MARKDOWN,
)
"""The formats that a user may name; the others are found in directories."""

FORMAT_BY_SUFFIX = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".parquet": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".yaml": Format.YAML,
    ".yml": Format.YAML,
    ".md": Format.MARKDOWN,
    ".markdown": Format.MARKDOWN,
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), Format.SHEET),
}
"""The formats that are recognised by the file name alone; JSON and text are recognised by their content."""

COMPRESSED_SUFFIXES = (".gz", ".zst")


class TextUnit(StrEnum):
    """What one prompt is in a text file."""

    LINE = "line"
    FILE = "file"


class PromptSyntax(StrEnum):
    """The syntax of another tool that is read in prompts; PLAIN sends what is not read as it is."""

    DYNAMIC = "dynamic"
    A1111 = "a1111"
    MIDJOURNEY = "midjourney"
    PLAIN = "plain"


class InputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How job files are read.

    `format`: None to detect it from the name and the first bytes. `keep_extra`: put unknown fields into the metadata.
    `columns`: field of a job to the column or key that has it; an empty name means none. `skip_comments`: ignore
    lines of a text that start with #. `dedupe`: drop a job whose request duplicates an earlier one. `template`: the
    prompt with column names in braces. `axes`: sweeps that apply to every row. `encoding`: of text without a byte
    order mark, as `encoding_name` returns it; empty for UTF-8. `no_header`: the first row of a table is a job, and
    its columns are named 1, 2, and so on. `sheet`: its name in a workbook; empty for the first. `text_unit`: what one
    prompt of a text file is; None for a line, and in a directory for a file. `separator`: the line between prompts in
    a text file. `prompt_syntax`: the syntaxes that are read in prompts. `wildcards`: the values of dynamic prompts by
    name. `fixed`: values of fields that apply to every row. `limit`: take the first jobs only. `sample`: take only so
    many jobs, chosen by `sample_seed`. `submit_changed`: a row without an id that may have been changed since an
    earlier run is a new job. `name`: a template of the `image_name` of each job, see `rules.image_names`; empty for
    none. `portable_names`: the names of images have only lower-case ASCII letters, digits, `.`, `_` and `-`.
    """

    format: Format | None = None
    keep_extra: bool = False
    columns: Mapping[str, str] = {}
    skip_comments: bool = False
    dedupe: bool = False
    template: str = ""
    axes: tuple[Axis, ...] = ()
    encoding: str = ""
    no_header: bool = False
    sheet: str = ""
    text_unit: TextUnit | None = None
    separator: str = ""
    prompt_syntax: tuple[PromptSyntax, ...] = ()
    wildcards: Mapping[str, Sequence[str]] = {}
    fixed: Mapping[str, Any] = {}
    limit: int | None = None
    sample: int | None = None
    sample_seed: int = 0
    submit_changed: bool = False
    name: str = ""
    portable_names: bool = False

    def fingerprint(self) -> str:
        """Return a text that is equal for options that make the same jobs from the same bytes."""
        syntaxes = tuple(sorted({*self.prompt_syntax} - {PromptSyntax.PLAIN}))
        relevant = msgspec.structs.replace(self, prompt_syntax=syntaxes, wildcards={})
        fingerprint = msgspec.json.encode(relevant, order="deterministic").decode()
        if not self.wildcards:
            return fingerprint
        return fingerprint + hashlib.sha256(msgspec.json.encode(self.wildcards, order="deterministic")).hexdigest()

    @property
    def chooses_text(self) -> bool:
        """Whether an option says what one prompt of a text file is."""
        return self.text_unit is not None or bool(self.separator)

    def text_format(self) -> Format:
        """Return the format in which a text file is read."""
        if self.separator:
            return Format.TEXT_BLOCKS
        return Format.TEXT_FILE if self.text_unit is TextUnit.FILE else Format.TEXT

    @property
    def selects(self) -> bool:
        """Whether some of the jobs are left out."""
        return self.limit is not None or self.sample is not None
