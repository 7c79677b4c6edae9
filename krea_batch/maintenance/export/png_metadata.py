"""A PNG and what is known of it come in; the same pixels with that in text chunks go out, and are read from there.

Newcomers: chunks are put in between others, so no pixel is decoded and nothing is compressed anew. Source of the
format: the PNG specification, third edition (W3C), sections 5.3 and 11.3.3.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from krea_batch.jobs import Outcome
from krea_batch.storage.png import SIGNATURE, PngError, PngValidator

PROMPT = "Description"  # a keyword of the PNG specification, 11.3.3.1, which image viewers show
SOFTWARE = "Software"  # as above
DETAILS = "krea-batch"  # chosen: everything as one JSON object
MAX_TEXT_BYTES = 1 << 22  # chosen: four times the longest line of a job file

_HEAD = struct.Struct(">I4s")
_AFTER_IHDR = len(SIGNATURE) + 8 + 13 + 4
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def texts_of(outcome: Outcome) -> dict[str, str]:
    """What is put into an image of this job: keyword to text."""
    details: dict[str, Any] = {
        "id": outcome.id,
        "request_id": outcome.request_id,
        "request": outcome.request,
        "metadata": outcome.metadata,
    }
    return {
        PROMPT: outcome.request["prompt"],
        SOFTWARE: f"krea-batch {_version()}",
        DETAILS: msgspec.json.encode(details).decode(),
    }


def with_texts(png: bytes, texts: dict[str, str]) -> bytes:
    """The PNG with these texts behind its IHDR. Those that it has under the same keywords are left out."""
    kept = b"".join(
        png[begin:end] for begin, end, kind, body in _chunks(png) if kind not in _TEXTS or _keyword(body) not in texts
    )
    added = b"".join(_chunk(b"iTXt", _international(keyword, text)) for keyword, text in texts.items())
    head = _AFTER_IHDR - len(SIGNATURE)
    return SIGNATURE + kept[:head] + added + kept[head:]


def texts_in(png: bytes) -> dict[str, str]:
    """The texts of a PNG, whoever wrote them: keyword to text. Raises PngError where it is no whole PNG."""
    walk = PngValidator()
    walk.feed(png)
    walk.finish()
    found: dict[str, str] = {}
    for _, _, kind, body in _chunks(png):
        if kind in _TEXTS:
            found[_keyword(body)] = _text(kind, body)
    return found


def _chunks(png: bytes) -> list[tuple[int, int, bytes, bytes]]:
    """Begin, end, kind and body of each chunk of a whole PNG; bodies of texts alone."""
    chunks, at = [], len(SIGNATURE)
    while at < len(png):
        length, kind = _HEAD.unpack_from(png, at)
        end = at + 12 + length
        chunks.append((at, end, kind, png[at + 8 : at + 8 + length] if kind in _TEXTS else b""))
        at = end
    return chunks


def _chunk(kind: bytes, body: bytes) -> bytes:
    return _HEAD.pack(len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def _international(keyword: str, text: str) -> bytes:
    """An iTXt body: not compressed, no language, no translated keyword."""
    return keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()


def _keyword(body: bytes) -> str:
    return body.partition(b"\0")[0].decode("latin-1")


def _text(kind: bytes, body: bytes) -> str:
    rest = body.partition(b"\0")[2]
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(rest[1:]).decode("latin-1")
    compressed = rest[:1] == b"\1"
    text = rest[2:].split(b"\0", 2)[-1]
    return (_inflated(text) if compressed else text).decode("utf-8", "replace")


def _inflated(data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, MAX_TEXT_BYTES)
    except zlib.error as error:
        raise PngError(f"a compressed text is damaged ({error})") from None
    if inflate.unconsumed_tail:
        raise PngError(f"a compressed text is longer than {MAX_TEXT_BYTES >> 20} MiB")
    return text


@cache
def _version() -> str:
    return version("krea-batch")
