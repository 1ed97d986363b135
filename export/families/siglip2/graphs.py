"""SigLIP 2's towers as graphs: the reference's weights, rewritten for inference.

Each rewrite is algebra on the same weights, and the probe compares it with the reference. These are added to the
rewrites of :mod:`fgclip_rt.export.graphs.blocks`, without any loop over the batch:

- the attention mask comes from ``spatial_shapes``;
- the antialiased resize of the position table is a product of two triangle-filter matrices;
- the pooling head's constant query folds the key projection into a [heads, D] matrix, and its value projection moves
  behind the weighted sum (the weights sum to one);
- the text tower's last block computes only the position that is pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgclip_rt.interface import IMAGE_EMBEDS, IMAGE_FEATURES, PATCHES, SPATIAL_SHAPES
from fgclip_rt.manifest import Axis

from ...graphs.attention import HIDDEN
from ...graphs.blocks import Block, Linear, Mlp, PatchEmbedding
from ...graphs.regions import grid_positions
from ...graphs.text import Positions
from ...graphs.trace import GraphSource
from ...reference.blocks import WalkType
from . import reference


class VisionTower(nn.Module):
    """Raw patches to the last hidden state [B, N, D], and the bias [B, N] that hides the patches past each grid."""

    def __init__(self, model: reference.VisionModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        embedding = model.embeddings.patch_embedding
        self.patch_embedding = PatchEmbedding(embedding.weight, embedding.bias, mean, std)
        self.positions = nn.Parameter(model.embeddings.position_embedding.weight.detach(), requires_grad=False)
        self.grid = model.embeddings.grid
        self.blocks = nn.ModuleList(Block.of(layer) for layer in model.encoder.layers)
        self.post_norm = model.post_layernorm

    def forward(self, patches: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, Tensor]:
        height, width = spatial_shapes.to(torch.float32)[:, :, None].unbind(1)
        row, column, valid = grid_positions(patches.shape[1], height, width)
        key_bias = torch.where(valid, 0.0, HIDDEN)

        x = self.patch_embedding(patches) + self._positions(row, column, height, width)
        for block in self.blocks:
            x = block(x, key_bias)
        return self.post_norm(x), key_bias

    def _positions(self, row: Tensor, column: Tensor, height: Tensor, width: Tensor) -> Tensor:
        # Rows past the image are clamped: their positions mean nothing but must stay finite.
        rows = triangle_weights(torch.minimum(row, height - 1), height, self.grid)
        columns = triangle_weights(column, width, self.grid)
        weights = (rows[..., :, None] * columns[..., None, :]).flatten(2)
        return torch.matmul(weights, self.positions)


def triangle_weights(position: Tensor, size: Tensor, source: int) -> Tensor:
    """Weights of an antialiased bilinear resize along one axis.

    Equals ``torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False)`` from ``source`` to
    ``size`` samples (Pillow's triangle filter): when shrinking, the triangle is as wide as the step.

    Args:
        position: float [B, N], the target index along the axis, in 0…size-1.
        size: float [B, 1], the target length.
        source: the length of the table.

    Returns:
        float [B, N, source]; each row sums to one.
    """
    step = source / size
    reach = torch.clamp(step, min=1.0)
    centre = (position + 0.5) * step
    taps = torch.arange(source, dtype=torch.float32, device=position.device) + 0.5
    weights = torch.relu(1 - torch.abs(taps - centre[..., None]) / reach[..., None])
    return weights / weights.sum(-1, keepdim=True)


class PoolingHead(nn.Module):
    """Attention pooling with its constant query folded into the key projection."""

    def __init__(self, head: reference.PoolingHead) -> None:
        super().__init__()
        attention = head.attention
        heads, width = attention.num_heads, attention.embed_dim
        wq, wk, wv = attention.in_proj_weight.detach().chunk(3)
        bq, _, bv = attention.in_proj_bias.detach().chunk(3)
        query = (head.probe.detach().view(width).double() @ wq.double().T + bq.double()) * (width // heads) ** -0.5
        keys = torch.einsum("hd,hdc->hc", query.view(heads, -1), wk.double().view(heads, -1, width))
        # The key bias shifts every score of a head alike, and the softmax cancels it.
        self.keys = nn.Parameter(keys.float(), requires_grad=False)
        self.values = nn.Parameter(wv.view(heads, -1, width).transpose(1, 2), requires_grad=False)
        self.value_bias = nn.Parameter(bv, requires_grad=False)
        self.out = Linear.of(attention.out_proj)
        self.norm = head.layernorm
        self.mlp = Mlp.of(head.mlp)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        # Of x · keys, transposed afterwards, TensorRT-RTX makes a float32 tensor [B, N, N, D].
        scores = torch.matmul(self.keys, x.transpose(1, 2))  # [B, heads, N]
        weights = torch.softmax(scores + key_bias[:, None, :], dim=-1)
        mixed = torch.matmul(weights, x)  # [B, heads, D]
        values = torch.matmul(mixed[:, :, None, :], self.values)  # [B, heads, 1, D / heads]
        y = self.out(values.flatten(1) + self.value_bias)
        return y + self.mlp(self.norm(y))


class VisionGraph(nn.Module):
    """``vision.onnx``: patches uint8 [B, N, P·P·3], spatial_shapes int32 [B, 2] → features and embeds [B, D]."""

    def __init__(self, tower: VisionTower, pooling: PoolingHead) -> None:
        super().__init__()
        self.vision, self.pooling = tower, pooling

    def forward(self, patches: Tensor, spatial_shapes: Tensor) -> tuple[Tensor, Tensor]:
        features = self.pooling(*self.vision(patches, spatial_shapes))
        return features, F.normalize(features, dim=-1)


class TextTower(nn.Module):
    """Tokens to the pooled state [B, D], that of the last position."""

    def __init__(self, model: reference.TextModel, walk_types: Sequence[WalkType]) -> None:
        """Take a tower; the graph's input ``walk_type`` is an index of ``walk_types``."""
        super().__init__()
        embeddings = model.embeddings
        self.tokens = nn.Parameter(embeddings.token_embedding.weight.detach(), requires_grad=False)
        self.positions = Positions([embeddings.positions(walk_type) for walk_type in walk_types])
        self.blocks = nn.ModuleList(Block.of(layer) for layer in model.encoder.layers)
        self.post_norm = model.final_layer_norm

    def forward(self, input_ids: Tensor, walk_type: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        key_bias = None if attention_mask is None else torch.where(attention_mask != 0, 0.0, HIDDEN)
        x = F.embedding(input_ids, self.tokens) + self.positions(input_ids.shape[1], walk_type)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, key_bias)
        assert isinstance(last, Block)
        normed = last.norm1(x)
        return self.post_norm(last.finish(x[:, -1:], last.attention(normed[:, -1:], normed, key_bias))[:, 0])


def vision_source(
    graph: nn.Module, model: reference.VisionModel, more_outputs: Mapping[str, Sequence[str | int]] | None = None
) -> GraphSource:
    """A graph of the vision tower, ready to trace.

    Args:
        graph: the module.
        model: the reference's tower.
        more_outputs: names and axes of the outputs after features and embeds.
    """
    embeddings = model.embeddings
    width = embeddings.patch_embedding.out_features
    inputs = {
        PATCHES: torch.zeros(2, 12, embeddings.patch_embedding.in_features, dtype=torch.uint8),
        SPATIAL_SHAPES: torch.tensor([[3, 4], [2, 5]], dtype=torch.int32),
    }
    axes = {PATCHES: {0: Axis.BATCH, 1: Axis.PATCHES}, SPATIAL_SHAPES: {0: Axis.BATCH}}
    outputs = {IMAGE_FEATURES: (Axis.BATCH, width), IMAGE_EMBEDS: (Axis.BATCH, width)}
    return GraphSource(graph, inputs, axes, {**outputs, **(more_outputs or {})}, sensitive=("pooling",))
