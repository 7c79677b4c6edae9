"""Finds out how the text of a job file is encoded, and converts it to UTF-8 with LF as line end.

The encoding is not guessed from the content. A byte order mark takes precedence, then the encoding that the user
names, then UTF-8.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from itertools import chain

from krea_batch.errors import InputError, JobError

OnNotice = Callable[[str], None]

UTF_8 = "utf-8"
BYTE_ORDER_MARK = "\ufeff"
"""It may also begin a later line, if files were concatenated; it is then not part of the line."""

UTF_8_HINT = (
    'save the file as UTF-8 (in Excel "CSV UTF-8"), or read it with --encoding cp1252 if Excel or Windows wrote it'
)
LINE_ENDS_HINT = "convert them: tr '\\r' '\\n' < OLD > NEW"

# The Unicode Standard, section 23.8. The mark of UTF-32 begins with that of UTF-16, so it comes first.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CR_ENDS_THE_FIRST_LINE = re.compile(rb"[^\r\n]*\r+[^\r\n]")
_EXCERPT = re.compile(r"[^\r\n]{0,20}[^\x00-\x7f][^\r\n]{0,20}")  # chosen: enough to see whether umlauts are right


class EncodingError(JobError):
    """A row is not UTF-8. It is reported once for a file, since the other rows are encoded in the same way."""


def decode_utf_8(content: bytes) -> str:
    """Return the text. Raises EncodingError with the position of the first byte that is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8"
        raise EncodingError(problem, UTF_8_HINT) from None


def encoding_name(name: str) -> str:
    """Return the standard name of an encoding. Raises JobError if it is unknown or not one of text."""
    try:
        standard_name = codecs.lookup(name).name
        codecs.getincrementaldecoder(standard_name)
        b"x".decode(standard_name, "replace")  # fails for base64 and others that do not encode text
    except (LookupError, ValueError):
        raise JobError(
            f"unknown encoding {name!r}", "use utf-8, utf-16, cp1252, or another name that Python knows"
        ) from None
    return UTF_8 if standard_name == "utf-8-sig" else standard_name


def find_encoding(first: bytes, chosen: str, name: str) -> tuple[str, int]:
    """Return the encoding of a file and the size of its byte order mark, by its first bytes and the chosen encoding.

    Raises InputError for UTF-16 without a mark, if no encoding is chosen.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if first.startswith(mark):
            return encoding, len(mark)
    if not chosen and b"\0" in first[:2]:
        likely = "utf-16-be" if first[:1] == b"\0" else "utf-16-le"
        problem = f"{name}: seems to be encoded as UTF-16 without a byte order mark"
        raise InputError(problem, f"read it with --encoding {likely}, or save it as UTF-8")
    return chosen or UTF_8, 0


def to_utf_8(blocks: Iterator[bytes], encoding: str, name: str, on_notice: OnNotice) -> Iterator[bytes]:
    """Yield the blocks as UTF-8. Raises InputError for bytes that the encoding does not have."""
    decoder = codecs.getincrementaldecoder(encoding)()
    utf_8_decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder(UTF_8)()
    excerpt = ""
    line_count = 1
    for block in chain(blocks, [b""]):
        is_last = not block
        try:
            text = decoder.decode(block, is_last)
        except UnicodeDecodeError as error:
            line = line_count + error.object[: error.start].decode(encoding, "replace").count("\n")
            problem = f"{name}:{line}: byte 0x{error.object[error.start]:02x} is not {encoding} ({error.reason})"
            raise InputError(problem, "name the encoding of the file with --encoding, or save it as UTF-8") from None
        if not excerpt and not text.isascii() and (match := _EXCERPT.search(text)):
            excerpt = match[0]
        line_count += text.count("\n")
        utf_8_decoder = _decoder_if_valid(utf_8_decoder, block, is_last=is_last)
        yield text.encode(errors="surrogatepass")  # half a surrogate pair is reported with its row
    on_notice(f"read as {encoding}" + (f": {excerpt}" if excerpt else ""))
    if excerpt and utf_8_decoder:
        on_notice(f"is valid UTF-8, too; leave out --encoding {encoding} if the letters above are wrong")


def _decoder_if_valid(
    decoder: codecs.IncrementalDecoder | None, block: bytes, *, is_last: bool
) -> codecs.IncrementalDecoder | None:
    """Return the decoder if it can decode the next block, too, else None."""
    if decoder is None:
        return None
    try:
        decoder.decode(block, is_last)
    except UnicodeDecodeError:
        return None
    return decoder


def has_cr_line_ends(first: bytes) -> bool:
    """Return whether the first line of a text ends with CR alone, as in files of old Macs."""
    return bool(_CR_ENDS_THE_FIRST_LINE.match(first))
