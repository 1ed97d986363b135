"""Common base of models that take square images and give softmax scores: FG-CLIP and FineCLIP."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fgclip_rt.manifest import Score

from .base import ReferenceModel


class SquareModel(ReferenceModel):
    """A loaded model with square images and softmax scores.

    Attributes:
        mean: mean of the pixels by channel, after division by 255.
        std: their standard deviation, likewise.
    """

    mean: Sequence[float]
    std: Sequence[float]

    @property
    def score(self) -> Score:
        return Score(activation="softmax", logit_scale=self.module.logit_scale.item(), logit_bias=0.0)

    def image_inputs(self, pixels: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        return (pixel_values(pixels, self.mean, self.std),)


def pixel_values(patches: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images float [B, C, S, S] of patches uint8 [B, N, P·P·C] in row order."""
    channels = len(mean)
    grid, size = math.isqrt(patches.shape[1]), math.isqrt(patches.shape[2] // channels)
    images = patches.view(len(patches), grid, grid, size, size, channels).permute(0, 5, 1, 3, 2, 4)
    images = images.reshape(len(patches), channels, grid * size, grid * size).to(torch.float32)
    means, stds = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images / 255 - means) / stds
