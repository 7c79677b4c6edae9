"""Draw the image of a job from its prompt, parameters and seed.

The same prompt, parameters and seed give the same pixels; a different prompt or seed gives different ones. Words of
the prompt choose the scene and its colours, the seed chooses the rest, and creativity sets how wild it is.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from random import Random

from PIL import Image, ImageChops

from krea_batch.testing.simulator.drawing import landscapes, patterns
from krea_batch.testing.simulator.drawing.canvas import add_grain
from krea_batch.testing.simulator.drawing.caption import add_caption, frame_metrics
from krea_batch.testing.simulator.drawing.palettes import Palette, palette_for, split_words
from krea_batch.testing.simulator.drawing.tiny_png import encode_png, text_chunks

IMAGE_SIZES = {  # chosen: about one megapixel each, within one percent of the ratio
    "1:1": (1024, 1024),
    "4:3": (1152, 864),
    "3:2": (1248, 832),
    "16:9": (1344, 756),
    "2.35:1": (1504, 640),
    "4:5": (912, 1140),
    "2:3": (832, 1248),
    "9:16": (756, 1344),
}
WILDNESS = {"raw": 0.3, "low": 0.6, "medium": 1.0, "high": 1.9}  # chosen: by eye
Scene = Callable[[tuple[int, int], Palette, Random, float], Image.Image]
_SCENES: dict[Scene, str] = {
    landscapes.hills: "mountain mountains hill hills forest tree trees valley fox wolf deer bear castle farmhouse",
    landscapes.dunes: "desert dune dunes sand camel mars pyramid snow snowy winter",
    landscapes.sea: "sea ocean beach wave waves lake water coast lighthouse ship boat whale fish island harbour",
    landscapes.city: "city street tower towers skyline neon tokyo paris london york building cyberpunk robot",
    patterns.strokes: "painting oil gogh monet impressionist starry farmhouse field fields garden flowers portrait",
    patterns.cut_paper: "map abstract paper layers topographic island agate marble",
    patterns.tiles: "pattern geometric bauhaus tile tiles mosaic poster design quilt toy chess",
    patterns.currents: "wind flow hair music dance dancer silk smoke motion bird birds river",
    patterns.washes: "watercolour watercolor wash bubbles balloons fruit flower flowers cat tea sketch",
    patterns.planet: "space planet galaxy moon mars cosmos universe astronaut star stars alien rocket",
}


def draw(text: Mapping[str, str], seed_key: str) -> bytes:
    """Return a PNG that contains `text` as iTXt chunks. Takes some 100 ms: call it in a thread."""
    prompt, creativity = text["prompt"], text["creativity"]
    random_key = repr((prompt, text["aspect_ratio"], creativity, seed_key))
    random = Random(hashlib.sha256(random_key.encode("utf-8", "surrogatepass")).digest())
    size, wildness = IMAGE_SIZES[text["aspect_ratio"]], WILDNESS[creativity]
    palette = palette_for(prompt, random, wildness)
    margin, _, strip = frame_metrics(size)
    inner = (size[0] - 2 * margin, size[1] - margin - strip)
    scene = add_grain(_scene_for(prompt, random)(inner, palette, random, wildness), random)
    note = f"seed {text['seed']}" if text["seed"] else ""
    return _encode_png(add_caption(scene, size, prompt, note[:30], palette), text_chunks(text))


def _scene_for(prompt: str, random: Random) -> Scene:
    """Return a scene that a word of the prompt names, or else any scene."""
    words = set(split_words(prompt))
    matches = [scene for scene, scene_words in _SCENES.items() if words & set(scene_words.split())]
    return random.choice(matches or list(_SCENES))


def _encode_png(image: Image.Image, chunks: bytes) -> bytes:
    """Return a PNG with the row filter "up", which suits skies and is computed by Pillow in C."""
    width, height = image.size
    above = Image.new("RGB", image.size)
    above.paste(image, (0, 1))
    change = ImageChops.subtract_modulo(image, above).tobytes()
    stride = width * 3
    rows = b"".join(b"\2" + change[at : at + stride] for at in range(0, height * stride, stride))
    return encode_png(width, height, zlib.compress(rows, 1), chunks)
