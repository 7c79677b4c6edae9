"""A picture and its prompt come in; the same on paper, with the prompt written below it, goes out.

Newcomers: the one font that comes with Pillow knows Latin letters. What it cannot write is told in words where that
is short (an emoji's name) and left out where it is not.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from krea_batch.testing.simulator.drawing.palettes import Palette, mixed

LINES = 2
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def frame_of(size: tuple[int, int]) -> tuple[int, int, int]:
    """Margin, letter size and the height of the strip at the foot, in pixels, for a picture of this size."""
    margin = round(min(size) * 0.035)
    points = max(17, round(min(size) ** 0.5 * max(size) ** 0.5 / 46))
    return margin, points, round(points * 1.36 * LINES + margin * 1.25)


def framed(picture: Image.Image, size: tuple[int, int], prompt: str, note: str, palette: Palette) -> Image.Image:
    """`picture` on a sheet of this size, as `frame_of` leaves room for it; `note` stands small on the right."""
    margin, points, strip = frame_of(size)
    paper = mixed((250, 247, 241), palette.light, 0.25)
    ink = mixed(palette.land[-1], (40, 38, 44), 0.5)
    sheet = Image.new("RGB", size, paper)
    sheet.paste(picture, (margin, margin))
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(points), ImageFont.load_default(points * 0.62)
    aside = small.getlength(note)
    lines = wrapped(written(prompt), font, size[0] - 2 * margin - aside - points * 1.5)
    step = points * 1.36
    top = size[1] - strip + (strip - margin * 0.25 - step * len(lines)) / 2
    for n, line in enumerate(lines):
        pen.text((margin, top + n * step), line, ink, font)
    pen.text((size[0] - margin - aside, top + points * 0.42), note, mixed(ink, paper, 0.5), small)
    return sheet


def wrapped(text: str, font: Font, most: float, lines_most: int = LINES) -> list[str]:
    """Lines no longer than `most` pixels; what is left over is an ellipsis."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < lines_most:
        line, rest = _line(rest, font, most)
        lines.append(line)
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "…") > most:
            last = last[:-1]
        lines[-1] = last.rstrip(" ,.;:") + "…"
    return lines


def _line(text: str, font: Font, most: float) -> tuple[str, str]:
    """As many whole words as fit, at least one letter, and the rest."""
    text = text[:400]  # no line is longer
    words = text.split(" ")
    count = len(words)
    while count > 1 and font.getlength(" ".join(words[:count])) > most:
        count -= 1
    line = " ".join(words[:count])
    while len(line) > 1 and font.getlength(line) > most:
        line = line[:-1]
    return line, text[len(line) :].lstrip()


def written(prompt: str) -> str:
    """The prompt in letters that the font has."""
    parts: list[str] = []
    for letter in unicodedata.normalize("NFC", prompt[:1000]):
        if letter.isspace():
            parts.append(" ")
        elif _has(letter):
            parts.append(letter)
        else:
            parts.append(_said(letter))
    text = "".join(parts)
    while "……" in text:
        text = text.replace("……", "…")
    return " ".join(text.split()) or "…"


def _said(letter: str) -> str:
    """Another way to write a letter: its plain form, or the name of an emoji, else an ellipsis."""
    plain = unicodedata.normalize("NFKD", letter)[0]
    if plain != letter and _has(plain):
        return plain
    kind = unicodedata.category(letter)
    if kind == "So":
        return f" ({unicodedata.name(letter, '…').lower()}) "
    return "" if kind[0] in "MC" or kind == "Sk" else "…"


@cache
def _font() -> Font:
    return ImageFont.load_default(16)


@cache
def _missing() -> bytes:
    return bytes(_font().getmask("\U0010fffe"))


def _has(letter: str) -> bool:
    return " " < letter <= "~" or _drawn(letter)


@cache
def _drawn(letter: str) -> bool:
    if unicodedata.category(letter)[0] in "CM":
        return False
    return bytes(_font().getmask(letter)) != _missing()
