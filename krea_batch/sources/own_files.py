"""Reads files that krea-batch itself has written, `results.jsonl` and exports, as jobs.

The jobs are those of the run: the same ids, requests and metadata. What a run adds, such as request_id and sha256, is
left out, and a notice says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from krea_batch.errors import JobError
from krea_batch.jobs import FIELDS
from krea_batch.sources.formats.renamed_keys import parse_row

EXPORT_COLUMNS = frozenset(
    {"request_id", "width", "height", "bytes", "sha256", "submitted_at", "stored_at", "rating"}
)
"""The columns of an export that are not fields of a job, in every format."""

METADATA_PREFIX = "metadata."
"""In CSV, each key of the metadata is a column with this prefix."""

_PLACES = ("path", "file_name", "image")  # where the image of a row is: CSV, imagefolder, Parquet
_RESULT_KEYS = frozenset({"id", "status", "request_id", "files", "request", "metadata", "polls", "attempts"})
_ESCAPED_CELL = re.compile(r"'('|\s*[=+\-@＝＋－＠]|[\t\r\n])")  # maintenance.export.writers: read the other way

RESULTS_NOTICE = "read as the results of a run: its requests are jobs again, whatever became of them"
EXPORT_NOTICE = "read as an export of krea-batch; request_id, sha256 and others that a run adds are left out"


def is_export(names: Collection[str]) -> bool:
    """Return whether a row or table with these names is an export of krea-batch."""
    return EXPORT_COLUMNS.issubset(names) and {"id", "prompt"}.issubset(names)


def is_added_by_run(name: str) -> bool:
    """Return whether a column of an export is not a part of the job."""
    return name in EXPORT_COLUMNS or name in _PLACES


def unescape_cell(cell: str) -> str:
    """Return the text of a CSV cell of an export, without the apostrophe that an export adds to some texts."""
    return cell[1:] if _ESCAPED_CELL.match(cell) else cell


def jsonl_notice(head: bytes) -> str | None:
    """Return what the beginning of a JSONL file is, if krea-batch has written it."""
    try:
        row = msgspec.json.decode(head.lstrip().partition(b"\n")[0])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    if row.keys() >= _RESULT_KEYS:
        return RESULTS_NOTICE
    return EXPORT_NOTICE if is_export(row) else None


def jsonl_rows(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, dict[str, Any] | JobError]]:
    """Yield the jobs of results, or of an imagefolder, which has a row for each image of a job."""
    last_id = None
    for number, line in lines:
        row = parse_row(line)
        if isinstance(row, JobError):
            yield number, row
        elif row.keys() >= _RESULT_KEYS and isinstance(row["request"], dict):
            yield number, row["request"] | {"id": row["id"], "metadata": row["metadata"]}
        elif is_export(row):
            if row["id"] != last_id:
                yield number, {name: value for name, value in row.items() if name in FIELDS}
            last_id = row["id"]
        else:
            yield number, row
