"""Pixels as the released models of square images take them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pixel_values(patches: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images float [B, C, S, S] of patches uint8 [B, N, P·P·C] in row order."""
    channels = len(mean)
    grid, size = math.isqrt(patches.shape[1]), math.isqrt(patches.shape[2] // channels)
    images = patches.view(len(patches), grid, grid, size, size, channels).permute(0, 5, 1, 3, 2, 4)
    images = images.reshape(len(patches), channels, grid * size, grid * size).to(torch.float32)
    means, stds = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images / 255 - means) / stds
