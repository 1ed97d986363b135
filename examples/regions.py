"""Name regions: for each box of an image, the nearest of some names.

python examples/regions.py fg-clip2-pocket scene.png 176,21,287,132 198,143,314,260
"""

import sys

import fgclip_rt

NAMES = ("a yellow star", "a pink circle", "a black heart", "a brown moon", "a green square")


def main(bundle: str, path: str, *boxes: str) -> None:
    model = fgclip_rt.load(bundle)
    regions = model.embed_regions(path, [[float(part) for part in box.split(",")] for box in boxes])
    cosines = regions @ model.embed_texts(NAMES, walk_type="box").T
    for box, row in zip(boxes, cosines, strict=True):
        print(f"{box}: {NAMES[row.argmax()]} ({row.max():.3f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
