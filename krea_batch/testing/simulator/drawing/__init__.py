"""The simulator's images: drawn from the prompt and the seed, the same each time.

images      chooses a motif and draws it
landscapes  hills and sea
patterns    abstract motifs
palettes    colours
canvas      drawing primitives
caption     the prompt, written into the image
tiny_png    small PNGs without Pillow
"""
