"""Files of maps: the cosines of texts with the patches of an image, as NumPy's ``.npz``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .arrays import FloatArray
from .errors import ArgumentError
from .outputs import check_output, written_whole

SUFFIX = ".npz"


def check_maps_output(output: Path, overwrite: bool = False) -> None:
    """Make sure, before any work is done, that maps can be written to ``output``.

    Raises:
        ArgumentError: its suffix is not ``.npz``.
        OutputError: it exists and is not to be overwritten, or cannot be written.
    """
    if output.suffix != SUFFIX:
        raise ArgumentError(f"--maps {output} has no known format; end its name in {SUFFIX}.")
    check_output(output, overwrite, "--maps")


def write_maps(output: Path, maps: FloatArray, texts: Sequence[str], image_size: tuple[int, int]) -> None:
    """Write maps, whole or not at all, in arrays that ``numpy.load`` reads without pickle.

    - ``maps``: the cosines, float32 [m, h, w].
    - ``texts``: a JSON list of the m texts, uint8 [bytes]: ``json.loads(bytes(file["texts"]))``.
    - ``image_size``: height and width of the image in pixels, int32 [2].
    - ``grid``: rows and columns of patches, int32 [2].

    Args:
        output: the file.
        maps: float32 [m, h, w].
        texts: m texts.
        image_size: (height, width) in pixels.

    Raises:
        OutputError: writing failed; nothing is left behind.
    """
    # An array of strings would pad every text to the longest one, and lose zeros at the end of a text.
    document = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
    with written_whole(output) as path:
        np.savez(
            path,
            maps=maps,
            texts=document,
            image_size=np.array(image_size, np.int32),
            grid=np.array(maps.shape[1:], np.int32),
        )
