"""Text to carry and perhaps a size in bytes come in; a small valid PNG goes out, without Pillow.

Newcomers: with a size the pixels are noise that does not compress, as a photograph's hardly do, and a private
chunk fills the file to the byte.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from random import Random

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LONG_SIDE = 24  # pixels; chosen: the eight ratios are still told apart
_NOISE_BYTES = 1 << 16


def tiny_picture(text: Mapping[str, str], chance: str, size_bytes: int = 0) -> bytes:
    """A PNG of one colour, or of noise and exactly `size_bytes` large. The ratio is the one that `text` names."""
    colour = hashlib.blake2b(f"{text['prompt']}\0{chance}".encode("utf-8", "surrogatepass"), digest_size=3).digest()
    wide = _wide(text["aspect_ratio"])
    notes = text_chunks(text)
    if size_bytes:
        return _padded(wide, colour, notes, size_bytes)
    width, height = (LONG_SIDE, round(LONG_SIDE / wide)) if wide >= 1 else (round(LONG_SIDE * wide), LONG_SIDE)
    pixels = zlib.compress((b"\0" + colour * width) * height, 1)
    return png(width, height, pixels, notes)


def png(width: int, height: int, packed: bytes, notes: bytes) -> bytes:
    """A PNG of 8-bit RGB: filtered rows, packed by zlib, and chunks to carry along."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join((SIGNATURE, chunk(b"IHDR", head), notes, chunk(b"IDAT", packed), chunk(b"IEND", b"")))


def text_chunks(text: Mapping[str, str]) -> bytes:
    """Uncompressed iTXt chunks (PNG specification, 11.3.3.4)."""
    return b"".join(
        chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode("utf-8", "replace"))
        for key, value in text.items()
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk (PNG specification, 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


@cache
def _wide(ratio: str) -> float:
    across, _, down = ratio.partition(":")
    return float(across) / float(down)


@cache
def _noise() -> bytes:
    return Random(0).randbytes(_NOISE_BYTES)


def _padded(wide: float, colour: bytes, notes: bytes, size_bytes: int) -> bytes:
    room = size_bytes - len(notes) - 600  # signature, chunks and zlib's own framing take less
    height = max(1, math.isqrt(int(max(1, room) / 3.05 / wide)))
    width = max(1, round(height * wide))
    noise = _noise()
    start = int.from_bytes(colour) % _NOISE_BYTES
    line = b"\0" + colour * width
    length = len(line) * height
    turns = length // _NOISE_BYTES + 2
    rows = bytearray((noise * turns)[start : start + length])
    rows[:: len(line)] = bytes(height)  # filter 0 begins each row
    rows[: len(line)] = line
    picture = png(width, height, zlib.compress(rows, 0), notes)
    missing = size_bytes - len(picture)
    if missing < 12:
        return picture  # a prompt too long for the size
    fill = chunk(b"npAd", bytes(missing - 12))
    return picture[:-12] + fill + picture[-12:]
