"""Zero-shot tagging: the tags, in any of the model's languages, that describe each image.

python examples/tagging.py fg-clip2-pocket a.png b.png
"""

import sys

import fgclip_rt

TAGS = (
    "a big yellow star",
    "a small brown moon",
    "a green square",
    "很大的黄色五角星",
    "小小的棕色月牙",
    "绿色的正方形",
)
SHOWN = 3


def main(bundle: str, *paths: str) -> None:
    model = fgclip_rt.load(bundle)
    probabilities = model.probabilities(model.embed_images(paths), model.embed_texts(TAGS))
    for path, row in zip(paths, probabilities, strict=True):
        best = sorted(zip(row, TAGS, strict=True), reverse=True)[:SHOWN]
        print(path, *(f"{tag} {probability:.2f}" for probability, tag in best), sep="\n  ")


if __name__ == "__main__":
    main(*sys.argv[1:])
