"""Search in a folder: the images nearest to a text, with cosines.

python examples/search.py fg-clip2-pocket PHOTOS "a big yellow star"
"""

import sys

import numpy as np

import fgclip_rt
from fgclip_rt.folders import search_folder

SHOWN = 5


def main(bundle: str, folder: str, text: str) -> None:
    model = fgclip_rt.load(bundle)
    paths = search_folder(folder).files
    found = model.embed_images(paths, on_error="skip")
    # Vectors have length one, so a product is a cosine.
    cosines = found.vectors @ model.embed_texts([text])[0]
    for place in np.argsort(-cosines)[:SHOWN]:
        print(f"{cosines[place]:.3f}  {paths[found.rows[place]]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
