"""Put a scene on a sheet of paper and write the prompt below it.

The font that comes with Pillow has Latin letters only. Other characters are replaced: an accented letter by its base
letter, an emoji by its name, the rest by an ellipsis.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from krea_batch.testing.simulator.drawing.palettes import Palette, blend

MAX_LINES = 2  # chosen: leaves most of the image to the scene
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def frame_metrics(size: tuple[int, int]) -> tuple[int, int, int]:
    """Return margin, letter size and height of the caption strip, in pixels, for an image of this size."""
    margin = round(min(size) * 0.035)
    points = max(17, round(min(size) ** 0.5 * max(size) ** 0.5 / 46))
    return margin, points, round(points * 1.36 * MAX_LINES + margin * 1.25)


def add_caption(image: Image.Image, size: tuple[int, int], prompt: str, note: str, palette: Palette) -> Image.Image:
    """Return a sheet of this size with the image inside the margins of `frame_metrics`; `note` is small, right."""
    margin, points, strip = frame_metrics(size)
    paper = blend((250, 247, 241), palette.light, 0.25)
    ink = blend(palette.land[-1], (40, 38, 44), 0.5)
    sheet = Image.new("RGB", size, paper)
    sheet.paste(image, (margin, margin))
    drawing = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(points), ImageFont.load_default(points * 0.62)
    note_width = small.getlength(note)
    lines = wrap_lines(renderable_text(prompt), font, size[0] - 2 * margin - note_width - points * 1.5)
    step = points * 1.36
    top = size[1] - strip + (strip - margin * 0.25 - step * len(lines)) / 2
    for index, line in enumerate(lines):
        drawing.text((margin, top + index * step), line, ink, font)
    drawing.text((size[0] - margin - note_width, top + points * 0.42), note, blend(ink, paper, 0.5), small)
    return sheet


def wrap_lines(text: str, font: Font, max_width: float) -> list[str]:
    """Return up to MAX_LINES lines of at most `max_width` pixels, with an ellipsis if the text is longer."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < MAX_LINES:
        line, rest = _first_line(rest, font, max_width)
        lines.append(line)
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "…") > max_width:
            last = last[:-1]
        lines[-1] = last.rstrip(" ,.;:") + "…"
    return lines


def _first_line(text: str, font: Font, max_width: float) -> tuple[str, str]:
    """Return as many whole words as fit, at least one letter, and the rest of the text."""
    text = text[:400]  # no line has room for more characters
    words = text.split(" ")
    count = len(words)
    while count > 1 and font.getlength(" ".join(words[:count])) > max_width:
        count -= 1
    line = " ".join(words[:count])
    while len(line) > 1 and font.getlength(line) > max_width:
        line = line[:-1]
    return line, text[len(line) :].lstrip()


def renderable_text(prompt: str) -> str:
    """Return the prompt with every character the font does not have replaced."""
    parts: list[str] = []
    for letter in unicodedata.normalize("NFC", prompt[:1000]):
        if letter.isspace():
            parts.append(" ")
        elif _has_glyph(letter):
            parts.append(letter)
        else:
            parts.append(_substitute(letter))
    text = "".join(parts)
    while "……" in text:
        text = text.replace("……", "…")
    return " ".join(text.split()) or "…"


def _substitute(letter: str) -> str:
    """Return a replacement: the base letter, the name of a symbol, nothing for a combining mark, or an ellipsis."""
    plain = unicodedata.normalize("NFKD", letter)[0]
    if plain != letter and _has_glyph(plain):
        return plain
    kind = unicodedata.category(letter)
    if kind == "So":
        return f" ({unicodedata.name(letter, '…').lower()}) "
    return "" if kind[0] in "MC" or kind == "Sk" else "…"


@cache
def _font() -> Font:
    return ImageFont.load_default(16)


@cache
def _missing_glyph() -> bytes:
    return bytes(_font().getmask("\U0010fffe"))


def _has_glyph(letter: str) -> bool:
    return " " < letter <= "~" or _is_drawable(letter)


@cache
def _is_drawable(letter: str) -> bool:
    if unicodedata.category(letter)[0] in "CM":
        return False
    return bytes(_font().getmask(letter)) != _missing_glyph()
