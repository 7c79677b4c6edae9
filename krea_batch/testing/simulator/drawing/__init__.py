"""The simulator's images, drawn from the prompt and the seed, and reproducible.

images      chooses a scene and draws it
landscapes  scenes: hills, dunes, the sea, a city
patterns    scenes: abstract patterns, a planet, brush strokes
palettes    colours for a prompt
canvas      drawing primitives
caption     the prompt, written below the scene
tiny_png    writes PNGs, and makes small images without Pillow
"""
