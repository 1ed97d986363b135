"""Masks over an image to weights of its patches."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .arrays import FloatArray
from .errors import MaskError


def mask_weights(masks: ArrayLike, image_size: tuple[int, int], grid: tuple[int, int]) -> FloatArray:
    """The weight of each patch in each mask.

    A mask of the image's size gives each patch the mean of its pixels: of a mask of zeros and ones, the share of the
    patch that it covers. A mask of the grid's size is taken as it is, as the reference takes it.

    Args:
        masks: [m, H, W] or [m, h, w], bool or numbers from 0 to 1.
        image_size: (H, W) of the original image in pixels.
        grid: (h, w), rows and columns of patches.

    Returns:
        float32 [m, h·w].

    Raises:
        MaskError: a mask is of another size, holds other numbers, or is zero everywhere.
    """
    try:
        array = np.asarray(masks)
        if array.dtype.kind not in "biuf" and array.size:
            raise TypeError
        if array.dtype != np.bool_:
            array = array.astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        raise MaskError("masks are not numbers; give [m, H, W], bool or numbers from 0 to 1.") from None
    if array.size == 0 and array.shape[:1] == (0,):
        return np.zeros((0, grid[0] * grid[1]), np.float32)
    if array.ndim != 3 or array.shape[1:] not in (image_size, grid):
        (height, width), (rows, columns) = image_size, grid
        raise MaskError(
            f"masks have the shape {list(array.shape)}; give [m, {height}, {width}], the image's size, or "
            f"[m, {rows}, {columns}], its grid of patches.",
            code="mask_misshaped",
        )
    for index, mask in enumerate(array):
        if array.dtype != np.bool_ and not ((mask >= 0) & (mask <= 1)).all():
            raise MaskError(f"mask {index} holds numbers that are not from 0 to 1; scale it.")
        if not mask.any():
            raise MaskError(f"mask {index} is zero everywhere; leave it out.", code="mask_empty")
    if array.shape[1:] == grid:
        return np.ascontiguousarray(array, np.float32).reshape(len(array), -1)
    rows_of, columns_of = (_means(size, cells) for size, cells in zip(image_size, grid, strict=True))
    # One by one: masks of photos in float32 would be many gigabytes.
    means = [rows_of @ mask.astype(np.float32) @ columns_of.T for mask in array]
    weights: FloatArray = np.stack(means).reshape(len(array), -1)
    return weights


def _means(size: int, cells: int) -> FloatArray:
    """Weights float32 [cells, size] of the mean of each of ``cells`` equal parts of ``size`` pixels."""
    edges = np.arange(cells + 1) * (size / cells)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    means: FloatArray = (np.clip(overlap, 0, None) * (cells / size)).astype(np.float32)
    return means
