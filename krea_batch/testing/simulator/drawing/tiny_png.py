"""Write PNGs without Pillow: small ones, or ones of an exact size in bytes.

An image of an exact size consists of noise, which does not compress, much like a photograph. A private chunk pads the
file to the exact byte.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from random import Random

PNG_FILE_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SIDE_PX = 24  # chosen: the eight ratios can still be distinguished
_NOISE_BYTES = 1 << 16


def tiny_image(text: Mapping[str, str], seed_key: str, size_bytes: int = 0) -> bytes:
    """Return a PNG of one colour, or of noise and exactly `size_bytes` bytes, in the ratio that `text` names."""
    colour = hashlib.blake2b(f"{text['prompt']}\0{seed_key}".encode("utf-8", "surrogatepass"), digest_size=3).digest()
    ratio = _ratio_value(text["aspect_ratio"])
    chunks = text_chunks(text)
    if size_bytes:
        return _noise_image(ratio, colour, chunks, size_bytes)
    width, height = (
        (MAX_SIDE_PX, round(MAX_SIDE_PX / ratio)) if ratio >= 1 else (round(MAX_SIDE_PX * ratio), MAX_SIDE_PX)
    )
    pixels = zlib.compress((b"\0" + colour * width) * height, 1)
    return encode_png(width, height, pixels, chunks)


def encode_png(width: int, height: int, compressed: bytes, chunks: bytes) -> bytes:
    """Return a PNG of 8-bit RGB from filtered, zlib-compressed rows and further chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            PNG_FILE_SIGNATURE,
            png_chunk(b"IHDR", header),
            chunks,
            png_chunk(b"IDAT", compressed),
            png_chunk(b"IEND", b""),
        )
    )


def text_chunks(text: Mapping[str, str]) -> bytes:
    """Return uncompressed iTXt chunks (PNG specification, 11.3.3.4)."""
    return b"".join(
        png_chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode("utf-8", "replace"))
        for key, value in text.items()
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk (PNG specification, 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


@cache
def _ratio_value(ratio: str) -> float:
    width, _, height = ratio.partition(":")
    return float(width) / float(height)


@cache
def _noise() -> bytes:
    return Random(0).randbytes(_NOISE_BYTES)


def _noise_image(ratio: float, colour: bytes, chunks: bytes, size_bytes: int) -> bytes:
    pixel_bytes = size_bytes - len(chunks) - 600  # the signature, the other chunks and zlib's framing take less
    height = max(1, math.isqrt(int(max(1, pixel_bytes) / 3.05 / ratio)))
    width = max(1, round(height * ratio))
    noise = _noise()
    start = int.from_bytes(colour) % _NOISE_BYTES
    line = b"\0" + colour * width
    length = len(line) * height
    repeats = length // _NOISE_BYTES + 2
    rows = bytearray((noise * repeats)[start : start + length])
    rows[:: len(line)] = bytes(height)  # each row starts with filter 0
    rows[: len(line)] = line
    image = encode_png(width, height, zlib.compress(rows, 0), chunks)
    missing = size_bytes - len(image)
    if missing < 12:
        return image  # the prompt is too long for the size
    padding = png_chunk(b"npAd", bytes(missing - 12))
    return image[:-12] + padding + image[-12:]
