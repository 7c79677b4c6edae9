"""Scenes of landscapes: hills, dunes, the sea, a city. `wildness` is how rough they are."""

from __future__ import annotations

import math
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from krea_batch.testing.simulator.drawing.canvas import (
    Line,
    Size,
    disc,
    fill_below,
    gradient,
    polygon_mask,
    sky,
    waves,
)
from krea_batch.testing.simulator.drawing.palettes import Palette, blend, interpolate


def hills(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw ranges of hills in mist under a sun or moon, with firs on the near ones."""
    width, height = size
    horizon = height * random.uniform(0.62, 0.7)
    image = sky(size, palette, random, horizon)
    _sun(image, palette, random, 0.18, 0.42)
    ranges = random.randint(5, 7)
    firs = random.random() < 0.75
    for layer in range(ranges):
        near = (layer + 1) / ranges
        base = height * (0.46 + 0.44 * near**1.15)
        rough = 0.4 + 0.1 * min(wildness, 1.6)
        tall = height * (0.06 + 0.07 * wildness * (0.5 + 0.5 * near))
        line = waves(width, base, tall, rough, random)
        if firs and near > 0.6:
            line = _firs(line, height * (0.012 + 0.035 * near**3), random)
        body = interpolate(palette.land, near**1.1)
        mist = blend(body, palette.sky[-1], 0.55 * (1 - near) + 0.12)
        fill_below(image, line, [body, blend(body, mist, 0.5), mist, mist, mist])
    return image


def dunes(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw dunes, lit from one side."""
    width, height = size
    image = sky(size, palette, random, height * 0.6)
    _sun(image, palette, random, 0.2, 0.4)
    count = random.randint(5, 6)
    for layer in range(count):
        near = (layer + 1) / count
        base = height * (0.44 + 0.42 * near)
        crest = waves(width, base, height * (0.05 + 0.09 * near) * (0.7 + 0.3 * wildness), 0.24, random, slow=1.5)
        lit = blend(interpolate(palette.land, 0.62 * near), palette.sky[-1], 0.42 * (1 - near))
        shade = interpolate(palette.land, min(1.0, 0.25 + 0.75 * near))
        fill_below(image, crest, [blend(lit, palette.light, 0.25), lit, blend(lit, shade, 0.35)])
        _shade_lee(image, crest, height * (0.1 + 0.3 * near), shade, random)
    return image


def sea(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw a low sun over water, its reflection on the waves, and a distant coast."""
    width, height = size
    horizon = int(height * random.uniform(0.46, 0.56))
    image = sky(size, palette, random, horizon)
    across = width * random.uniform(0.28, 0.72)
    radius = min(size) * random.uniform(0.06, 0.09)
    disc(image, (across, horizon - radius * random.uniform(0.3, 2.4)), radius, palette.light)
    for far in (0.15, 0.4):
        coast = waves(width, horizon + height * 0.012, height * 0.05, 0.5, random)
        low = [(x, max(y, horizon - height * 0.06)) for x, y in coast]
        fill_below(image, low, [interpolate(palette.land, far)] * 2)
    water = [palette.sky[-1], palette.sky[-2], palette.sky[1], blend(palette.sky[0], palette.land[-1], 0.55)]
    water = [blend(colour, palette.land[2], 0.25) for colour in water]
    image.paste(gradient((width, height - horizon), water), (0, horizon))
    _ripples(image, palette, random, (across, horizon), wildness)
    return image


def city(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw towers in haze with lights in their windows, mirrored in water."""
    width, height = size
    shore = int(height * random.uniform(0.7, 0.78))
    image = sky(size, palette, random, shore)
    _sun(image, palette, random, 0.16, 0.36)
    layers = 4
    for layer in range(layers):
        near = (layer + 1) / layers
        body = interpolate(palette.land, near)
        haze = blend(body, palette.sky[-1], 0.6 * (1 - near) + 0.1)
        towers = _towers(width, shore, height * (0.5 - 0.18 * near) * (0.75 + 0.25 * wildness), near, random)
        line = [point for left, top, right in towers for point in ((left, top), (right, top))]
        fill_below(image, line, [body, haze])
        if near > 0.3:
            _windows(image, towers, shore, palette, near, random)
    _mirror(image, shore, palette, random)
    return image


def _sun(image: Image.Image, palette: Palette, random: Random, high: float, low: float) -> None:
    width, height = image.size
    centre = width * random.uniform(0.2, 0.8), height * random.uniform(high, low)
    disc(image, centre, min(width, height) * random.uniform(0.05, 0.085), palette.light)


def _firs(line: Line, tall: float, random: Random) -> Line:
    """Return the line with groups of firs on it."""
    points: list[tuple[float, float]] = []
    thick = 0.5
    for x, y in line:
        points.append((x, y))
        thick = min(1.0, max(0.0, thick + random.uniform(-0.16, 0.16)))
        if random.random() < thick:
            h = tall * random.uniform(0.45, 1.15) * (0.5 + 0.5 * thick)
            w = h * 0.2
            for up, wide in ((0.12, 1.0), (0.4, 0.5), (0.4, 0.72), (0.68, 0.3), (0.68, 0.46)):
                points.append((x - w * wide, y - h * up))
            points.append((x, y - h))
            for up, wide in ((0.68, 0.46), (0.68, 0.3), (0.4, 0.72), (0.4, 0.5), (0.12, 1.0)):
                points.append((x + w * wide, y - h * up))
    return points


def _shade_lee(image: Image.Image, crest: Line, deep: float, shade: tuple[int, int, int], random: Random) -> None:
    """Paint the side of a dune that is in the shade, below its crest."""
    width, height = image.size
    at, speed = random.uniform(0, math.tau), random.uniform(1.2, 2.4) * math.tau / width
    lower = [(x, y + deep * max(0.0, math.sin(at + x * speed)) ** 1.5) for x, y in crest]
    top = max(0, int(min(y for _, y in crest)) - 1)
    bottom = min(height, int(max(y for _, y in lower)) + 2)
    if bottom - top < 2:
        return
    mask = polygon_mask((width, bottom - top), [*crest, *reversed(lower)], (0, top), 205)
    image.paste(Image.new("RGB", mask.size, shade), (0, top), mask)


def _ripples(image: Image.Image, palette: Palette, random: Random, sun: tuple[float, int], wildness: float) -> None:
    width, height = image.size
    x_sun, horizon = sun
    pen = ImageDraw.Draw(image, "RGBA")
    y = horizon + 1.0
    while y < height:
        depth = (y - horizon) / (height - horizon)
        thick = 1 + int(2.6 * depth * height / 1000)
        for _ in range(4):
            long = width * (0.012 + 0.075 * depth) * random.uniform(0.3, 1.4)
            x = x_sun + random.gauss(0, width * (0.018 + 0.075 * depth * (0.6 + 0.4 * wildness)))
            pen.line((x - long / 2, y, x + long / 2, y), (*palette.light, int(200 - 130 * depth)), thick)
        for colour in (palette.sky[-1], palette.land[-1]):
            x, long = random.uniform(-0.1, 1.0) * width, width * random.uniform(0.04, 0.22) * (0.3 + depth)
            pen.line((x, y, x + long, y), (*colour, 44), thick)
        y += 1.5 + 8 * depth * random.uniform(0.4, 1.3)


def _towers(width: int, shore: int, tall: float, near: float, random: Random) -> list[tuple[int, int, int]]:
    """Return left, top and right of each tower of a row."""
    towers: list[tuple[int, int, int]] = []
    x = -random.randrange(20)
    while x < width:
        wide = int(width * random.uniform(0.025, 0.06) * (0.7 + 0.5 * near))
        middle = 1 - 0.6 * abs((x + wide / 2) / width - 0.5) ** 1.2 * 2
        top = int(shore - tall * (0.3 + 0.7 * random.random() ** 1.4) * middle)
        towers.append((x, top, x + wide))
        if random.random() < 0.14:
            mast = x + wide // 2
            towers[-1:] = [(x, top, mast), (mast, int(top - tall * 0.14), mast + 3), (mast + 3, top, x + wide)]
        x += wide
    return towers


def _windows(
    image: Image.Image,
    towers: list[tuple[int, int, int]],
    shore: int,
    palette: Palette,
    near: float,
    random: Random,
) -> None:
    pen = ImageDraw.Draw(image)
    step, dark = 7 + int(5 * near), interpolate(palette.land, near)
    lights = [blend(dark, light, 0.25 + 0.6 * near) for light in (palette.light, palette.accents[0], palette.light)]
    for left, top, right in towers:
        lit, light = random.random() ** 2 * 0.75, random.choice(lights)
        for x in range(left + step // 2 + 1, right - step // 2, step):
            for y in range(top + step, shore, step + 3):
                if random.random() < lit:
                    pen.rectangle((x, y, x + step // 3, y + step // 2), light)


def _mirror(image: Image.Image, shore: int, palette: Palette, random: Random) -> None:
    width, height = image.size
    deep = height - shore
    reflection = image.crop((0, shore - deep, width, shore)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    reflection = reflection.resize((width, deep // 6)).resize((width, deep), Image.Resampling.BILINEAR)
    reflection = reflection.filter(ImageFilter.BoxBlur((2, 4)))
    reflection = Image.blend(reflection, gradient(reflection.size, [palette.sky[1], palette.land[-1]]), 0.42)
    image.paste(reflection, (0, shore))
    pen = ImageDraw.Draw(image, "RGBA")
    for _ in range(deep // 2):
        y = shore + int(deep * random.random() ** 1.5)
        x, long = random.uniform(-0.1, 1) * width, width * random.uniform(0.02, 0.14)
        pen.line((x, y, x + long, y), (*random.choice((palette.sky[-1], palette.land[-1])), 40), 1)
