"""Scenes of patterns: cut paper, tiles, currents, washes, a planet, brush strokes. `wildness` is their variety."""

from __future__ import annotations

import math
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from krea_batch.testing.simulator.drawing.canvas import Size, gradient, noise, polygon_mask, stars
from krea_batch.testing.simulator.drawing.landscapes import hills, sea
from krea_batch.testing.simulator.drawing.palettes import Colour, Palette, blend, interpolate


def cut_paper(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw layers of cut paper, each with a shadow on the one below, like the map of an island."""
    broad, fine = noise(size, 3.4, random), noise(size, 10, random)
    field = Image.blend(broad, fine, 0.1 + 0.1 * min(wildness, 1.8)).filter(ImageFilter.GaussianBlur(2))
    low, high = field.getextrema()
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))  # noqa: S101, PT018 - one channel
    layers = random.randint(7, 10)
    colours = palette.ramp if random.random() < 0.5 else palette.ramp[::-1]
    image = Image.new("RGB", size, colours[0])
    for layer in range(1, layers):
        edge = low + (high - low) * (layer / layers) ** 0.9
        mask = field.point([min(255, max(0, int((value - edge) * 96))) for value in range(256)])
        shadow = ImageChops.offset(mask, 5, 8).resize((size[0] // 4, size[1] // 4), Image.Resampling.BILINEAR)
        shadow = shadow.filter(ImageFilter.BoxBlur(2)).point([value * 2 // 5 for value in range(256)]).resize(size)
        image.paste(Image.new("RGB", size, blend(colours[0], (0, 0, 0), 0.75)), (0, 0), shadow)
        image.paste(Image.new("RGB", size, interpolate(colours, layer / (layers - 1))), (0, 0), mask)
    return image


def tiles(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw quarter and half circles on tiles."""
    across = random.randint(5, 7) if wildness < 1.5 else random.randint(8, 10)
    side = math.ceil(max(size) * 2 / across / 2) * 2
    image = Image.new("RGB", (size[0] * 2, size[1] * 2), palette.light)
    pen = ImageDraw.Draw(image)
    paints = [*palette.accents, palette.land[-1], blend(palette.sky[-1], palette.light, 0.5)]
    left, top = (image.width % side) // 2 - side, (image.height % side) // 2 - side
    for x in range(left, image.width, side):
        for y in range(top, image.height, side):
            ground, one, two = random.sample(paints, 3)
            pen.rectangle((x, y, x + side, y + side), ground)
            _tile(pen, (x, y, side), one, two, random)
    return image.reduce(2)


def currents(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw long lines that follow a current."""
    width, height = size
    image = gradient((width * 2, height * 2), [palette.land[-1], blend(palette.land[-1], palette.sky[0], 0.5)])
    pen = ImageDraw.Draw(image)
    parts = [
        (random.uniform(0, math.tau), random.uniform(1.2, 3.2) * (0.6 + 0.4 * wildness), random.uniform(0, math.tau))
        for _ in range(3)
    ]
    turns = [(math.cos(way) * speed / 1000, math.sin(way) * speed / 1000, at) for way, speed, at in parts]
    main = random.uniform(-0.5, 0.5)
    colours = [*palette.sky[1:], *palette.accents[:2], palette.light]
    step, sin, cos = 22.0, math.sin, math.cos
    for _ in range(560):
        x, y = random.uniform(-0.1, 1.0) * width, random.uniform(-0.1, 1.1) * height
        colour = interpolate(colours, random.gauss(y / height, 0.16))
        points: list[float] = []
        for _ in range(random.randint(8, 26)):
            points += (x * 2, y * 2)
            way = main + 1.1 * sum(sin(a * x + b * y + at) for a, b, at in turns)
            x, y = x + step * cos(way), y + step * sin(way)
        pen.line(points, colour, random.choice((2, 3, 3, 5, 7, 11)), joint="curve")
    return image.reduce(2)


def washes(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw watercolour: transparent round shapes, darker at their edges and where they overlap."""
    width, height = size
    image = Image.new("RGB", size, blend(palette.light, (252, 248, 240), 0.7))
    pigment = noise(size, 14, random).point([40 + value * 4 // 5 for value in range(256)])
    paints = [*palette.accents, *palette.sky[:4]]
    for _ in range(int(15 + 9 * wildness)):
        radius = min(size) * random.uniform(0.05, 0.25) * (0.8 + 0.25 * wildness)
        x, y = random.gauss(width * 0.5, width * 0.23), random.gauss(height * 0.5, height * 0.22)
        _wash(image, pigment, (x, y), radius, random.choice(paints), random)
    return image


def planet(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw a planet in front of a nebula."""
    width, height = size
    deep = blend(palette.sky[0], (3, 4, 14), 0.82)
    image = Image.new("RGB", size, deep)
    for colour, cells in ((palette.sky[1], 3.0), (palette.sky[2], 4.0), (palette.accents[0], 5.5)):
        cloud = ImageChops.multiply(noise(size, cells, random), noise(size, cells * 3, random))
        strength = 0.9 + 0.5 * wildness
        cloud = cloud.point([min(235, int(max(0, value - 58) * strength)) for value in range(256)])
        image.paste(Image.new("RGB", size, blend(colour, deep, 0.15)), (0, 0), cloud)
    lights = palette._replace(sky=[deep] * 5)
    stars(image, lights, random, height, width * height // 900)
    radius = int(min(size) * random.uniform(0.2, 0.3))
    x, y = int(width * random.uniform(0.35, 0.65)), int(height * random.uniform(0.4, 0.54))
    _globe(image, palette, (x, y), radius, random)
    return image


def strokes(size: Size, palette: Palette, random: Random, wildness: float) -> Image.Image:
    """Draw a landscape in broad brush strokes that whirl around several points."""
    width, height = size
    scene = random.choice((hills, hills, sea))((width // 2, height // 2), palette, random, wildness)
    colours = scene.filter(ImageFilter.BoxBlur(3)).load()
    assert colours is not None  # noqa: S101 - for the type checker: the image is loaded
    whirls = [
        (random.uniform(0, width), random.uniform(0, height * 0.5), random.choice((-1, 1)), width * height / 22)
        for _ in range(5)
    ]
    image = scene.resize((width * 2, height * 2), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    broad = min(size) / 105
    steps, cell = range(4), max(7.0, math.sqrt(width * height / 5200))
    for row in range(int(height / cell) + 1):
        for column in range(int(width / cell) + 1):
            x, y = (column + random.random()) * cell, (row + random.random()) * cell
            under = colours[min(width // 2 - 1, int(x) // 2), min(height // 2 - 1, int(y) // 2)]
            assert isinstance(under, tuple)  # noqa: S101 - RGB
            colour = _lighten((under[0], under[1], under[2]), random.gauss(0, 13))
            points: list[float] = []
            for _ in steps:
                points += (x * 2, y * 2)
                way = _whirl(x, y, whirls, wildness, height)
                x, y = x + broad * 1.7 * math.cos(way), y + broad * 1.7 * math.sin(way)
            pen.line(points, colour, int(broad * random.uniform(1.1, 2.2)), joint="curve")
    return image.reduce(2)


def _whirl(x: float, y: float, whirls: list[tuple[float, float, int, float]], wildness: float, height: int) -> float:
    """Return the direction of the brush at a point, as an angle."""
    across, down = 1.0, 0.12 * math.sin(x / 90)
    for x_mid, y_mid, turn, reach in whirls:
        dx, dy = x - x_mid, y - y_mid
        pull = turn * 6.0 * wildness / (1.0 + (dx * dx + dy * dy) / reach * 4) * max(0.0, 1.0 - y / height * 1.25)
        distance = math.sqrt(dx * dx + dy * dy) + 1.0
        across, down = across - pull * dy / distance, down + pull * dx / distance
    return math.atan2(down, across)


def _lighten(colour: Colour, lighter: float) -> Colour:
    red, green, blue = (min(255, max(0, int(part + lighter))) for part in colour)
    return red, green, blue


def _tile(pen: ImageDraw.ImageDraw, place: tuple[int, int, int], one: Colour, two: Colour, random: Random) -> None:
    x, y, side = place
    corner = random.randrange(4)
    cx, cy = x + side * (corner % 2), y + side * (corner // 2)
    match random.randrange(6):
        case 0 | 1:
            for radius, colour in ((side, one), (side / 2, two)):
                pen.pieslice((cx - radius, cy - radius, cx + radius, cy + radius), *_quarter(corner), fill=colour)
        case 2:
            pen.ellipse((x, y, x + side, y + side), one)
            pen.ellipse((x + side / 4, y + side / 4, x + side * 3 / 4, y + side * 3 / 4), two)
        case 3:
            turn = random.choice((0, 90, 180, 270))
            pen.pieslice((x, y, x + side, y + side), turn, turn + 180, one)
            pen.pieslice(
                (x + side / 4, y + side / 4, x + side * 3 / 4, y + side * 3 / 4), turn + 180, turn + 360, two
            )
        case 4:
            pen.pieslice((cx - side, cy - side, cx + side, cy + side), *_quarter(corner), fill=one)
            cx, cy = x + side * (1 - corner % 2), y + side * (1 - corner // 2)
            half = side / 2
            pen.pieslice((cx - half, cy - half, cx + half, cy + half), *_quarter(3 - corner), fill=two)
        case _:
            ends = ((x, y), (x + side, y + side)) if corner % 2 else ((x + side, y), (x, y + side))
            pen.polygon([*ends, (cx, cy if corner % 2 == 0 else y + side)], one)


def _quarter(corner: int) -> tuple[int, int]:
    """Return the angles of the quarter circle around a corner of a tile that lies inside the tile."""
    return ((0, 90), (90, 180), (270, 360), (180, 270))[corner]


def _wash(
    image: Image.Image,
    pigment: Image.Image,
    centre: tuple[float, float],
    radius: float,
    paint: Colour,
    random: Random,
) -> None:
    x, y = centre
    shape = [(random.uniform(0, math.tau), n, random.uniform(0.006, 0.03)) for n in (2, 3, 5, 8)]
    rim = [
        (radius * (1 + sum(s * math.sin(n * a * math.tau / 90 + at) for at, n, s in shape)), a * math.tau / 90)
        for a in range(90)
    ]
    box = [int(x - radius * 1.15), int(y - radius * 1.15), int(x + radius * 1.15), int(y + radius * 1.15)]
    box = [max(0, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3])]
    if box[2] - box[0] < 4 or box[3] - box[1] < 4:
        return
    area = (box[0], box[1], box[2], box[3])
    size = (box[2] - box[0], box[3] - box[1])
    outer = polygon_mask(size, [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in rim], area[:2], 215)
    inner = polygon_mask(
        size, [(x + r * 0.955 * math.cos(a), y + r * 0.955 * math.sin(a)) for r, a in rim], area[:2], 88
    ).filter(ImageFilter.BoxBlur(max(1.0, radius / 42)))
    mask = ImageChops.multiply(ImageChops.subtract(outer, inner), pigment.crop(area))
    under = image.crop(area)
    image.paste(ImageChops.multiply(under, Image.new("RGB", size, paint)), area[:2], mask)


def _globe(image: Image.Image, palette: Palette, centre: tuple[int, int], radius: int, random: Random) -> None:
    side = radius * 2
    bands = noise((side, side), random.randint(7, 12), random, stretch=random.uniform(3, 6))
    tint = palette.ramp[1:]
    table = [interpolate(tint, value / 255) for value in range(256)]
    body = Image.merge("RGB", [bands.point([colour[part] for colour in table]) for part in range(3)])
    light = Image.radial_gradient("L").resize((side * 2, side * 2), Image.Resampling.BILINEAR)
    left, top = int(radius * random.uniform(1.1, 1.5)), int(radius * random.uniform(1.05, 1.35))
    night = light.crop((left, top, left + side, top + side)).point(
        [min(250, int(max(0, value - 38) * 2.1)) for value in range(256)]
    )
    body.paste(Image.new("RGB", body.size, blend(palette.sky[0], (2, 3, 10), 0.85)), (0, 0), night)
    mask = Image.new("L", (side * 2, side * 2))
    ImageDraw.Draw(mask).ellipse((2, 2, side * 2 - 3, side * 2 - 3), fill=255)
    image.paste(body, (centre[0] - radius, centre[1] - radius), mask.reduce(2))
