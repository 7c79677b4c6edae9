"""What a user says of job files comes in; how they are read goes out: format, columns, template, sweep."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from krea_batch.sources.sweep import Axis


class Format(StrEnum):
    """How the jobs of a file are written."""

    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    TEXT = "text"
    PARQUET = "parquet"
    ARROW = "arrow"
    TEXT_FILE = "page"


CHOSEN = (Format.JSONL, Format.JSON, Format.CSV, Format.TSV, Format.TEXT, Format.PARQUET)
"""What a user may name; the others are found in folders."""


class InputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How job files are read.

    `format` None: told from the name and the first bytes. `keep_extra`: unknown fields go into the metadata.
    `columns` says for a field of a job which column or key holds it; an empty name: none does. `comments`: lines of a
    text that begin with # are none of its prompts. `dedupe`: a job that asks for what an earlier one asks for is left
    out. `template` is the prompt with names in braces. `axes` are swept for every row.
    """

    format: Format | None = None
    keep_extra: bool = False
    columns: Mapping[str, str] = {}
    skip_comments: bool = False
    dedupe: bool = False
    template: str = ""
    axes: tuple[Axis, ...] = ()

    def fingerprint(self) -> str:
        """The same for two readings that make the same jobs of the same bytes."""
        return msgspec.json.encode(self, order="deterministic").decode()

    def names_columns(self) -> dict[str, Any]:
        """The names of columns or keys that stand for a field by another name: column to field."""
        return {column: field for field, column in self.columns.items() if column and column != field}
