"""Finds the request_id in an answer that is damaged or unexpected. Pure.

A request_id in the answer to a POST means that the job was accepted, and probably paid for, however damaged the
answer is. `read_json` reads an object in spite of damage elsewhere. `find_request_ids` finds request_ids in any
bytes; they are only candidates, and polls have to prove one.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any
from urllib.parse import unquote

MODEL_ID = "krea-2-large-text-to-image"  # API document, Error via Status/Webhook: model_id
KEPT_ANSWER_BYTES = 4096  # chosen: ten times a usual answer, and few enough to keep in the ledger
MAX_SEARCHED_BYTES = 1 << 20  # chosen: as wire.MAX_JSON_BYTES; limits what a small compressed body can become
_PIECE_BYTES = 256  # chosen: a damaged compressed body loses at most this much before the damage

_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW_DEFLATE = -zlib.MAX_WBITS  # what some servers send as "deflate"

# API document, Output: the model and a UUID, whose digits the document masks with x. A UUID has a fixed length, so
# one that was cut off is not taken for a complete one.
_UUID = "-".join(f"[A-Za-z0-9]{{{digits}}}" for digits in (8, 4, 4, 4, 12))
_REQUEST_ID = re.compile(rf"(?<![A-Za-z0-9_~.:-]){MODEL_ID}_{_UUID}(?![A-Za-z0-9_~:-])")

# The group is half a surrogate pair. The last alternative is every other escape, also that of a backslash.
_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)
_ASCII_ESCAPE = re.compile(r"\\u00([0-7][0-9a-fA-F])|\\([/nrt])")


def read_json(body: bytes) -> Any:
    """Return the JSON value of a body, or None if it is not one.

    A byte order mark, another encoding of Unicode, gzip and deflate are read. A byte that is no UTF-8 and half a
    surrogate pair become U+FFFD, so no string of the result contains a surrogate.
    """
    plain = decompress(body)
    text = plain.decode(json.detect_encoding(plain), "replace").strip("\ufeff\0 \t\r\n")
    try:
        return json.loads(_ESCAPE.sub(lambda match: "\\ufffd" if match[1] else match[0], text), strict=False)
    except (ValueError, RecursionError):
        return None


def find_request_ids(body: bytes) -> set[str]:
    """Return the strings in the body that are request_ids of this model."""
    # Without its zeros, UTF-16 or UTF-32 of an id is the id itself.
    text = decompress(body)[:MAX_SEARCHED_BYTES].replace(b"\0", b"").decode("ascii", "replace")
    text = unquote(_ASCII_ESCAPE.sub(_unescape, text))
    return set(_REQUEST_ID.findall(text))


def decompress(body: bytes) -> bytes:
    """Decompress gzip or deflate as far as possible, to at most 1 MiB. Return other bytes unchanged."""
    if body.startswith(b"\x1f\x8b"):
        return _inflate(body, _GZIP) or body
    if not body or body[0] in b"{[<\"' \t\r\n\xef\xfe\xff\0":  # text, or the byte order mark of text
        return body
    return _inflate(body, _ZLIB) or _inflate(body, _RAW_DEFLATE) or body


def _inflate(body: bytes, window_bits: int) -> bytes:
    inflater = zlib.decompressobj(window_bits)
    plain = bytearray()
    try:
        for start in range(0, len(body), _PIECE_BYTES):
            plain += inflater.decompress(body[start : start + _PIECE_BYTES], MAX_SEARCHED_BYTES)
            if len(plain) >= MAX_SEARCHED_BYTES:
                break
    except zlib.error:
        pass  # what came before the damage may contain the id
    return bytes(plain[:MAX_SEARCHED_BYTES])


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else {"/": "/"}.get(match[2], " ")
