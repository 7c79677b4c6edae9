"""Contents of binary files for the cases."""

from __future__ import annotations

import gzip
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.sources.workbooks import Sheets, write_xlsx


def workbook(sheets: Sheets) -> bytes:
    """Return an .xlsx file with these sheets."""
    content = BytesIO()
    write_xlsx(content, sheets)
    return content.getvalue()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Return a Parquet file of these rows."""
    content = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


def gzipped(text: str) -> bytes:
    """Return compressed text."""
    return gzip.compress(text.encode(), mtime=0)
