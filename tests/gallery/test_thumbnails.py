"""Thumbnails are made of images of a normal size only: a small file can expand to gigabytes."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from krea_batch.gallery import thumbnails as thumbnails_module
from krea_batch.gallery.thumbnail_files import LocalImage
from krea_batch.gallery.thumbnails import MAX_PIXELS, RunThumbnails, ThumbnailCache, thumbnail
from krea_batch.storage.png import SIGNATURE, make_chunk

BOMB_WIDTH = 13_000  # 169 million pixels, just below the number at which Pillow refuses an image
MAX_MEMORY_KIB = 400_000
MEASURE_SCRIPT = """
import re, sys
from pathlib import Path
from krea_batch.gallery.thumbnail_files import LocalImage
from krea_batch.gallery.thumbnails import RunThumbnails, ThumbnailCache, thumbnail
path = Path(sys.argv[1])
image = LocalImage(path, "0" * 64)
assert thumbnail(path) is None
assert list(RunThumbnails(path.parent).get_all([image, image])) == [None, None]
assert ThumbnailCache(path.parent).get(image) is None
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""
"""Prints the peak memory in KiB. `getrusage` would count the memory of the parent, too."""


def make_bomb(path: Path, width: int = BOMB_WIDTH) -> Path:
    """Write a valid PNG of `width` by `width` black pixels in RGBA."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + 4 * width)
    data = b"".join([*(compressor.compress(row) for _ in range(width)), compressor.flush()])
    header = struct.pack(">IIBBBBB", width, width, 8, 6, 0, 0, 0)
    path.write_bytes(SIGNATURE + make_chunk(b"IHDR", header) + make_chunk(b"IDAT", data) + make_chunk(b"IEND", b""))
    return path


@pytest.mark.slow
def test_a_decompression_bomb(tmp_path: Path) -> None:
    """A PNG of less than a megabyte with 169 million pixels has no thumbnail, and is not decoded."""
    bomb = make_bomb(tmp_path / "bomb.png")
    assert bomb.stat().st_size < 1_000_000
    done = subprocess.run([sys.executable, "-c", MEASURE_SCRIPT, bomb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MAX_MEMORY_KIB


@pytest.mark.parametrize(("width", "height", "made"), [(8, 8, True), (16, 4, True), (65, 1, False), (9, 8, False)])
def test_the_limit(width: int, height: int, made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images up to the limit have a thumbnail, larger ones have none, whatever their shape."""
    monkeypatch.setattr(thumbnails_module, "MAX_PIXELS", 64)
    Image.new("RGB", (width, height), "red").save(tmp_path / "x.png")
    image = LocalImage(tmp_path / "x.png", "0" * 64)
    assert (thumbnail(image.path) is not None) is made
    assert (ThumbnailCache(tmp_path).get(image) is not None) is made
    assert [data is not None for data in RunThumbnails(tmp_path).get_all([image, None])] == [made, False]


def test_images_of_the_api_are_far_below() -> None:
    """The limit leaves room for images that are larger than those of today."""
    assert MAX_PIXELS >= 4 * 2048 * 2048


@pytest.mark.parametrize("format_", ["EPS", "TIFF", "PPM", "BMP"])
def test_other_formats(format_: str, tmp_path: Path) -> None:
    """A file that is called .png and has another format is not decoded: Pillow would run Ghostscript for EPS."""
    file = BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, format_)
    (tmp_path / "x.png").write_bytes(file.getvalue())
    assert thumbnail(tmp_path / "x.png") is None
