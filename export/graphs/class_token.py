"""Vision towers with a class token and one grid, as graphs: CLIP's, and EVA02-CLIP's.

The image's features are the class token after the last block. Dense features are the patches after the same block
without attention, in which every patch keeps its own value. One pass through the block serves both. Without dense
features only the class token goes through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgclip_rt.interface import DENSE_FEATURES, IMAGE_EMBEDS, IMAGE_FEATURES, PATCHES
from fgclip_rt.manifest import Axis

from .blocks import Block, Linear, PatchEmbedding
from .trace import GraphSource


class ClassTokenTower(nn.Module):
    """Raw patches uint8 [B, N, P·P·3] to projected states of the class token and, if asked for, of the patches."""

    def __init__(
        self,
        patch_embedding: PatchEmbedding,
        class_token: Tensor,
        positions: Tensor,
        pre_norm: nn.Module,
        blocks: Sequence[Block],
        post_norm: nn.Module,
        projection: Linear,
    ) -> None:
        """Take the class token [D] and positions [1 + N, D], the first of which is the class token's."""
        super().__init__()
        self.patch_embedding = patch_embedding
        self.first = nn.Parameter((class_token + positions[0]).detach()[None, None], requires_grad=False)
        self.positions = nn.Parameter(positions[1:].detach(), requires_grad=False)
        self.pre_norm = pre_norm
        self.blocks = nn.ModuleList(blocks)
        self.post_norm = post_norm
        self.projection = projection

    def forward(self, patches: Tensor, *, dense: bool) -> Tensor:
        """States [B, 1, D] or [B, 1 + N, D], the class token's first."""
        x = self.patch_embedding(patches) + self.positions
        x = self.pre_norm(torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        assert isinstance(last, Block)
        normed = last.norm1(x)
        mixed = last.attention(normed[:, :1], normed, rest_keep_own=dense)
        x = last.finish(x if dense else x[:, :1], mixed)
        return self.projection(self.post_norm(x))


class VisionGraph(nn.Module):
    """``vision.onnx``: patches uint8 [B, N, P·P·3] → features and embeds [B, D]."""

    def __init__(self, tower: ClassTokenTower) -> None:
        super().__init__()
        self.vision = tower

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        features = self.vision(patches, dense=False)[:, 0]
        return features, F.normalize(features, dim=-1)


class DenseGraph(nn.Module):
    """``dense.onnx``: the outputs of :class:`VisionGraph`, and dense features [B, N, D]."""

    def __init__(self, tower: ClassTokenTower, *, normalised: bool) -> None:
        """``normalised``: whether the model's dense features have length one, also as the input of regions."""
        super().__init__()
        self.vision = tower
        self.normalised = normalised

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = self.vision(patches, dense=True)
        features, dense = states[:, 0], states[:, 1:]
        if self.normalised:
            dense = F.normalize(dense, dim=-1)
        return features, F.normalize(features, dim=-1), dense


def vision_sources(tower: ClassTokenTower, *, normalised: bool) -> dict[str, GraphSource]:
    """The graphs ``vision`` and ``dense`` of a tower, ready to trace."""
    (count, _), width = tower.positions.shape, tower.projection.weight.shape[1]
    inputs = {PATCHES: torch.zeros(2, count, tower.patch_embedding.weight.shape[0], dtype=torch.uint8)}
    axes = {PATCHES: {0: Axis.BATCH}}
    outputs = {IMAGE_FEATURES: (Axis.BATCH, width), IMAGE_EMBEDS: (Axis.BATCH, width)}
    dense = {**outputs, DENSE_FEATURES: (Axis.BATCH, count, width)}
    sensitive = ("vision.projection",)
    return {
        "vision": GraphSource(VisionGraph(tower), inputs, axes, outputs, sensitive),
        "dense": GraphSource(DenseGraph(tower, normalised=normalised), inputs, axes, dense, sensitive),
    }
