"""Inputs of every shape, the same for all contenders."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from fgclip_rt.arrays import ByteArray
from fgclip_rt.bundle import Bundle
from fgclip_rt.graphs import ImageInputs, Inputs, RegionInputs, TextInputs
from fgclip_rt.manifest import ImageSpec
from fgclip_rt.preparation import Patches
from fgclip_rt.text import Tokenizer

from .task import Case, UnableError

#: Long enough for every walk type. Its content does not change the time.
_TEXT = "a cat on a window sill looks at the rain while somebody reads a book about birds in the room behind it " * 20


def grid(length: int) -> tuple[int, int]:
    """Rows and columns of ``length`` patches, as near to a square as possible."""
    rows = next(rows for rows in range(math.isqrt(length), 0, -1) if length % rows == 0)
    return rows, length // rows


def noise_patches(spec: ImageSpec, shape: tuple[int, int], bucket: int) -> Patches:
    """An image of noise with a grid of ``shape``, as if it had been prepared for ``bucket``."""
    rows, columns = shape
    pixels = _noise(spec, 1, rows * columns)[0]
    return Patches(pixels, shape, (rows * spec.patch_size, columns * spec.patch_size), bucket)


def noise_images(spec: ImageSpec, case: Case) -> list[Image.Image]:
    """RGB images of noise for the batch of ``case``, of a size that gives each ``case.length`` patches.

    Raises:
        UnableError: the model takes no images of this length.
    """
    _check_length(spec, case)
    rows, columns = grid(case.length)
    shape = (case.batch, rows * spec.patch_size, columns * spec.patch_size, spec.channels)
    return [Image.fromarray(pixels) for pixels in np.random.default_rng(case.length).integers(0, 256, shape, np.uint8)]


def make_inputs(bundle: Bundle, case: Case) -> Inputs:
    """The inputs of a case, as its graph takes them.

    Raises:
        UnableError: the model takes no images or texts of this length.
    """
    if case.graph == "text":
        return _texts(bundle, case)
    random = np.random.default_rng(case.length)
    shape = grid(case.length)
    if case.graph == "region":
        corners = random.uniform(0, 0.5, (case.batch, 2)) * shape[::-1]
        return RegionInputs(
            dense_features=random.normal(size=(1, case.length, bundle.manifest.embedding_size)).astype(np.float32),
            spatial_shapes=np.array([shape], np.int32),
            boxes=np.concatenate([corners, 2 * corners + 1], axis=1).astype(np.float32),
            box_images=np.zeros(case.batch, np.int32),
        )
    image = bundle.manifest.image
    _check_length(image, case)
    return ImageInputs(
        patches=_noise(image, case.batch, case.length), spatial_shapes=np.array([shape] * case.batch, np.int32)
    )


def _check_length(spec: ImageSpec, case: Case) -> None:
    if case.length not in spec.lengths:
        raise UnableError(f"the model takes no images of {case.length:,} patches")


def _noise(spec: ImageSpec, count: int, length: int) -> ByteArray:
    """Noise uint8 [B, N, P·P·3]: ``count`` images of ``length`` patches."""
    shape = (count, length, spec.patch_size**2 * spec.channels)
    return np.random.default_rng(length).integers(0, 256, shape, np.uint8)


def walk_type(bundle: Bundle, length: int) -> str:
    """The first walk type whose texts have ``length`` tokens.

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
