"""The headers of a download come in; which bytes to send goes out (RFC 9110, sections 13.1.5 and 14). Pure."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})-(\d{0,18})")


def wanted(header: str | None, if_range: str | None, etag: str, length: int) -> tuple[int, int] | None:
    """The first byte to send and the one after the last, or None where the answer is 416.

    The whole is sent where no range is asked for, where it is malformed or of several parts, and where If-Range
    names another version; dates in If-Range name none, since no Last-Modified was given.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or (if_range is not None and if_range != etag):
        return 0, length
    first, last = match[1], match[2]
    if not first:
        if not last:
            return 0, length
        return (max(0, length - int(last)), length) if int(last) else None
    start, stop = int(first), int(last) + 1 if last else length
    if last and stop <= start:
        return 0, length
    return (start, min(stop, length)) if start < length else None
