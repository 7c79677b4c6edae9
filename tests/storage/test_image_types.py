"""Images of other types than PNG are recognised, and are complete if their size was announced."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from krea_batch.storage.image_types import EXTENSIONS, PNG, ImageValidator, detect_media_type, measure_image
from krea_batch.storage.png import ImageError
from krea_batch.testing import make_png


def pillow_image(media_type: str, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an image of a type that Pillow writes."""
    file = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(file, media_type.removeprefix("image/").upper())
    return file.getvalue()


def validate(data: bytes, chunk_bytes: int = 1000, *, is_sized: bool, keep_surplus: bool = False) -> ImageValidator:
    """Feed an image in chunks and finish. Raises ImageError."""
    validator = ImageValidator()
    for start in range(0, len(data), chunk_bytes):
        validator.feed(data[start : start + chunk_bytes])
    validator.finish(is_sized=is_sized, keep_surplus=keep_surplus)
    return validator


@pytest.mark.parametrize("media_type", EXTENSIONS)
@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
def test_every_type_is_recognised(tmp_path: Path, media_type: str, chunk_bytes: int) -> None:
    """An image of each type, in chunks of any size, is complete; all but PNGs have a defect."""
    data = pillow_image(media_type)
    validator = validate(data, chunk_bytes, is_sized=True)
    assert validator.media_type == detect_media_type(data) == media_type
    assert bool(validator.defect) == (media_type != PNG)
    assert media_type in validator.defect or media_type == PNG
    path = tmp_path / f"x{EXTENSIONS[media_type]}"
    path.write_bytes(data)
    assert measure_image(path) == (40, 30)


@pytest.mark.parametrize("media_type", [name for name in EXTENSIONS if name != PNG])
def test_other_types_need_a_size(media_type: str) -> None:
    """Without an announced size, only a PNG is known to be complete."""
    with pytest.raises(ImageError, match=f"{media_type} of unknown size"):
        validate(pillow_image(media_type), is_sized=False)


@pytest.mark.parametrize(
    ("is_sized", "keep_surplus", "is_kept"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_bytes_after_the_end_of_a_png(is_sized: bool, keep_surplus: bool, is_kept: bool) -> None:
    """A PNG with surplus bytes is complete only with an announced size, and if the caller keeps it."""
    data = make_png() + b"<!-- more -->"
    if is_kept:
        assert validate(data, is_sized=is_sized, keep_surplus=True).defect == "13 bytes after the end of the PNG"
    else:
        with pytest.raises(ImageError, match="after the end"):
            validate(data, is_sized=is_sized, keep_surplus=keep_surplus)


@pytest.mark.parametrize("is_sized", [True, False])
def test_a_damaged_png_is_never_kept(is_sized: bool) -> None:
    """A PNG that is cut, or has a wrong byte, is not complete, whatever its size."""
    data = make_png()
    for damaged in (data[:-1], data[:9], data[:50] + b"?" + data[51:]):
        with pytest.raises(ImageError):
            validate(damaged, is_sized=is_sized, keep_surplus=True)


@given(st.binary(max_size=64))
def test_other_bytes_are_no_image(data: bytes) -> None:
    """Bytes that do not start like an image are refused, at the latest at their end."""
    if detect_media_type(data[:12]) is None:
        with pytest.raises(ImageError, match=r"does not start like an image|no bytes"):
            validate(data, is_sized=True, keep_surplus=True)


def test_an_unreadable_image_has_no_dimensions(tmp_path: Path) -> None:
    """Only the beginning of a JPEG is one: its dimensions are unknown, and that is no error."""
    path = tmp_path / "x.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    assert measure_image(path) == (0, 0)
