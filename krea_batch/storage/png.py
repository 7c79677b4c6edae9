"""The bytes of a download come in, in pieces of any size; out goes whether they are one whole PNG. Pure.

Newcomers: image libraries are too kind for this. They load a PNG without its end and take bytes after it;
an image that was paid for has to be complete, so each chunk's length and checksum is walked here.
Source of the format: the PNG specification, third edition (W3C), sections 5 and 11.2.
"""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNK_BYTES = 2**31 - 1  # PNG specification, 5.3
_CHUNK_HEADER = struct.Struct(">I4s")


class PngError(ValueError):
    """The bytes are not one whole PNG; the text says where they stop being one."""


class PngValidator:
    """Walks a PNG as it streams. `feed` it everything in order, then ask `finish`; either may raise PngError.

    `width` and `height` (pixels) are there once the IHDR chunk has passed.
    """

    __slots__ = (
        "_body_left",
        "_buffered",
        "_crc",
        "_ended",
        "_kind",
        "_seen_data",
        "_started",
        "height",
        "width",
    )

    def __init__(self) -> None:
        self.width = 0
        self.height = 0
        self._buffered = b""  # bytes of an unfinished signature, head, IHDR or checksum
        self._started = False
        self._ended = False
        self._seen_data = False
        self._kind = b""  # the chunk being walked; empty between chunks
        self._body_left = 0
        self._crc = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(self._buffered + data if self._buffered else data)
        offset = 0
        while offset < len(view):
            used = self._consume(view[offset:])
            if used == 0:
                break
            offset += used
        self._buffered = bytes(view[offset:])

    def finish(self) -> None:
        """Raise PngError unless the last byte fed was the last of an IEND chunk."""
        if not self._ended or self._buffered:
            raise PngError("the image is cut short")

    def _consume(self, view: memoryview) -> int:
        """Walk one signature, chunk head, piece of a body or checksum; 0 means more bytes are needed."""
        if self._ended:
            raise PngError("bytes follow the end of the image")
        if not self._started:
            return self._read_signature(view)
        if not self._kind:
            return self._read_chunk_header(view)
        if self._body_left:
            return self._read_chunk_body(view)
        return self._check_crc(view)

    def _read_signature(self, view: memoryview) -> int:
        if bytes(view[:8]) != SIGNATURE[: len(view)]:
            raise PngError(f"it does not begin like a PNG but with {bytes(view[:16])!r}")
        if len(view) < 8:
            return 0
        self._started = True
        return 8

    def _read_chunk_header(self, view: memoryview) -> int:
        if len(view) < 8:
            return 0
        length, kind = _CHUNK_HEADER.unpack_from(view)
        if length > MAX_CHUNK_BYTES or not kind.isalpha():
            raise PngError(f"no chunk can be {kind!r} of {length} bytes")
        if (kind == b"IHDR") != (self.width == 0) or (kind == b"IHDR" and length != 13):
            raise PngError("the first chunk, and only it, has to be an IHDR of 13 bytes")
        if kind == b"IEND" and (length or not self._seen_data):
            raise PngError("IEND comes too early or holds data")
        self._kind, self._body_left, self._crc = kind, length, zlib.crc32(kind)
        self._seen_data = self._seen_data or kind == b"IDAT"
        return 8

    def _read_chunk_body(self, view: memoryview) -> int:
        if self._kind == b"IHDR":
            if len(view) < 13:
                return 0
            self.width, self.height = struct.unpack_from(">II", view)
            if not (0 < self.width <= MAX_CHUNK_BYTES and 0 < self.height <= MAX_CHUNK_BYTES):
                raise PngError(f"no image is {self.width} by {self.height} pixels")
        used = min(len(view), self._body_left)
        self._crc = zlib.crc32(view[:used], self._crc)
        self._body_left -= used
        return used

    def _check_crc(self, view: memoryview) -> int:
        if len(view) < 4:
            return 0
        if int.from_bytes(view[:4]) != self._crc:
            raise PngError(f"a byte of its {self._kind.decode()} chunk is wrong")
        self._ended = self._kind == b"IEND"
        self._kind = b""
        return 4
