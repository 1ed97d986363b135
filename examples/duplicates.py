"""Find duplicates: pairs of images in a folder whose vectors nearly agree, even if resized or stored anew.

python examples/duplicates.py fg-clip2-pocket PHOTOS 0.98
"""

import sys

import numpy as np

import fgclip_rt
from fgclip_rt.folders import search_folder


def main(bundle: str, folder: str, least: str = "0.98") -> None:
    model = fgclip_rt.load(bundle)
    paths = search_folder(folder).files
    found = model.embed_images(paths, on_error="skip")
    # All pairs at once need n² numbers: 400 MB for 10,000 images.
    cosines = np.triu(found.vectors @ found.vectors.T, k=1)
    for first, second in np.argwhere(cosines >= float(least)):
        print(f"{cosines[first, second]:.3f}  {paths[found.rows[first]]}  {paths[found.rows[second]]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
