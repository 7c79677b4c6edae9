"""Formats that users may pass but that are not read, and how their prompts can be read."""

from __future__ import annotations

from krea_batch.errors import InputError

_ONE_A_LINE = "write its prompts into a .txt file, one per line"
_DOCUMENT = ("a text document, which is not read", _ONE_A_LINE)
_WEB_PAGE = ("a web page, which is not read", _ONE_A_LINE)
_ARCHIVE = ("an archive, which is not read", "unpack it, and name the files in it")
_COMPRESSED = ("compressed in a way that is not read", "decompress it, or compress it with gzip or zstd")
_OTHER_TABLE = ("a table in a format that is not read", "save it as Parquet or CSV")
_IMAGE = ("an image, not a list of prompts", _ONE_A_LINE)

_PROBLEM_AND_HINT_BY_SUFFIX = {
    ".numbers": ("an Apple Numbers document, which is not read", "export it as CSV or Excel: File > Export To"),
    ".gsheet": ("a link to a Google sheet, not the sheet", "download the sheet as CSV: File > Download"),
    ".gdoc": ("a link to a Google document, not the document", _ONE_A_LINE),
    ".fods": ("a flat OpenDocument sheet, which is not read", "save it as .ods or CSV"),
    ".toml": ("TOML, which is not read", "write JSON or CSV"),
    ".xml": ("XML, which is not read", "write JSON or CSV"),
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".pages", ".pdf"), _DOCUMENT),
    **dict.fromkeys((".html", ".htm"), _WEB_PAGE),
    **dict.fromkeys((".zip", ".7z", ".rar", ".tar", ".tgz"), _ARCHIVE),
    **dict.fromkeys((".xz", ".bz2", ".br", ".lz4"), _COMPRESSED),
    **dict.fromkeys((".feather", ".orc", ".avro", ".sqlite", ".db", ".pkl", ".pickle", ".h5", ".dta"), _OTHER_TABLE),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif"), _IMAGE),
}


_PROBLEM_AND_HINT_BY_START = (
    (b"version https://git-lfs.github.com/spec/", ("a Git LFS pointer, not the file itself", "run git lfs pull")),
    (b"%PDF-", ("a PDF document, which is not read", _ONE_A_LINE)),
    (b"\x89PNG\r\n", _IMAGE),
    (b"\xff\xd8\xff", _IMAGE),
    (b"<!doctype html", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
    (b"\x1f\x8b", ("compressed twice", "decompress it once")),
    (b"BZh", _COMPRESSED),
    (b"\xfd7zXZ\0", _COMPRESSED),
    (b"SQLite format 3\0", _OTHER_TABLE),
)
"""First bytes in lower case where that makes no difference, and what to do with a file that has them."""


def require_readable_start(name: str, head: bytes) -> None:
    """Raise InputError for a file whose content is of a format that is not read, whatever its name says."""
    for start, (problem, hint) in _PROBLEM_AND_HINT_BY_START:
        if head.startswith(start) or head[: len(start)].lower() == start:
            raise InputError(f"{name}: {problem}", hint)


def require_readable(name: str, suffix: str) -> None:
    """Raise InputError for a file whose suffix is that of a format that is not read."""
    if found := _PROBLEM_AND_HINT_BY_SUFFIX.get(suffix):
        problem, hint = found
        raise InputError(f"{name}: {problem}", hint)
