"""Features of boxes and of masks from dense features, as graphs that all families share. They have no weights.

RoIAlign is separable, and the sum of its samples has a closed form (:func:`roi_weights`). A box is therefore one
product with the dense features of its image, and so is a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgclip_rt.interface import (
    BOX_IMAGES,
    BOXES,
    DENSE_FEATURES,
    MASK_EMBEDS,
    MASK_FEATURES,
    MASK_IMAGES,
    MASKS,
    REGION_EMBEDS,
    REGION_FEATURES,
    SPATIAL_SHAPES,
)
from fgclip_rt.manifest import Axis

from .trace import GraphSource


def grid_positions(length: int, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of each of ``length`` patches, float [B, N], and whether it lies on the grid, bool [B, N].

    ``height`` and ``width``, float [B, 1], are the grids' sizes.
    """
    index = torch.arange(length, dtype=torch.float32, device=height.device)[None]
    # Indices stay far below 2**24 and a rounded quotient never reaches the next integer, so this is exact.
    row = torch.floor(index / width)
    return row, index - row * width, index < height * width


class RegionGraph(nn.Module):
    """``region.onnx``: dense features and boxes → region features and embeds [R, D]. No weights of its own.

    Inputs: dense_features float32 [B, N, D]; spatial_shapes int32 [B, 2] (rows, columns); boxes float32 [R, 4] (x1, y1,
    x2, y2 in units of the grid, whose cell (0, 0) reaches from 0 to 1); box_images int32 [R], the index in the batch of
    the image that each box belongs to.
    """

    def forward(
        self, dense_features: Tensor, spatial_shapes: Tensor, boxes: Tensor, box_images: Tensor
    ) -> tuple[Tensor, Tensor]:
        grid = torch.index_select(spatial_shapes, 0, box_images).to(torch.float32)
        height, width = grid[:, 0:1], grid[:, 1:2]
        row, column, valid = grid_positions(dense_features.shape[1], height, width)

        # In float32, as torchvision does: the number of samples is a ceiling, which rounding can change.
        x1, y1, x2, y2 = (boxes[:, i : i + 1] - 0.5 for i in range(4))
        weights = roi_weights(row, y1, y2, height) * roi_weights(column, x1, x2, width)
        return _pooled(dense_features, weights * valid, box_images)


class MaskGraph(nn.Module):
    """``mask.onnx``: dense features and masks → mask features and embeds [R, D], means weighted by the masks.

    Inputs: dense_features float32 [B, N, D]; masks float32 [R, N], the weight of each patch; mask_images int32 [R], the
    index in the batch of the image that each mask belongs to.
    """

    def forward(self, dense_features: Tensor, masks: Tensor, mask_images: Tensor) -> tuple[Tensor, Tensor]:
        weights = masks / (masks.sum(dim=1, keepdim=True) + 1e-12)
        return _pooled(dense_features, weights, mask_images)


def _pooled(dense: Tensor, weights: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [R, D] of dense features [B, N, D] by weights [R, N], each of one image, and the same at length one."""
    # One product for all images: a row's weights stand in its own image's columns and are zero elsewhere.
    own = images[:, None] == torch.arange(dense.shape[0], dtype=torch.int32)[None]
    spread = (own.to(torch.float32)[:, :, None] * weights[:, None, :]).flatten(1)
    features = torch.matmul(spread, dense.flatten(0, 1))
    return features, F.normalize(features, dim=-1)


def roi_weights(cell: Tensor, start: Tensor, stop: Tensor, size: Tensor) -> Tensor:
    """Mean weight that one cell gets from the samples of a RoIAlign bin along one axis.

    The bin [start, stop] has g = ceil(stop - start) samples, evenly spaced. Sample s gives cell i the weight
    max(0, 1 - |s - i|), the hat function. Samples up to one cell outside the grid count as on its border; samples
    further out count as zero. The samples between two neighbouring cells form an arithmetic series, so their sum needs
    only the first and the last index. The graph has no axis for the samples, whatever the size of the box.

    Args:
        cell: float [R, N], cell index along the axis.
        start: float [R, 1], the bin's start, in cells, half-pixel shift included.
        stop: float [R, 1], its end.
        size: float [R, 1], number of cells along the axis.

    Returns:
        float [R, N].
    """
    extent = stop - start
    count = torch.clamp(torch.ceil(extent), min=0.0)
    divisor = torch.clamp(count, min=1.0)
    step = torch.clamp(extent / divisor, min=torch.finfo(torch.float32).tiny)

    def sample(index: Tensor) -> Tensor:
        return start + (index + 0.5) * extent / divisor

    # Tests the sample nearest to the position. On the outer borders, a sample counts in full or not at all, and a
    # rounded quotient alone would decide wrongly.
    def samples_before(position: Tensor, compare: Callable[[Tensor, Tensor], Tensor] = torch.lt) -> Tensor:
        nearest = torch.round((position - start) / step - 0.5)
        return torch.minimum(torch.relu(nearest + compare(sample(nearest), position).to(torch.float32)), count)

    at_border = cell >= size - 1
    low, middle = samples_before(cell - 1), samples_before(cell)
    high = torch.where(at_border, samples_before(size, torch.le), samples_before(cell + 1))

    below, above = torch.relu(middle - low), torch.relu(high - middle)
    centre_below = sample((low + middle - 1) * 0.5)
    centre_above = sample((middle + high - 1) * 0.5)
    weight_below = torch.where(cell <= 0, below, below * (centre_below - (cell - 1)))
    weight_above = torch.where(at_border, above, above * (cell + 1 - centre_above))
    return (weight_below + weight_above) / divisor


def region_source(width: int) -> GraphSource:
    """The region graph of a model with vectors of ``width``, ready to trace for any number of patches."""
    inputs = {
        DENSE_FEATURES: torch.zeros(2, 12, width),
        SPATIAL_SHAPES: torch.tensor([[3, 4], [2, 5]], dtype=torch.int32),
        BOXES: torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 3),
        BOX_IMAGES: torch.zeros(3, dtype=torch.int32),
    }
    axes = {
        DENSE_FEATURES: {0: Axis.BATCH, 1: Axis.PATCHES},
        SPATIAL_SHAPES: {0: Axis.BATCH},
        BOXES: {0: Axis.BOXES},
        BOX_IMAGES: {0: Axis.BOXES},
    }
    outputs = {REGION_FEATURES: (Axis.BOXES, width), REGION_EMBEDS: (Axis.BOXES, width)}
    return GraphSource(RegionGraph(), inputs, axes, outputs)


def mask_source(width: int) -> GraphSource:
    """The mask graph of a model with vectors of ``width``, ready to trace for any number of patches."""
    inputs = {
        DENSE_FEATURES: torch.zeros(2, 12, width),
        MASKS: torch.ones(3, 12),
        MASK_IMAGES: torch.zeros(3, dtype=torch.int32),
    }
    axes = {
        DENSE_FEATURES: {0: Axis.BATCH, 1: Axis.PATCHES},
        MASKS: {0: Axis.MASKS, 1: Axis.PATCHES},
        MASK_IMAGES: {0: Axis.MASKS},
    }
    outputs = {MASK_FEATURES: (Axis.MASKS, width), MASK_EMBEDS: (Axis.MASKS, width)}
    return GraphSource(MaskGraph(), inputs, axes, outputs)
