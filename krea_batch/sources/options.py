"""How job files are read: format, columns, template, sweep."""

from __future__ import annotations

from collections.abc import Mapping
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
    TEXT = "text"
    PARQUET = "parquet"
    ARROW = "arrow"
    TEXT_FILE = "text file"


SELECTABLE = (Format.JSONL, Format.JSON, Format.CSV, Format.TSV, Format.SHEET, Format.TEXT, Format.PARQUET)
"""The formats that a user may name; the others are found in directories."""


class InputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How job files are read.

    `format`: None to detect it from the name and the first bytes. `keep_extra`: put unknown fields into the metadata.
    `columns`: field of a job to the column or key that has it; an empty name means none. `skip_comments`: ignore
    lines of a text that start with #. `dedupe`: drop a job whose request duplicates an earlier one. `template`: the
    prompt with column names in braces. `axes`: sweeps that apply to every row. `encoding`: of text without a byte
    order mark, as `encoding_name` returns it; empty for UTF-8. `no_header`: the first row of a table is a job, and
    its columns are named 1, 2, and so on. `sheet`: its name in a workbook; empty for the first.
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

    def fingerprint(self) -> str:
        """Return a text that is equal for options that make the same jobs from the same bytes."""
        return msgspec.json.encode(self, order="deterministic").decode()

    def field_by_column(self) -> dict[str, Any]:
        """Return the columns or keys that have another name than their field: column to field."""
        return {column: field for field, column in self.columns.items() if column and column != field}
