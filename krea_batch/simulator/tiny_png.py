"""Text to carry and a size come in; the bytes of a small valid PNG go out, without Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from random import Random

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def tiny_png(width: int, height: int, seed: int, text: Mapping[str, str], about_bytes: int = 0) -> bytes:
    """A PNG of one colour; with `about_bytes`, of noise that does not compress, about that large."""
    colour = bytes((seed & 0xFF, seed >> 8 & 0xFF, seed >> 16 & 0xFF))
    if about_bytes > 200:
        width = max(1, width)
        height = max(1, (about_bytes - 200) // (width * 3 + 1))
        noise = Random(seed).randbytes(width * 3 * height)
        rows = b"".join(b"\0" + noise[row : row + width * 3] for row in range(0, len(noise), width * 3))
        packed = zlib.compress(rows, 0)
    else:
        packed = zlib.compress((b"\0" + colour * width) * height, 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    notes = b"".join(chunk(b"iTXt", itxt(key, value)) for key, value in text.items())
    return SIGNATURE + chunk(b"IHDR", head) + notes + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of the PNG specification, 5.3."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def itxt(key: str, value: str) -> bytes:
    """The data of an uncompressed iTXt chunk (PNG specification, 11.3.3.4)."""
    return key.encode("latin-1") + b"\0\0\0\0\0" + value.encode("utf-8")
