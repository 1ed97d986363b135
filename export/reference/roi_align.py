"""RoIAlign in plain PyTorch, sample by sample: the reference of regions.

Places of samples are NumPy's, because they are float32 by definition: their number is a ceiling, so rounding counts.
The samples themselves are PyTorch's, in the type of the dense features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fgclip_rt.arrays import DoubleArray, FloatArray
from fgclip_rt.manifest import BoxShares


def grid_units(boxes: DoubleArray, image_size: tuple[int, int], grid: tuple[int, int], shares: BoxShares) -> FloatArray:
    """Boxes as the released code hands them to RoIAlign, float32 [R, 4], x1, y1, x2, y2 in units of the grid.

    The scripts of FG-CLIP and FG-CLIP 2 compute x / width · columns in Python's doubles and then make a float32 tensor.
    FineCLIP's model takes x / width as a float32 tensor, and multiplies in float32 (``_denormalize_boxes``).

    Args:
        boxes: float64 [R, 4], x1, y1, x2, y2 in pixels of the original image.
        image_size: (height, width) of the original image in pixels.
        grid: (h, w), rows and columns of patches.
        shares: type in which x / width is multiplied by the number of columns.
    """
    (height, width), (rows, columns) = image_size, grid
    of_image = (boxes / np.array([width, height, width, height], np.float64)).astype(shares)
    return (of_image * np.array([columns, rows, columns, rows], shares)).astype(np.float32)


def region_features(dense: Tensor, boxes: FloatArray) -> Tensor:
    """Features of boxes, not normalised, by RoIAlign to 1×1 (Mask R-CNN, https://arxiv.org/abs/1703.06870).

    Equals ``torchvision.ops.roi_align(..., output_size=1, sampling_ratio=-1, aligned=True)``.

    Args:
        dense: float [h, w, D], the dense features of one image.
        boxes: float32 [R, 4], as :func:`grid_units` gives them.

    Returns:
        float [R, D].
    """
    return torch.stack([_roi_mean(dense, *box) for box in boxes - np.float32(0.5)])


def _roi_mean(dense: Tensor, x1: np.float32, y1: np.float32, x2: np.float32, y2: np.float32) -> Tensor:
    """Mean [D] of bilinear samples of ``dense`` [h, w, D]; samples more than a cell outside the grid are zero."""
    ys, xs = _samples(y1, y2), _samples(x1, x2)
    total = dense.new_zeros(dense.shape[-1])
    for y in ys:
        for x in xs:
            if -1.0 <= y <= dense.shape[0] and -1.0 <= x <= dense.shape[1]:
                total += _bilinear(dense, y, x)
    return total / max(len(ys) * len(xs), 1)


def _samples(start: np.float32, stop: np.float32) -> list[float]:
    count = max(int(np.ceil(stop - start)), 0)
    steps = np.arange(count, dtype=np.float32) + np.float32(0.5)
    places: list[float] = (start + steps * (stop - start) / count).tolist()
    return places


def _bilinear(dense: Tensor, y: float, x: float) -> Tensor:
    rows, columns, _ = dense.shape
    y, x = min(max(y, 0.0), rows - 1.0), min(max(x, 0.0), columns - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    fy, fx = y - top, x - left
    upper = dense[top, left] * (1 - fx) + dense[top, right] * fx
    lower = dense[bottom, left] * (1 - fx) + dense[bottom, right] * fx
    return upper * (1 - fy) + lower * fy
