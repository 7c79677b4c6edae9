"""Writes a contact sheet: small images of a run in rows of equal width, in one JPEG. Requires Pillow alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from krea_batch.errors import InputError
from krea_batch.storage.outputs import replacing_output

WIDTH_PX = 1600
ROW_PX = 300  # the height that a row should have; a full row is scaled to the width
GAP_PX = 10
BACKGROUND = "white"
QUALITY = 85
COMMENT = b"krea-batch contact sheet"  # in the JPEG, so that the next sheet replaces no other file


def write_contact_sheet(images: Iterable[Path], output: Path) -> None:
    """Write the images, row by row, into a JPEG, or replace an earlier sheet. Raises InputError and OSError."""
    rows = [_scaled(row) for row in _rows([_small(path) for path in images])]
    height_px = sum(row[0].height + GAP_PX for row in rows) - GAP_PX
    sheet = Image.new("RGB", (WIDTH_PX, height_px), BACKGROUND)
    top_px = 0
    for row in rows:
        left_px = 0
        for image in row:
            sheet.paste(image, (left_px, top_px))
            left_px += image.width + GAP_PX
        top_px += row[0].height + GAP_PX
    with replacing_output(output, _check_sheet) as part:
        sheet.save(part, "JPEG", quality=QUALITY, comment=COMMENT)


def _small(path: Path) -> Image.Image:
    with Image.open(path, formats=["PNG"]) as image:
        small = image.convert("RGB")
    small.thumbnail((WIDTH_PX, 2 * ROW_PX))
    return small


def _rows(images: list[Image.Image]) -> list[list[Image.Image]]:
    """Return the images in rows. Each row but the last is as wide as the sheet, or wider, at the usual height."""
    rows: list[list[Image.Image]] = [[]]
    for image in images:
        if _width_px(rows[-1], ROW_PX) >= WIDTH_PX:
            rows.append([])
        rows[-1].append(image)
    return rows


def _scaled(row: list[Image.Image]) -> list[Image.Image]:
    """Return the images of a row at one height, at which they are at most as wide as the sheet."""
    gaps_px = GAP_PX * (len(row) - 1)
    ratios = sum(image.width / image.height for image in row)
    height_px = max(1, min(ROW_PX, int((WIDTH_PX - gaps_px) / ratios)))
    return [image.resize((max(1, int(height_px * image.width / image.height)), height_px)) for image in row]


def _width_px(row: list[Image.Image], height_px: int) -> float:
    return sum(height_px * image.width / image.height + GAP_PX for image in row)


def _check_sheet(output: Path) -> None:
    """Raise InputError unless an existing file is an earlier contact sheet."""
    try:
        with Image.open(output, formats=["JPEG"]) as image:
            is_sheet = image.info.get("comment") == COMMENT
    except (OSError, SyntaxError):
        is_sheet = False
    if not is_sheet:
        raise InputError(f"{output} exists, and is not a contact sheet of krea-batch", "move it away")
