"""Embed text chunks in a PNG without changing its pixels, and read them.

Chunks are inserted between existing ones, so no pixel is decoded and nothing is compressed again. Source of the
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
from krea_batch.storage.png import SIGNATURE, PngError, PngValidator, make_chunk

PROMPT_KEYWORD = "Description"  # a keyword of the PNG specification, 11.3.3.1, which image viewers show
SOFTWARE_KEYWORD = "Software"  # as above
DETAILS_KEYWORD = "krea-batch"  # chosen: id, request_id, request and metadata as one JSON object
MAX_TEXT_BYTES = 1 << 22  # chosen: four times the longest line of a job file

_LENGTH_AND_TYPE = struct.Struct(">I4s")
_AFTER_IHDR = len(SIGNATURE) + 8 + 13 + 4
_TEXT_CHUNK_TYPES = (b"tEXt", b"zTXt", b"iTXt")


def texts_for(outcome: Outcome) -> dict[str, str]:
    """Return the texts to embed in an image of this job: keyword to text."""
    details: dict[str, Any] = {
        "id": outcome.id,
        "request_id": outcome.request_id,
        "request": outcome.request,
        "metadata": outcome.metadata,
    }
    return {
        PROMPT_KEYWORD: outcome.request["prompt"],
        SOFTWARE_KEYWORD: f"krea-batch {_version()}",
        DETAILS_KEYWORD: msgspec.json.encode(details).decode(),
    }


def embed_texts(png: bytes, texts: dict[str, str]) -> bytes:
    """Return the PNG with these texts after its IHDR chunk, as iTXt chunks.

    Existing texts with the same keywords are replaced, others are kept. `png` must be a valid PNG.
    """
    kept = b"".join(
        png[start:end]
        for start, end, chunk_type, body in _parse_chunks(png)
        if chunk_type not in _TEXT_CHUNK_TYPES or _decode_keyword(body) not in texts
    )
    added = b"".join(make_chunk(b"iTXt", _itxt_body(keyword, text)) for keyword, text in texts.items())
    ihdr_bytes = _AFTER_IHDR - len(SIGNATURE)
    return SIGNATURE + kept[:ihdr_bytes] + added + kept[ihdr_bytes:]


def read_texts(png: bytes) -> dict[str, str]:
    """Return the texts of a PNG: keyword to text.

    Raises PngError if it is not a complete PNG, or if a compressed text is damaged, or all of them
    are longer than MAX_TEXT_BYTES.
    """
    validator = PngValidator()
    validator.feed(png)
    validator.finish()
    texts: dict[str, str] = {}
    left_bytes = MAX_TEXT_BYTES
    for _, _, chunk_type, body in _parse_chunks(png):
        if chunk_type in _TEXT_CHUNK_TYPES:
            text, inflated_bytes = _decode_text(chunk_type, body, left_bytes)
            texts[_decode_keyword(body)] = text
            left_bytes -= inflated_bytes
    return texts


def _parse_chunks(png: bytes) -> list[tuple[int, int, bytes, bytes]]:
    """Return start, end, type and body of each chunk of a complete PNG; bodies only for text chunks."""
    chunks, offset = [], len(SIGNATURE)
    while offset < len(png):
        length, chunk_type = _LENGTH_AND_TYPE.unpack_from(png, offset)
        end = offset + 12 + length
        chunks.append(
            (
                offset,
                end,
                chunk_type,
                png[offset + 8 : offset + 8 + length] if chunk_type in _TEXT_CHUNK_TYPES else b"",
            )
        )
        offset = end
    return chunks


def _itxt_body(keyword: str, text: str) -> bytes:
    """Return an iTXt body: uncompressed, without language or translated keyword."""
    return keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()


def _decode_keyword(body: bytes) -> str:
    return body.partition(b"\0")[0].decode("latin-1")


def _decode_text(chunk_type: bytes, body: bytes, max_bytes: int) -> tuple[str, int]:
    """Return the text of a chunk, and how many bytes of it were compressed before: at most `max_bytes`."""
    rest = body.partition(b"\0")[2]
    if chunk_type == b"tEXt":
        return rest.decode("latin-1"), 0
    if chunk_type == b"zTXt":
        text = _inflate(rest[1:], max_bytes)
        return text.decode("latin-1"), len(text)
    text = rest[2:].split(b"\0", 2)[-1]
    if rest[:1] != b"\1":
        return text.decode("utf-8", "replace"), 0
    text = _inflate(text, max_bytes)
    return text.decode("utf-8", "replace"), len(text)


def _inflate(data: bytes, max_bytes: int) -> bytes:
    """Decompress a text. The limit protects against small chunks that expand to gigabytes."""
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(data, max_bytes + 1)  # 0 would mean no limit
    except zlib.error as error:
        raise PngError(f"a compressed text is damaged ({error})") from None
    if len(text) > max_bytes:
        raise PngError(f"compressed texts are longer than {MAX_TEXT_BYTES >> 20} MiB")
    return text


@cache
def _version() -> str:
    return version("krea-batch")
