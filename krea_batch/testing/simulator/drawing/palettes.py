"""Choose colours for a prompt. Pure.

The palettes are picked by hand, because computed colours look artificial. A word of the prompt chooses one of them,
or else the seed does.
"""

from __future__ import annotations

import colorsys
import re
from random import Random
from typing import NamedTuple

Colour = tuple[int, int, int]


class Palette(NamedTuple):
    """`sky` from top to horizon, `land` from far to near, `light` for sun and lamps, `accents` for shapes."""

    name: str
    sky: list[Colour]
    land: list[Colour]
    light: Colour
    accents: list[Colour]

    @property
    def dark(self) -> bool:
        """Return whether the sky is dark enough for stars."""
        return sum(self.sky[0]) + sum(self.sky[1]) < 330

    @property
    def ramp(self) -> list[Colour]:
        """Return colours of land, sky and light, from dark to light."""
        return sorted({self.land[-1], self.land[1], *self.sky, self.light}, key=sum)


# name: sky, land, light, accents; chosen: by eye, on drawn images
_PALETTES = {
    "dusk": "2b2350 6b3a78 c65b7c f59e7a ffdca8|c9788a 7a3f6d 3a2352 160f2b|fff4d9|f59e7a c65b7c 6b3a78 ffdca8 3a7d8c",
    "dawn": "8fb7d9 b9cfe0 f3d9c9 fbc8a4 f9a980|c9a9a6 8f7f93 57597a 2c3350|fff6e0|f9a980 e2725b 57597a 8fb7d9 f3d9c9",
    "night": "050a1f 0d1b3f 1b3566 35608f 7fa9c2|4a759b 2a4b74 152b4d 070f24|f8efc4|f2d479 6d9dbd 35608f e8eef2 d9824a",
    "arctic": "5b8fb0 93bcd1 c4dde6 e6eff0 fdf3e7|c5d7df 93b1c2 5f829b 2c4a63|ffffff|2c4a63 93bcd1 e4a07a f4e3d0 5f829b",
    "desert": "4a7d96 9bbcb8 f1dcb6 f8be80 ee9464|e4a676 c9744a 8e4630 4a2320|fff3d0|e8875a c9744a 3f6e8c f6d9a8 4a2320",
    "forest": "7fa39c b4cbb9 dbe3c8 f3ecd2 f7e3b5|a3bda0 5f8a6c 2f5d4a 10302a|fffbe6|2f5d4a 8fb08c d9a441 efe3c0 b5533c",
    "ember": "4c2a3f 8b3b3f cc5a3a f0954a fbd07f|c9683e 8d3b2e 57242c 24121c|fff0c2|f0954a cc5a3a 8b3b3f fbd07f 3c6261",
    "ocean": "0b3954 1f6f8b 5fb0b7 b5dccd fbe9c6|6aa8ab 2d7686 13506a 08263c|fff7de|1f6f8b 5fb0b7 f2a65a fbe9c6 e4685d",
    "lavender": "5d5a94 9a86bd cfb2d8 f2cfd6 fbe6cf|b79cc9 8566a8 543f7f 271e47|fff7ea|9a86bd f2a7b3 543f7f fbe6cf 7fa88b",
    "neon": "0b0221 240a4f 5b1a8b c72c9c ff7fae|8a2f9f 451c78 220f4f 0a0420|b8f7ff|ff3fa4 29e0ff 7d3cff ffd166 ff7f50",
    "rose": "a8475f d3798a eeaeb0 f9d8cd fdf0e2|d9929c aa566d 713249 35172a|fffaf0|c2566f eeaeb0 713249 f4c9a8 6b8f8a",
    "storm": "1d2833 374957 5d7583 94a8ac d5d3c4|7d9299 4d636f 293a46 0f1921|f5edd6|5d7583 d9a05b 374957 d5d3c4 a3473f",
    "aurora": "041c2c 0a3d4a 128a7a 5fd3a0 d8f3b0|2a7f7a 155a5f 0b3540 041820|f3ffe0|5fd3a0 128a7a f4d35e d8f3b0 e86a92",
    "gold": "8a5a2b c98f3c eec36a f8e0a5 fdf3d7|d2a558 9c6d35 5d3d24 2a1a13|fffdf0|c98f3c 7a4b2a eec36a 3d6a6b b5523b",
    "ink": "8d8f92 b4b5b6 d4d3d0 e6e4df f3f0ea|b9b8b6 838487 4b4d52 191a1e|ffffff|191a1e 6b6d72 b23a32 d4d3d0 9a9b9e",
}  # fmt: skip
_PALETTE_WORDS = {
    "dusk": "sunset dusk evening twilight purple violet magenta mauve plum",
    "dawn": "dawn sunrise morning spring peach pastel soft mist misty fog foggy",
    "night": "night nights starry star stars moon moonlit midnight dark blue indigo navy space galaxy cosmos owl",
    "arctic": "snow snowy ice icy winter arctic frozen frost white glacier polar cold silver swan",
    "desert": "desert dune dunes sand sandy savanna canyon clay terracotta summer egypt camel mars",
    "forest": "forest woods tree trees green garden moss jungle leaf leaves meadow bamboo grass frog nature tea",
    "ember": "autumn fall fire flame ember lava volcano orange red fox lantern candle dragon pumpkin",
    "ocean": "sea ocean beach wave waves river lake water coast harbour harbor teal turquoise ship boat fish whale",
    "lavender": "lavender provence provencal lilac violets iris dream dreamy",
    "neon": "neon cyberpunk city street arcade robot synthwave futuristic tokyo vaporwave rain",
    "rose": "rose roses pink cherry blossom blossoms love flower flowers peony tulip flamingo cat",
    "storm": "storm stormy rainy cloud clouds grey gray wolf mountain mountains cliff castle lighthouse",
    "aurora": "aurora northern emerald jade alien underwater mermaid",
    "gold": "gold golden yellow honey amber wheat sun sunny sunflower desk library lion brass",
    "ink": "ink monochrome black pencil sketch charcoal etching noir calligraphy",
}
_PALETTE_BY_WORD = {word: name for name, words in _PALETTE_WORDS.items() for word in words.split()}


def split_words(prompt: str) -> list[str]:
    """Return the words of a prompt in order, in lower case."""
    return re.findall(r"[^\W\d_]+", prompt.lower())


def palette_for(prompt: str, random: Random, wildness: float) -> Palette:
    """Return a palette that a word of the prompt names, or else any; `wildness` shifts its hues a little."""
    matches = [_PALETTE_BY_WORD[word] for word in split_words(prompt) if word in _PALETTE_BY_WORD]
    name = random.choice(matches) if matches else random.choice([name for name in _PALETTES if name != "ink"])
    hue_shift = random.gauss(0.0, 0.012 * wildness)
    parts = [[_shift_hue(number, hue_shift) for number in part.split()] for part in _PALETTES[name].split("|")]
    return Palette(name, parts[0], parts[1], parts[2][0], parts[3])


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """Return a colour between two: `first` for share 0, `second` for share 1."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def interpolate(colours: list[Colour], share: float) -> Colour:
    """Return the colour at a share from 0 to 1 of a gradient through several colours."""
    position = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    index = min(int(position), len(colours) - 2)
    return blend(colours[index], colours[index + 1], position - index)


def _shift_hue(hex_code: str, hue_shift: float) -> Colour:
    red, green, blue = bytes.fromhex(hex_code)
    hue, light, depth = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    red, green, blue = (round(part * 255) for part in colorsys.hls_to_rgb((hue + hue_shift) % 1.0, light, depth))
    return red, green, blue
