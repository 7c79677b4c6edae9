"""The body of a job comes in; a real PNG of its shape, drawn from its words and seed, goes out.

Newcomers: the same body and seed give the same picture, another prompt or seed another one, and the prompt is
written under it. Noise fields are small random pictures, blown up smoothly: that is all the mathematics needed.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, PngImagePlugin

SIZES = {  # chosen: about one megapixel each, in steps of 16 pixels
    "1:1": (1024, 1024),
    "4:3": (1152, 864),
    "3:2": (1248, 832),
    "16:9": (1344, 756),
    "2.35:1": (1504, 640),
    "4:5": (912, 1140),
    "2:3": (832, 1248),
    "9:16": (756, 1344),
}
WILDNESS = {"raw": 0.25, "low": 0.5, "medium": 1.0, "high": 1.8}
HUES = {
    "red": 0.0, "rose": 0.95, "pink": 0.92, "orange": 0.07, "amber": 0.1, "gold": 0.12, "yellow": 0.14,
    "desert": 0.09, "sunset": 0.03, "autumn": 0.06, "fire": 0.02, "green": 0.36, "forest": 0.38, "garden": 0.3,
    "teal": 0.49, "sea": 0.54, "ocean": 0.56, "ice": 0.55, "snow": 0.58, "blue": 0.6, "night": 0.65,
    "storm": 0.62, "indigo": 0.7, "purple": 0.77, "violet": 0.75, "lavender": 0.74,
}  # fmt: skip

Colour = tuple[int, int, int]


def draw(body: Mapping[str, Any], number: int, seed: int, text: Mapping[str, str]) -> bytes:
    """The bytes of a PNG, with `text` in iTXt chunks. Blocks; call it from a thread."""
    prompt = body["prompt"]
    aspect_ratio = body.get("aspect_ratio", "1:1")
    creativity = body.get("creativity", "medium")
    about = repr((prompt, aspect_ratio, creativity, body.get("seed", seed), number))
    random = Random(hashlib.sha256(about.encode("utf-8", "surrogatepass")).digest())
    size = SIZES[aspect_ratio]
    palette = _palette(prompt, random, WILDNESS[creativity])
    scene: Callable[..., Image.Image] = random.choice((_hills, _hills, _strata, _sea, _bubbles))
    picture = scene(size, palette, random, WILDNESS[creativity])
    _caption(picture, prompt, palette)
    notes = PngImagePlugin.PngInfo()
    for key, value in text.items():
        notes.add_itxt(key, value)
    out = io.BytesIO()
    picture.save(out, "PNG", pnginfo=notes, compress_level=3)
    return out.getvalue()


# ---- colours ---------------------------------------------------------------------------------------------


class _Palette:
    """Colours around one hue and its counterpart; `at` goes from dark (0) to light (1)."""

    def __init__(self, hue: float, other: float, dark: bool) -> None:
        self.hue, self.other, self.dark = hue, other, dark

    def at(self, light: float, *, other: float = 0.0) -> Colour:
        """A colour of this lightness; `other` from 0 to 1 moves it towards the counterpart."""
        hue = self.hue + other * (((self.other - self.hue + 0.5) % 1.0) - 0.5)
        red, green, blue = colorsys.hls_to_rgb(hue % 1.0, 0.06 + 0.88 * light, 0.52 - 0.2 * abs(light - 0.5))
        return round(red * 255), round(green * 255), round(blue * 255)


def _palette(prompt: str, random: Random, wildness: float) -> _Palette:
    words = prompt.lower().replace(",", " ").split()
    named = [HUES[word] for word in words if word in HUES]
    hue = (named[0] if named else random.random()) + random.uniform(-0.02, 0.02)
    other = named[1] if len(named) > 1 else hue + random.choice((0.08, -0.1, 0.42, 0.5)) * min(wildness, 1.2)
    dark = (
        bool({"night", "dark", "black", "stars", "moon", "midnight", "neon"} & set(words)) or random.random() < 0.3
    )
    return _Palette(hue, other, dark)


def _gradient(size: tuple[int, int], colours: list[Colour]) -> Image.Image:
    """Top to bottom, smoothly through the colours."""
    strip = Image.new("RGB", (1, len(colours)))
    strip.putdata(colours)
    tall = strip.resize((1, size[1] // 4), Image.Resampling.BICUBIC)
    return tall.resize(size, Image.Resampling.BICUBIC)


def _noise(size: tuple[int, int], cells: int, random: Random) -> Image.Image:
    """A smooth random field, grey."""
    across = max(2, round(cells * size[0] / max(size)))
    down = max(2, round(cells * size[1] / max(size)))
    field = Image.frombytes("L", (across + 2, down + 2), random.randbytes((across + 2) * (down + 2)))
    return field.resize(size, Image.Resampling.BICUBIC)


_SOFT = [88 + v * 80 // 255 for v in range(256)]


def _grain(picture: Image.Image, strength: float, random: Random) -> Image.Image:
    """A breath of paper, so that gradients do not look like plastic."""
    half = (picture.width // 2, picture.height // 2)
    grain = Image.frombytes("L", half, random.randbytes(half[0] * half[1])).point(_SOFT).resize(picture.size)
    return Image.blend(picture, ImageChops.overlay(picture, Image.merge("RGB", (grain,) * 3)), strength)


# ---- scenes ----------------------------------------------------------------------------------------------


def _sky(size: tuple[int, int], palette: _Palette, random: Random) -> Image.Image:
    if palette.dark:
        sky = _gradient(
            size, [palette.at(0.02), palette.at(0.12), palette.at(0.3, other=0.5), palette.at(0.5, other=1)]
        )
        pen = ImageDraw.Draw(sky)
        for _ in range(size[0] // 5):
            x, y = random.randrange(size[0]), int(random.random() ** 1.6 * size[1] * 0.75)
            radius = random.choice((0.6, 0.6, 0.9, 1.5))
            pen.ellipse(
                (x - radius, y - radius, x + radius, y + radius), fill=palette.at(random.uniform(0.7, 1.0))
            )
    else:
        sky = _gradient(
            size, [palette.at(0.5), palette.at(0.72), palette.at(0.86, other=0.6), palette.at(0.94, other=1)]
        )
    streaks = Image.frombytes("L", (5, 18), random.randbytes(90)).resize(size, Image.Resampling.BICUBIC)
    clouds = streaks.point([max(0, v - 150) * 2 // 3 for v in range(256)])
    light = Image.new("RGB", size, palette.at(0.97, other=0.5))
    return Image.composite(light, sky, clouds)


def _disc(picture: Image.Image, centre: tuple[float, float], radius: float, colour: Colour) -> None:
    """A sun or moon with its glow."""
    x, y = centre
    glow = Image.new("L", (picture.width // 4, picture.height // 4))
    pen = ImageDraw.Draw(glow)
    for step, strength in ((3.2, 40), (2.0, 80), (1.2, 150)):
        r = radius * step / 4
        pen.ellipse((x / 4 - r, y / 4 - r, x / 4 + r, y / 4 + r), fill=strength)
    glow = glow.filter(ImageFilter.GaussianBlur(radius / 7)).resize(picture.size, Image.Resampling.BICUBIC)
    picture.paste(Image.new("RGB", picture.size, colour), (0, 0), glow)
    box = 4
    disc = Image.new("L", (int(radius * 2 * box), int(radius * 2 * box)))
    ImageDraw.Draw(disc).ellipse((0, 0, disc.width - 1, disc.height - 1), fill=255)
    disc = disc.resize((int(radius * 2), int(radius * 2)), Image.Resampling.LANCZOS)
    picture.paste(Image.new("RGB", disc.size, colour), (int(x - radius), int(y - radius)), disc)


def _ridge(width: int, base: float, height: float, rough: float, random: Random) -> list[tuple[float, float]]:
    """The line of a range of hills: a few waves of growing frequency."""
    waves = [
        (random.uniform(0, math.tau), random.uniform(0.7, 1.3) * 1.9**octave, rough**octave)
        for octave in range(1, 7)
    ]
    total = sum(size for *_, size in waves)
    return [
        (x, base - height * sum(size * math.sin(p + x / width * f * 2.2) for p, f, size in waves) / total)
        for x in range(0, width + 8, 4)
    ]


def _hills(size: tuple[int, int], palette: _Palette, random: Random, wildness: float) -> Image.Image:
    """Ranges of hills in the mist, under a sun or a moon."""
    width, height = size
    picture = _sky(size, palette, random)
    sun = palette.at(0.97, other=0.8)
    _disc(
        picture,
        (width * random.uniform(0.2, 0.8), height * random.uniform(0.18, 0.42)),
        min(size) * random.uniform(0.05, 0.1),
        sun,
    )
    ranges = 6
    for n in range(ranges):
        near = (n + 1) / ranges
        base = height * (0.5 + 0.42 * near**1.1)
        rough = 0.42 + 0.12 * min(wildness, 1.5)
        line = _ridge(width, base, height * (0.06 + 0.1 * wildness * (0.4 + 0.6 * near)), rough, random)
        far_light = 0.55 if palette.dark else 0.82
        light = far_light * (1 - near) ** 0.9 + 0.04
        mask = Image.new("L", (width * 2, height * 2))
        ImageDraw.Draw(mask).polygon(
            [(0, height * 2), *((x * 2, y * 2) for x, y in line), (width * 2, height * 2)], 255
        )
        mask = mask.resize(size, Image.Resampling.BOX)
        mist = palette.at(min(1.0, light + 0.2), other=0.6 * (1 - near))
        body = _gradient(size, [palette.at(light, other=0.3 * (1 - near))] * 3 + [mist])
        picture.paste(body, (0, 0), mask)
    return _grain(picture, 0.10, random)


def _strata(size: tuple[int, int], palette: _Palette, random: Random, wildness: float) -> Image.Image:
    """Bands of height, like agate or a map of an island."""
    broad, fine = _noise(size, 3, random), _noise(size, 9, random)
    field = Image.blend(broad, fine, 0.12 + 0.16 * min(wildness, 1.6)).filter(ImageFilter.GaussianBlur(3))
    bands = random.randint(9, 14)
    levels = [min(bands - 1, v * bands // 256) for v in range(256)]
    tones = [(n / (bands - 1)) for n in range(bands)]
    random_shift = random.random()
    colours = [palette.at(0.08 + 0.84 * tone, other=abs(math.sin(tone * 3 + random_shift * 3))) for tone in tones]
    indexed = field.point(levels)
    flat: list[int] = [part for colour in colours for part in colour]
    indexed = indexed.copy()
    picture = Image.frombytes("P", size, indexed.tobytes())
    picture.putpalette(flat + [0] * (768 - len(flat)))
    smooth = picture.convert("RGB")
    edges = indexed.point([v * (255 // bands) for v in range(256)]).filter(ImageFilter.FIND_EDGES)
    lines = edges.point([0 if v < 4 else 110 for v in range(256)]).filter(ImageFilter.GaussianBlur(0.8))
    shadow = ImageChops.offset(lines, 3, 3).filter(ImageFilter.GaussianBlur(3))
    smooth.paste(Image.new("RGB", size, palette.at(0.02)), (0, 0), shadow)
    smooth.paste(Image.new("RGB", size, palette.at(0.96)), (0, 0), lines)
    return _grain(smooth, 0.10, random)


def _sea(size: tuple[int, int], palette: _Palette, random: Random, wildness: float) -> Image.Image:
    """A low sun over water, and its way on the waves."""
    width, height = size
    horizon = int(height * random.uniform(0.46, 0.58))
    picture = _sky(size, palette, random)
    centre = (width * random.uniform(0.3, 0.7), horizon - min(size) * random.uniform(0.02, 0.14))
    sun = palette.at(0.96, other=1.0)
    _disc(picture, centre, min(size) * 0.085, sun)
    deep, shallow = (0.04, 0.34) if palette.dark else (0.2, 0.66)
    water = _gradient(
        (width, height - horizon),
        [palette.at(shallow, other=0.5), palette.at((deep + shallow) / 2), palette.at(deep)],
    )
    picture.paste(water, (0, horizon))
    pen = ImageDraw.Draw(picture, "RGBA")
    y = horizon + 2.0
    while y < height:
        depth = (y - horizon) / (height - horizon)
        for _ in range(3):
            length = width * (0.02 + 0.10 * depth) * random.uniform(0.4, 1.3)
            x = centre[0] + random.gauss(0, width * (0.02 + 0.09 * depth * (0.6 + 0.4 * wildness)))
            pen.line(
                (x - length / 2, y, x + length / 2, y),
                fill=(*sun, int(190 - 120 * depth)),
                width=1 + int(3 * depth),
            )
        x = random.uniform(0, width)
        length = width * random.uniform(0.03, 0.16) * (0.4 + depth)
        pen.line((x, y, x + length, y), fill=(*palette.at(0.85), 46), width=1 + int(2 * depth))
        y += 1.5 + 9 * depth * random.uniform(0.5, 1.3)
    return _grain(picture, 0.10, random)


def _bubbles(size: tuple[int, int], palette: _Palette, random: Random, wildness: float) -> Image.Image:
    """Circles of watercolour, one over the other."""
    width, height = size
    paper = palette.at(0.07 if palette.dark else 0.96, other=0.4)
    picture = Image.new("RGB", size, paper)
    for _ in range(int(16 + 14 * wildness)):
        radius = min(size) * random.uniform(0.03, 0.26) * (0.7 + 0.4 * wildness)
        x, y = random.gauss(width / 2, width / 4), random.gauss(height * 0.46, height / 4)
        half = Image.new("L", (width // 2, height // 2))
        pen = ImageDraw.Draw(half)
        box = tuple(v / 2 for v in (x - radius, y - radius, x + radius, y + radius))
        pen.ellipse(box, fill=120, outline=200, width=max(1, int(radius / 26)))
        mask = ImageChops.multiply(half, _noise(half.size, 6, random).point([128 + v // 2 for v in range(256)]))
        mask = mask.filter(ImageFilter.GaussianBlur(0.8)).resize(size, Image.Resampling.BICUBIC)
        light = random.uniform(0.35, 0.85) if palette.dark else random.uniform(0.2, 0.7)
        picture.paste(Image.new("RGB", size, palette.at(light, other=random.random())), (0, 0), mask)
    return _grain(picture, 0.12, random)


# ---- the caption -----------------------------------------------------------------------------------------


def _caption(picture: Image.Image, prompt: str, palette: _Palette) -> None:
    """The prompt, wrapped, on a strip of shade at the foot."""
    width, height = picture.size
    points = max(24, min(picture.size) // 32)
    font = ImageFont.load_default(points)
    lines = _wrapped(" ".join(prompt.split()), font, width * 0.9)
    step = points * 1.35
    strip = int(step * len(lines) + points * 1.3)
    shade = Image.new("L", (1, strip))
    shade.putdata([min(190, int(255 * (row / strip) ** 0.45 * 0.75)) for row in range(strip)])
    picture.paste(
        Image.new("RGB", (width, strip), palette.at(0.0)), (0, height - strip), shade.resize((width, strip))
    )
    pen = ImageDraw.Draw(picture)
    for n, line in enumerate(lines):
        pen.text((width * 0.05, height - strip + points * 0.75 + n * step), line, palette.at(0.98), font)


def _wrapped(text: str, font: Any, most: float) -> list[str]:
    """At most three lines; the rest of a long prompt is an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > most:
            lines.append(line)
            line = word
        else:
            line = longer
        if len(lines) == 3:
            return [*lines[:2], lines[2][:-1].rstrip() + "…"]
        while font.getlength(line) > most:
            line = line[:-2].rstrip() + "…"
    return [*lines, line]
