"""Validates PNG data while it streams. Pure.

Image libraries are too lenient for this: they load a PNG without its end, and accept bytes after it. A charged image
must be complete, so this checks each chunk's length and checksum. Source of the format: the PNG specification, third
edition (W3C), sections 5 and 11.2.
"""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNK_BYTES = 2**31 - 1  # PNG specification, 5.3
_CHUNK_HEADER = struct.Struct(">I4s")
_CRC = struct.Struct(">I")
_SIZE = struct.Struct(">II")


def make_chunk(chunk_type: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return _CHUNK_HEADER.pack(len(body), chunk_type) + body + _CRC.pack(zlib.crc32(chunk_type + body))


class ImageError(ValueError):
    """The bytes are not one complete image; the text says why."""


class PngError(ImageError):
    """The bytes are not one complete PNG; the text says why."""


class PngValidator:
    """Checks a PNG as it streams. `feed` all bytes in order, then call `finish`; both may raise PngError.

    `width` and `height` (pixels) are set once the IHDR chunk has passed. `surplus_bytes` counts what follows the end;
    `finish` raises PngError for it.
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
        "surplus_bytes",
        "width",
    )

    def __init__(self) -> None:
        self.width = 0
        self.height = 0
        self.surplus_bytes = 0
        self._buffered = b""  # bytes of an incomplete signature, chunk header, IHDR or checksum
        self._started = False
        self._ended = False
        self._seen_data = False
        self._kind = b""  # type of the current chunk; empty between chunks
        self._body_left = 0
        self._crc = 0

    def feed(self, data: bytes) -> None:
        """Check the next bytes."""
        view = memoryview(self._buffered + data if self._buffered else data)
        offset = 0
        while offset < len(view):
            end = self._consume(view, offset)
            if end == offset:
                break
            offset = end
        self._buffered = bytes(view[offset:])

    def finish(self) -> None:
        """Raise PngError unless the last byte fed was the last of an IEND chunk."""
        if not self._ended or self._buffered:
            raise PngError("the image is cut short")
        if self.surplus_bytes:
            raise PngError("unexpected bytes after the end of the image")

    def _consume(self, view: memoryview, offset: int) -> int:
        """Check a signature, a chunk or a part of one. Return where it ends, or `offset` if more bytes are needed."""
        if self._ended:
            self.surplus_bytes += len(view) - offset
            return len(view)
        if not self._started:
            return self._read_signature(view)
        if not self._kind:
            return self._read_chunk(view, offset)
        if self._body_left:
            return self._read_chunk_body(view, offset)
        return self._check_crc(view, offset)

    def _read_signature(self, view: memoryview) -> int:
        if bytes(view[:8]) != SIGNATURE[: len(view)]:
            raise PngError(f"does not start like a PNG but with {bytes(view[:16])!r}")
        if len(view) < 8:
            return 0
        self._started = True
        return 8

    def _read_chunk(self, view: memoryview, offset: int) -> int:
        """Check the header of a chunk, and with it the rest of the chunk if it is complete, as most are."""
        body = offset + 8
        if len(view) < body:
            return offset
        length, kind = _CHUNK_HEADER.unpack_from(view, offset)
        if length > MAX_CHUNK_BYTES or not kind.isalpha():
            raise PngError(f"invalid chunk {kind!r} of {length} bytes")
        if (kind == b"IHDR") != (self.width == 0) or (kind == b"IHDR" and length != 13):
            raise PngError("the first chunk, and no other, must be an IHDR of 13 bytes")
        if kind == b"IEND" and (length or not self._seen_data):
            raise PngError("IEND is too early or has data")
        self._kind = kind
        self._seen_data = self._seen_data or kind == b"IDAT"
        end = body + length
        if len(view) < end + 4 or kind == b"IHDR":
            self._body_left, self._crc = length, zlib.crc32(kind)
            return body
        self._crc = zlib.crc32(view[offset + 4 : end])  # of type and body
        return self._check_crc(view, end)

    def _read_chunk_body(self, view: memoryview, offset: int) -> int:
        if self._kind == b"IHDR":
            if len(view) < offset + 13:
                return offset
            self.width, self.height = _SIZE.unpack_from(view, offset)
            if not (0 < self.width <= MAX_CHUNK_BYTES and 0 < self.height <= MAX_CHUNK_BYTES):
                raise PngError(f"invalid size: {self.width} by {self.height} pixels")
        end = min(len(view), offset + self._body_left)
        self._crc = zlib.crc32(view[offset:end], self._crc)
        self._body_left -= end - offset
        return end

    def _check_crc(self, view: memoryview, offset: int) -> int:
        if len(view) < offset + 4:
            return offset
        (crc,) = _CRC.unpack_from(view, offset)
        if crc != self._crc:
            raise PngError(f"wrong checksum of the {self._kind.decode()} chunk")
        self._ended = self._kind == b"IEND"
        self._kind = b""
        return offset + 4
