"""A picture and its prompt come in; the same on paper, with the prompt written below it, goes out.

Newcomers: the one font that comes with Pillow knows Latin letters. What it cannot write is told in words where that
is short (an emoji's name) and left out where it is not.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from krea_batch.testing.simulator.drawing.palettes import Palette, blend

MAX_LINES = 2
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def frame_metrics(size: tuple[int, int]) -> tuple[int, int, int]:
    """Margin, letter size and the height of the strip at the foot, in pixels, for a picture of this size."""
    margin = round(min(size) * 0.035)
    points = max(17, round(min(size) ** 0.5 * max(size) ** 0.5 / 46))
    return margin, points, round(points * 1.36 * MAX_LINES + margin * 1.25)


def add_caption(image: Image.Image, size: tuple[int, int], prompt: str, note: str, palette: Palette) -> Image.Image:
    """`picture` on a sheet of this size, as `frame_of` leaves room for it; `note` stands small on the right."""
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


def wrap_lines(text: str, font: Font, max_width: float, max_lines: int = MAX_LINES) -> list[str]:
    """Lines no longer than `most` pixels; what is left over is an ellipsis."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < max_lines:
        line, rest = _first_line(rest, font, max_width)
        lines.append(line)
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "…") > max_width:
            last = last[:-1]
        lines[-1] = last.rstrip(" ,.;:") + "…"
    return lines


def _first_line(text: str, font: Font, max_width: float) -> tuple[str, str]:
    """As many whole words as fit, at least one letter, and the rest."""
    text = text[:400]  # no line is longer
    words = text.split(" ")
    count = len(words)
    while count > 1 and font.getlength(" ".join(words[:count])) > max_width:
        count -= 1
    line = " ".join(words[:count])
    while len(line) > 1 and font.getlength(line) > max_width:
        line = line[:-1]
    return line, text[len(line) :].lstrip()


def renderable_text(prompt: str) -> str:
    """The prompt in letters that the font has."""
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
    """Another way to write a letter: its plain form, or the name of an emoji, else an ellipsis."""
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
