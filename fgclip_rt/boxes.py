"""Boxes from a caller's units to units of the grid of patches, in which they are sampled; checked on the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .arrays import DoubleArray, FloatArray
from .errors import ArgumentError, BoxError
from .manifest import BoxShares

BoxFormat: TypeAlias = Literal["xyxy", "xywh", "normalized"]
_Numbers: TypeAlias = tuple[float, float, float, float]

#: For each format, its four numbers and their unit.
BOX_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "xyxy": "x1,y1,x2,y2 in pixels",
        "xywh": "x,y,width,height in pixels",
        "normalized": "x1,y1,x2,y2 in shares of the image, 0 to 1",
    }
)

#: Samples are counted in float32, which is exact up to here and far beyond any image.
_FARTHEST = 1_000_000
#: Least and largest share of an image that is taken for one: a box may reach over the border by the image's own size.
_SHARES = (-1.0, 2.0)

#: Pixels that are taken for shares: 0 to 1, or somewhat over the border. Only in an image of fewer pixels than the last
#: number may such boxes be meant as pixels.
_LIKE_SHARES, _FEW_PIXELS = (-0.5, 1.5), 64
#: Pixels that are taken for patches: 0 to the number of patches, or a tenth of it over the border. Only in an image
#: whose patches have fewer pixels a side than the last number is this a large part of it.
_OVER_GRID, _LARGE_PATCH = 0.1, 4


class BoxUnitsWarning(UserWarning):
    """Boxes are probably given in units of the grid of patches instead of pixels."""


def grid_boxes(
    boxes: ArrayLike,
    image_size: tuple[int, int],
    grid: tuple[int, int],
    box_format: BoxFormat = "xyxy",
    shares: BoxShares = "float64",
) -> FloatArray:
    """Boxes float32 [R, 4] in units of the grid of patches, x1, y1, x2, y2, as the released code computes them.

    The number of samples in a box is the ceiling of its extent, so it depends on every rounding: x / width · columns is
    computed in float64 and rounded once. Models that take shares of the image, x / width, round these to ``shares``
    first. A box may reach over the image's border, as the reference allows, but must have some of the image inside.

    Args:
        boxes: anything that NumPy turns into numbers [R, 4]; an empty list gives [0, 4]. A float32 is taken as the
            shortest decimal that rounds to it, because float32 is seldom what a box was written in.
        image_size: (height, width) of the image in pixels.
        grid: (h, w), rows and columns of patches.
        box_format: meaning of the four numbers, one of :data:`BOX_FORMATS`.
        shares: the manifest's ``box_shares``.

    Warns:
        BoxUnitsWarning: all boxes lie in the corner of the image that has the grid's size in pixels.

    Raises:
        BoxError: a box is not four finite numbers, is empty or reversed, lies outside the image, or is in other units.
        ArgumentError: there is no such format.
    """
    check_format(box_format)
    given = _rows_of_four(boxes, box_format)
    corners = np.array(
        [_corners(index, numbers, image_size, box_format) for index, numbers in enumerate(given)], np.float64
    ).reshape(-1, 4)
    if not len(corners):
        return corners.astype(np.float32)
    (height, width), (rows, columns) = image_size, grid
    if box_format != "normalized":
        _check_units(given, corners, image_size, grid)
        corners /= [width, height, width, height]
    scaled = (corners.astype(shares) * np.array([columns, rows, columns, rows], np.float64)).astype(np.float32)
    # RoIAlign begins half a patch before each edge, where small numbers may round to the same one.
    edges = scaled - np.float32(0.5)
    empty = np.flatnonzero((edges[:, :2] >= edges[:, 2:]).any(axis=1))
    if len(empty):
        index = int(empty[0])
        raise BoxError(
            f"{_name(index, given[index])} is empty in float32, in which boxes are sampled; make it larger.",
            code="box_empty",
        )
    return scaled


def check_format(box_format: str) -> None:
    """Refuse a format of boxes that there is not.

    Raises:
        ArgumentError: it is none of :data:`BOX_FORMATS`.
    """
    if box_format not in BOX_FORMATS:
        raise ArgumentError(f"box_format is {box_format!r}; choose from {', '.join(BOX_FORMATS)}.")


def _rows_of_four(boxes: ArrayLike, box_format: BoxFormat) -> list[_Numbers]:
    meaning = BOX_FORMATS[box_format]
    try:
        array = np.asarray(boxes)
        if array.dtype == np.float32:
            # The released code begins with the decimals of an annotation: 9.7, not 9.699999809265137.
            array = array.astype(str)
        array = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BoxError(f"boxes are not numbers in rows of four; give each as {meaning}.") from None
    if array.shape == (0,):
        return []
    if array.ndim != 2 or array.shape[1] != 4:
        raise BoxError(f"boxes have the shape {list(array.shape)}; give [R, 4], each as {meaning}.")
    return [tuple(row) for row in array.tolist()]


def _corners(index: int, numbers: _Numbers, image_size: tuple[int, int], box_format: BoxFormat) -> _Numbers:
    """x1, y1, x2, y2 of one box, in pixels or in shares of the image, once it has passed the checks."""
    name, meaning = _name(index, numbers), BOX_FORMATS[box_format]
    if not all(map(math.isfinite, numbers)):
        raise BoxError(f"{name} has a coordinate that is not a finite number; give {meaning}.")
    if box_format == "normalized":
        if min(numbers) < _SHARES[0] or max(numbers) > _SHARES[1]:
            raise BoxError(
                f'{name} is far over its image, as pixels are; give {meaning}, or box_format="xyxy" for pixels '
                "(--box-format xyxy).",
                code="box_units",
            )
        height, width, unit = 1, 1, "whose shares are 0 to 1"
    else:
        if max(map(abs, numbers)) > _FARTHEST:
            raise BoxError(f"{name} reaches over {_FARTHEST:,} pixels; give {meaning} of the image.")
        height, width = image_size
        unit = f"of {width}×{height} pixels"
    x1, y1, x2, y2 = numbers
    if box_format == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if x1 > x2 or y1 > y2:
        other = ', or box_format="xywh" for a width and a height (--box-format xywh)' if box_format == "xyxy" else ""
        raise BoxError(f"{name} is reversed; give the upper left corner first, {meaning}{other}.", code="box_reversed")
    if x1 == x2 or y1 == y2:
        raise BoxError(f"{name} is empty; give it a width and a height.", code="box_empty")
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise BoxError(f"{name} lies outside its image, {unit}; give {meaning}.", code="box_outside")
    return x1, y1, x2, y2


def _check_units(
    given: Sequence[_Numbers], corners: DoubleArray, image_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Refuse pixels that are certainly shares of the image, and warn of pixels that are probably patches.

    Only all boxes of a call together tell: one of them may well be small and lie in the corner.
    """
    (height, width), (rows, columns) = image_size, grid
    low, high = _LIKE_SHARES
    if width * height >= _FEW_PIXELS and all(low <= number <= high for box in given for number in box):
        raise BoxError(
            f"{_name(0, given[0])}, like every box of the call, lies in the first pixel of an image of "
            f'{width}×{height}, as shares of the image do; give pixels, or box_format="normalized" '
            "(--box-format normalized).",
            code="box_units",
        )
    patches = np.array([columns, rows])
    upper_left, lower_right = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    in_corner = (upper_left >= -_OVER_GRID * patches).all() and (lower_right <= (1 + _OVER_GRID) * patches).all()
    if in_corner and (patches * _LARGE_PATCH <= [width, height]).all():
        warnings.warn(
            f"all boxes lie in the first {columns}×{rows} pixels of an image of {width}×{height}, which has "
            f"{columns}×{rows} patches; if they count patches, give pixels instead.",
            BoxUnitsWarning,
            stacklevel=4,
        )


def _name(index: int, numbers: _Numbers) -> str:
    return f"box {index} ({','.join(f'{number:g}' for number in numbers)})"
