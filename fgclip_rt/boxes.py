"""Checking boxes before they reach a graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .arrays import FloatArray
from .errors import BoxError

#: Samples are counted in float32, which is exact up to here and far beyond any image.
_FARTHEST = 1_000_000


def check_boxes(boxes: ArrayLike, image_size: tuple[int, int]) -> FloatArray:
    """Boxes as float32 [R, 4], xyxy in pixels of the original image.

    A box may reach over the image's border, as the reference allows, but must have some of the image inside.

    Args:
        boxes: anything that NumPy turns into numbers [R, 4]; an empty list gives [0, 4].
        image_size: (height, width) of the image in pixels.

    Raises:
        BoxError: a box is not four finite numbers, is empty or reversed, or lies outside the image.
    """
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(boxes, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise BoxError("boxes are not numbers in rows of four; give each as x1, y1, x2, y2 in pixels.") from None
    if array.shape in ((0,), (0, 4)):
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise BoxError(f"boxes have the shape {list(array.shape)}; give [R, 4], each as x1, y1, x2, y2 in pixels.")
    height, width = image_size
    for index, (x1, y1, x2, y2) in enumerate(array.tolist()):
        name = f"box {index} ({x1:g},{y1:g},{x2:g},{y2:g})"
        if not np.isfinite([x1, y1, x2, y2]).all():
            raise BoxError(f"{name} has a coordinate that is not a finite number; give x1,y1,x2,y2 in pixels.")
        if max(map(abs, (x1, y1, x2, y2))) > _FARTHEST:
            raise BoxError(f"{name} reaches over {_FARTHEST:,} pixels; give x1,y1,x2,y2 in pixels of the image.")
        if x1 > x2 or y1 > y2:
            raise BoxError(f"{name} is reversed; give the upper left corner first: x1,y1,x2,y2.", code="box_reversed")
        if x1 == x2 or y1 == y2:
            raise BoxError(f"{name} is empty; give it a width and a height.", code="box_empty")
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            raise BoxError(
                f"{name} lies outside its image of {width}×{height} pixels; give coordinates in its pixels.",
                code="box_outside",
            )
    return array
