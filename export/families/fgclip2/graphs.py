"""The dense head, which FG-CLIP 2 adds to SigLIP 2's graphs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...graphs.blocks import Attention, Mlp
from ..siglip2.graphs import PoolingHead, VisionTower
from ..siglip2.reference import PoolingHead as ReferencePoolingHead


class DenseHead(nn.Module):
    """The dense head: one more attention, from every patch to all, with no residual around it."""

    def __init__(self, head: ReferencePoolingHead) -> None:
        super().__init__()
        self.attention = Attention.of_packed(head.attention)
        self.norm = head.layernorm
        self.mlp = Mlp.of(head.mlp)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        y = self.attention(x, x, key_bias)
        return y + self.mlp(self.norm(y))


class DenseGraph(nn.Module):
    """``dense.onnx``: the outputs of :class:`VisionGraph`, and dense features [B, N, D]."""

    def __init__(self, tower: VisionTower, pooling: PoolingHead, dense: DenseHead) -> None:
        super().__init__()
        self.vision, self.pooling, self.dense = tower, pooling, dense

    def forward(self, patches: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, key_bias = self.vision(patches, spatial_shapes)
        features = self.pooling(x, key_bias)
        return features, F.normalize(features, dim=-1), self.dense(x, key_bias)
