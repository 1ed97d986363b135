"""Pillow's resize as ``docs/bundle/preparation.md`` specifies it, without Pillow: integers from the weights on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

#: Weights are whole multiples of 2^-22.
BITS = 22


def triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def cubic(x: float) -> float:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2:
        return (((x - 5) * x + 8) * x - 4) * -0.5
    return 0.0


#: Reach to each side and kernel of a filter, by name.
FILTERS: dict[str, tuple[int, Callable[[float], float]]] = {"bilinear": (1, triangle), "bicubic": (2, cubic)}


def weights(before: int, after: int, index: int, resample: str) -> tuple[int, list[int]]:
    """The first of ``before`` pixels that pixel ``index`` of ``after`` reads, and the weights from that pixel on."""
    reach, kernel = FILTERS[resample]
    scale = before / after
    stretch = max(scale, 1.0)
    centre = (index + 0.5) * scale
    first = max(0, int(centre - reach * stretch + 0.5))
    end = min(before, int(centre + reach * stretch + 0.5))
    values = [kernel((pixel - centre + 0.5) * (1.0 / stretch)) for pixel in range(first, end)]
    total = 0.0
    for value in values:
        total += value
    return first, [int(value / total * 2**BITS + (0.5 if value >= 0 else -0.5)) for value in values]


def resize_vertically(pixels: Bytes, height: int, resample: str) -> Bytes:
    """One pass: uint8 [h, w, c] to uint8 [height, w, c]."""
    resized = np.empty((height, *pixels.shape[1:]), np.uint8)
    for row in range(height):
        first, factors = weights(len(pixels), height, row, resample)
        total = np.full(pixels.shape[1:], 2 ** (BITS - 1), np.int64)
        for number, factor in enumerate(factors):
            total += factor * pixels[first + number].astype(np.int64)
        resized[row] = np.clip(total >> BITS, 0, 255)
    return resized


def resize_horizontally(pixels: Bytes, width: int, resample: str) -> Bytes:
    """One pass: uint8 [h, w, c] to uint8 [h, width, c]."""
    return resize_vertically(pixels.swapaxes(0, 1), width, resample).swapaxes(0, 1)


def resize(pixels: Bytes, height: int, width: int, resample: str) -> Bytes:
    """Both passes in the order of the specification: uint8 [h, w, c] to uint8 [height, width, c]."""
    return resize_vertically(resize_horizontally(pixels, width, resample), height, resample)
