"""Draw dense maps: where in an image each text is.

python examples/maps.py fg-clip2-pocket scene.png maps.png "a yellow star" "a black heart"
"""

import sys

import fgclip_rt
from fgclip_rt.heatmap import choose_scales, draw


def main(bundle: str, path: str, output: str, *texts: str) -> None:
    model = fgclip_rt.load(bundle)
    photo = model.load_image(path)
    cosines = model.dense(photo).map(texts)
    draw(photo, cosines, texts, choose_scales(cosines, "shared"), overlay=True).image.save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
