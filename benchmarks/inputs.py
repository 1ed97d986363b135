"""Inputs of every shape, the same for all contenders."""

from __future__ import annotations

import math

import numpy as np

from fgclip_rt.bundle import Bundle
from fgclip_rt.graphs import ImageInputs, Inputs, RegionInputs, TextInputs
from fgclip_rt.manifest import SquareSpec
from fgclip_rt.text import Tokenizer

from .task import Case, UnableError

#: Long enough for every walk type. What it says does not change the time.
_TEXT = "a cat on a window sill looks at the rain while somebody reads a book about birds in the room behind it " * 20


def grid(length: int) -> tuple[int, int]:
    """Rows and columns of ``length`` patches, as near to a square as they come."""
    rows = next(rows for rows in range(math.isqrt(length), 0, -1) if length % rows == 0)
    return rows, length // rows


def make_inputs(bundle: Bundle, case: Case) -> Inputs:
    """The inputs of a case, as its graph takes them.

    Raises:
        UnableError: the model takes nothing of this length.
    """
    if case.graph == "text":
        return _texts(bundle, case)
    random = np.random.default_rng(case.length)
    shape = grid(case.length)
    if case.graph == "region":
        height, width = (side * bundle.manifest.image.patch_size for side in shape)
        corners = random.uniform(0, 0.5, (case.batch, 2)) * (width, height)
        return RegionInputs(
            dense_features=random.normal(size=(1, case.length, bundle.manifest.embedding_size)).astype(np.float32),
            spatial_shapes=np.array([shape], np.int32),
            image_sizes=np.array([(height, width)], np.int32),
            boxes=np.concatenate([corners, 2 * corners + 16], axis=1).astype(np.float32),
            box_images=np.zeros(case.batch, np.int32),
        )
    image = bundle.manifest.image
    if case.length > image.max_num_patches or (isinstance(image, SquareSpec) and case.length != image.max_num_patches):
        raise UnableError(f"the model takes no images of {case.length:,} patches")
    pixels = image.patch_size**2 * image.channels
    return ImageInputs(
        patches=random.integers(0, 256, (case.batch, case.length, pixels), np.uint8),
        spatial_shapes=np.array([shape] * case.batch, np.int32),
    )


def walk_type(bundle: Bundle, length: int) -> str:
    """The first kind of text that has ``length`` tokens.

    Raises:
        UnableError: there is none.
    """
    for name, spec in bundle.manifest.text.walk_types.items():
        if spec.length == length:
            return name
    raise UnableError(f"the model has no texts of {length} tokens")


def _texts(bundle: Bundle, case: Case) -> TextInputs:
    kind = walk_type(bundle, case.length)
    tokenizer = Tokenizer(bundle.read_text(bundle.manifest.text.tokenizer), bundle.manifest.text)
    tokens = tokenizer([_TEXT[index:] for index in range(case.batch)], kind)
    return TextInputs.of(tokens, bundle.manifest.text.walk_types[kind].index)
