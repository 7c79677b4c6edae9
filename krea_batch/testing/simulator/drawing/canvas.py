"""Drawing primitives for Pillow: smooth areas, glows, stars, noise.

Pillow draws without antialiasing, so masks are drawn at twice the size and reduced, and only where an edge is. Noise
is a small random image, enlarged; this needs no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from krea_batch.testing.simulator.drawing.palettes import Colour, Palette, blend, interpolate

Size = tuple[int, int]
Line = Sequence[tuple[float, float]]


def gradient(size: Size, colours: list[Colour]) -> Image.Image:
    """Return a gradient from top to bottom."""
    rows = max(2, size[1])
    strip = Image.new("RGB", (1, rows))
    strip.putdata([interpolate(colours, row / (rows - 1)) for row in range(rows)])
    return strip.resize(size, Image.Resampling.NEAREST)


def noise(size: Size, cells: float, random: Random, stretch: float = 1.0) -> Image.Image:
    """Return a smooth grey random field with `cells` cells on its long side; `stretch` is their width to height."""
    across = max(2, round(cells * size[0] / max(size) / stretch))
    down = max(2, round(cells * size[1] / max(size)))
    field = Image.frombytes("L", (across, down), random.randbytes(across * down))
    return field.resize(size, Image.Resampling.BICUBIC)


def fill_below(image: Image.Image, line: Line, colours: list[Colour]) -> None:
    """Paint everything below a line that runs from left to right, with a gradient from its highest point down."""
    width, height = image.size
    top = max(0, int(min(y for _, y in line)) - 1)
    bottom = min(height, int(max(y for _, y in line)) + 2)
    if top >= height:
        return
    paint = gradient((width, height - top), colours)
    if bottom > top:
        mask = polygon_mask((width, bottom - top), [*line, (width + 9, bottom + 9), (-9, bottom + 9)], (0, top))
        image.paste(paint.crop((0, 0, width, bottom - top)), (0, top), mask)
    if bottom < height:
        image.paste(paint.crop((0, bottom - top, width, height - top)), (0, max(bottom, top)))


def polygon_mask(size: Size, points: Line, offset: tuple[float, float] = (0, 0), fill: int = 255) -> Image.Image:
    """Return a mask of a polygon with smooth edges; `offset` is the position of the mask in the image."""
    mask = Image.new("L", (size[0] * 2, size[1] * 2))
    shifted = [((x - offset[0]) * 2, (y - offset[1]) * 2) for x, y in points]
    ImageDraw.Draw(mask).polygon(shifted, fill)
    return mask.reduce(2)


def waves(width: int, base: float, height: float, rough: float, random: Random, slow: float = 2.2) -> Line:
    """Return the outline of a range of hills: waves of growing frequency, with a point every 4 pixels."""
    parts = [
        (random.uniform(0, math.tau), random.uniform(0.7, 1.3) * 1.9**octave * slow / width, rough**octave)
        for octave in range(1, 7)
    ]
    total = sum(size for *_, size in parts)
    return [
        (x, base - height * sum(size * math.sin(at + x * speed) for at, speed, size in parts) / total)
        for x in range(-4, width + 8, 4)
    ]


def disc(image: Image.Image, centre: tuple[float, float], radius: float, colour: Colour) -> None:
    """Paint a sun or moon with its glow."""
    x, y = centre
    reach = int(radius * 5)
    halo = _halo().resize((reach * 2, reach * 2), Image.Resampling.BILINEAR)
    image.paste(Image.new("RGB", halo.size, colour), (int(x) - reach, int(y) - reach), halo)
    box = int(radius * 8)
    mask = Image.new("L", (box, box))
    ImageDraw.Draw(mask).ellipse((0, 0, box - 1, box - 1), fill=255)
    mask = mask.reduce(4)
    image.paste(Image.new("RGB", mask.size, colour), (int(x - radius), int(y - radius)), mask)


@cache
def _halo() -> Image.Image:
    """Return a mask of a soft round light, brightest in the middle."""
    return Image.radial_gradient("L").point([int(210 * max(0.0, 1 - value / 181) ** 3.2) for value in range(256)])


def stars(image: Image.Image, palette: Palette, random: Random, down: float, count: int) -> None:
    """Paint stars, fewer towards the bottom of the sky, which is at `down`."""
    pen = ImageDraw.Draw(image)
    for _ in range(count):
        x, share = random.randrange(image.width), random.random() ** 1.5
        y = int(share * down)
        under = image.getpixel((x, min(y, image.height - 1)))
        assert isinstance(under, tuple)  # noqa: S101 - for the type checker: this is RGB
        colour = blend((under[0], under[1], under[2]), palette.light, random.uniform(0.25, 1.0) * (1 - 0.6 * share))
        pen.point((x, y), colour)
        if random.random() < 0.22:
            pen.point(((x + 1, y), (x, y + 1), (x + 1, y + 1)), colour)
        if random.random() < 0.02:
            pen.line((x - 3, y, x + 3, y), blend(colour, palette.sky[1], 0.5))
            pen.line((x, y - 3, x, y + 3), blend(colour, palette.sky[1], 0.5))


def sky(size: Size, palette: Palette, random: Random, horizon: float) -> Image.Image:
    """Return an image with a sky down to the horizon: haze and stars at night, streaks of cloud always."""
    height = int(horizon)
    image = Image.new("RGB", size, palette.sky[-1])
    image.paste(gradient((size[0], height), palette.sky), (0, 0))
    if palette.dark:
        haze = noise((size[0], height), 4, random).point([max(0, value - 110) // 3 for value in range(256)])
        image.paste(Image.new("RGB", (size[0], height), palette.sky[-2]), (0, 0), haze)
        stars(image, palette, random, height * 0.95, size[0] * size[1] // 1600)
    streaks = noise((size[0], height), 26, random, stretch=7).point([max(0, v - 150) * 3 // 5 for v in range(256)])
    strength = 70 if palette.dark else 140
    fade = gradient_mask((size[0], height), [0, strength, strength, 0])
    light = Image.new("RGB", (size[0], height), blend(palette.sky[-1], palette.light, 0.5))
    image.paste(light, (0, 0), ImageChops.multiply(streaks, fade))
    return image


def gradient_mask(size: Size, values: list[int]) -> Image.Image:
    """Return a grey gradient from top to bottom through these values."""
    return gradient((1, size[1]), [(value, value, value) for value in values]).getchannel(0).resize(size)


def add_grain(image: Image.Image, random: Random) -> Image.Image:
    """Add the grain of paper, so that gradients have no visible bands."""
    tile = _grain()
    grain = Image.new("L", image.size)
    for x in range(-random.randrange(tile.width), image.width, tile.width):
        for y in range(-random.randrange(tile.height), image.height, tile.height):
            grain.paste(tile, (x, y))
    return ImageChops.subtract(ImageChops.add(image, Image.merge("RGB", (grain,) * 3)), _level(image.size))


GRAIN = 4  # levels up and down; chosen: by eye


@cache
def _grain() -> Image.Image:
    """Return slightly smoothed noise between 0 and twice GRAIN."""
    rough = Image.frombytes("L", (320, 320), Random(4).randbytes(320 * 320)).filter(ImageFilter.BoxBlur(0.6))
    return rough.point([min(2 * GRAIN, max(0, round(GRAIN + (value - 128) / 16))) for value in range(256)])


@cache
def _level(size: Size) -> Image.Image:
    return Image.new("RGB", size, (GRAIN, GRAIN, GRAIN))
