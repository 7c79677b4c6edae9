"""`PngValidator` accepts complete PNGs only, however their bytes are split."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from krea_batch.storage.png import SIGNATURE, PngError, PngValidator


def chunk(chunk_type: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + chunk_type + data + struct.pack(">I", zlib.crc32(chunk_type + data))


def ihdr(width: int = 4, height: int = 3) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


IDAT = chunk(b"IDAT", zlib.compress(b"\0" * 39))
IEND = chunk(b"IEND")
TEXT = chunk(b"tEXt", b"prompt\0a cat")
WHOLE_PNG = SIGNATURE + ihdr() + TEXT + IDAT + IEND


def validate(chunks: Iterable[bytes]) -> PngValidator:
    """Feed the chunks and finish. Raises PngError."""
    validator = PngValidator()
    for data in chunks:
        validator.feed(data)
    validator.finish()
    return validator


def size_or_none(chunks: Iterable[bytes]) -> tuple[int, int] | None:
    """Return width and height, or None if it is not one complete PNG."""
    try:
        validator = validate(chunks)
    except PngError:
        return None
    return validator.width, validator.height


def pillow_png(mode: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (64, 48), (1, 3000), (1024, 1024)])
def test_real_images_pass(mode: str, size: tuple[int, int]) -> None:
    """PNGs of every mode that Pillow writes are accepted, with their width and height."""
    assert size_or_none([pillow_png(mode, size)]) == size


def test_animated_images_pass() -> None:
    """An animated PNG, which has other chunks between and after IDAT, is accepted."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    assert size_or_none([file.getvalue()]) == (8, 8)


@pytest.mark.parametrize("length", range(len(WHOLE_PNG)))
def test_cut_anywhere(length: int) -> None:
    """A PNG that is cut at any byte is refused."""
    with pytest.raises(PngError, match="cut short"):
        validate([WHOLE_PNG[:length]])


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_every_changed_byte_is_found(flip: int) -> None:
    """A PNG with one changed byte in signature, length, type, data or checksum is refused."""
    for position in range(len(WHOLE_PNG)):
        changed = bytearray(WHOLE_PNG)
        changed[position] ^= flip
        assert size_or_none([bytes(changed)]) is None, position


@given(st.binary(min_size=1, max_size=40))
def test_nothing_may_follow(more: bytes) -> None:
    """Bytes after IEND, in the same chunk or in a later one, are refused."""
    assert size_or_none([WHOLE_PNG + more]) is None
    assert size_or_none([WHOLE_PNG, more]) is None
    assert size_or_none([WHOLE_PNG + WHOLE_PNG]) is None


def test_empty_chunks_are_ignored() -> None:
    """An empty chunk changes nothing, at any position."""
    assert size_or_none([b"", WHOLE_PNG[:50], b"", WHOLE_PNG[50:], b""]) == (4, 3)


@pytest.mark.parametrize("position", range(len(WHOLE_PNG) + 1))
def test_split_anywhere(position: int) -> None:
    """A PNG in two chunks is accepted wherever it is split."""
    assert size_or_none([WHOLE_PNG[:position], WHOLE_PNG[position:]]) == (4, 3)


def test_byte_by_byte() -> None:
    """A PNG in chunks of one byte is accepted."""
    assert size_or_none(bytes([byte]) for byte in pillow_png("RGB", (64, 64))) == (64, 64)


INVALID_PNGS = {
    "nothing": b"",
    "a JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "an HTML page": b"<!doctype html><title>404</title>",
    "JSON": b'{"error": "gone"}',
    "only a signature": SIGNATURE,
    "no IHDR": SIGNATURE + IDAT + IEND,
    "IHDR not first": SIGNATURE + TEXT + ihdr() + IDAT + IEND,
    "two IHDRs": SIGNATURE + ihdr() + ihdr() + IDAT + IEND,
    "IHDR too short": SIGNATURE + chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\2\0\0") + IDAT + IEND,
    "IHDR too long": SIGNATURE + chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\2\0\0\0\0") + IDAT + IEND,
    "no width": SIGNATURE + ihdr(width=0) + IDAT + IEND,
    "no height": SIGNATURE + ihdr(height=0) + IDAT + IEND,
    "width past 2^31": SIGNATURE + ihdr(width=2**31) + IDAT + IEND,
    "no IDAT": SIGNATURE + ihdr() + IEND,
    "IEND with data": SIGNATURE + ihdr() + IDAT + chunk(b"IEND", b"x"),
    "no IEND": SIGNATURE + ihdr() + IDAT,
    "two IENDs": WHOLE_PNG + IEND,
    "a type that is not letters": SIGNATURE + ihdr() + chunk(b"ID4T", b"") + IDAT + IEND,
    "a chunk past 2^31": SIGNATURE + ihdr() + b"\xff\xff\xff\xffIDAT",
    "no signature": WHOLE_PNG[8:],
    "a newline translated": WHOLE_PNG.replace(b"\r\n", b"\n"),
    "a second image": WHOLE_PNG + WHOLE_PNG,
}


@pytest.mark.parametrize("data", INVALID_PNGS.values(), ids=INVALID_PNGS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_invalid_pngs(data: bytes, size: int) -> None:
    """Anything but one complete PNG is refused, in chunks of any size."""
    assert size_or_none(data[start : start + size] for start in range(0, len(data), size)) is None


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


png_like = st.builds(
    lambda parts, end: b"".join(parts)[: None if end is None else -end],
    st.lists(
        st.sampled_from([SIGNATURE, ihdr(), TEXT, IDAT, IEND, WHOLE_PNG, WHOLE_PNG[8:], b"\0\0\0\0", b"IDAT"])
        | st.binary(max_size=30),
        max_size=6,
    ),
    st.none() | st.integers(1, 20),
)


@settings(deadline=None)
@given(png_like | st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=12))
def test_splits_never_change_the_result(data: bytes, cuts: list[int]) -> None:
    """No bytes raise anything but PngError, and the result is the same however they are split."""
    assert size_or_none([data]) == size_or_none(split_at(data, cuts))


@settings(deadline=None)
@given(st.integers(0, len(WHOLE_PNG) - 1), st.binary(max_size=20), st.integers(0, 20))
def test_no_other_bytes_pass(position: int, inserted: bytes, removed: int) -> None:
    """If bytes are inserted or removed, the PNG is accepted only if it is the same as before."""
    changed = WHOLE_PNG[:position] + inserted + WHOLE_PNG[position + removed :]
    assert (size_or_none([changed]) is not None) == (changed == WHOLE_PNG)


def test_the_text_of_the_error_is_printable() -> None:
    """An error shows the first bytes of the data, in ASCII."""
    with pytest.raises(PngError, match="<!doctype html>") as caught:
        validate([b"<!doctype html>\xff"])
    assert str(caught.value).isascii()
