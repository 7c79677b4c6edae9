"""Test that texts in a PNG, from krea-batch or other programs, are read back, and that pixels stay the same."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from krea_batch.maintenance.export.png_metadata import MAX_TEXT_BYTES, embed_texts, read_texts
from krea_batch.storage.png import PngError


def png_with_texts(texts: PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG", pnginfo=texts)
    return file.getvalue()


@given(
    st.dictionaries(st.sampled_from(["Description", "krea-batch", "parameters"]), st.text().map(lambda text: text))
)
def test_any_text(texts: dict[str, str]) -> None:
    """Any text that is embedded is read back, also by Pillow, and the pixels are unchanged."""
    texts = {keyword: text.encode("utf-8", "replace").decode() for keyword, text in texts.items()}
    written = embed_texts(png_with_texts(), texts)
    assert read_texts(written) == texts
    with PngImageFile(io.BytesIO(written)) as image:
        image.load()
        assert image.text == texts
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_texts_of_other_programs() -> None:
    """tEXt, zTXt and compressed iTXt chunks are read and kept; only a text with the same keyword is replaced."""
    info = PngInfo()
    info.add_text("Author", "Zoë")
    info.add_text("Long", "x" * 1000, zip=True)
    info.add_itxt("Title", "狐", "zh", "標題", zip=True)
    info.add_itxt("Description", "old")
    written = embed_texts(png_with_texts(info), {"Description": "new"})
    assert read_texts(written) == {"Description": "new", "Author": "Zoë", "Long": "x" * 1000, "Title": "狐"}
    assert embed_texts(written, {"Description": "new"}) == written


@pytest.mark.parametrize("data", [b"", b"GIF89a", png_with_texts()[:-4], png_with_texts() + b"x"])
def test_not_a_complete_png(data: bytes) -> None:
    """An empty, foreign or truncated file raises PngError, and so does one with bytes after its end."""
    with pytest.raises(PngError):
        read_texts(data)


def test_compressed_text_is_too_long() -> None:
    """A chunk of a few kilobytes whose text is longer than the limit raises PngError."""
    info = PngInfo()
    info.add_text("Bomb", "x" * (MAX_TEXT_BYTES + 1), zip=True)
    with pytest.raises(PngError, match="longer than"):
        read_texts(png_with_texts(info))


def test_compressed_texts_are_too_long_together() -> None:
    """Chunks whose texts are below the limit one by one, and above it together, raise PngError."""
    info = PngInfo()
    for n in range(5):
        info.add_text(f"Bomb {n}", "x" * (MAX_TEXT_BYTES // 4), zip=True)
    with pytest.raises(PngError, match="longer than"):
        read_texts(png_with_texts(info))
