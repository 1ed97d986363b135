"""FineCLIP as the graphs of a bundle: the reference's weights, rewritten for inference.

Rotary positions rotate pairs of channels. Here each head holds the first channels of all pairs, then the second ones.
The weights of queries and keys are reordered alike, so no score changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...graphs import blocks
from ...graphs.blocks import Linear, PatchEmbedding
from ...graphs.causal_text import CausalTextTower
from ...graphs.class_token import ClassTokenTower
from ...graphs.text import Positions, TextGraph
from . import reference
from .config import VisionConfig

#: Indices of the walk types; all kinds of text are the same.
KINDS = {"short": 0, "box": 0}


class RotaryAttention(blocks.Attention):
    """Attention with rotary positions, and a LayerNorm before the last projection."""

    cos: Tensor
    sin: Tensor

    def __init__(self, attention: reference.Attention, config: VisionConfig) -> None:
        scale = config.head_width**-0.5
        q = Linear(_halves(attention.q_proj.weight * scale, config), _halves(attention.q_bias * scale, config))
        k = Linear(_halves(attention.k_proj.weight, config), None)
        v = Linear(attention.v_proj.weight, attention.v_bias)
        super().__init__(q, k, v, Linear.of(attention.proj), attention.heads)
        self.norm = attention.inner_attn_ln
        # Both channels of a pair have one angle; the class token, which comes first, is not rotated.
        angles = F.pad(reference.rotary_angles(config)[:, ::2], (0, 0, 1, 0))[:, None]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def rotated(self, x: Tensor) -> Tensor:
        """Queries or keys with rotary positions applied; a single query is the class token's, which is not rotated."""
        if x.shape[1] == 1:
            return x
        first, second = x.unflatten(-1, (self.heads, 2, -1)).unbind(-2)  # [B, 1 + N, heads, c / 2]
        turned = first * self.cos - second * self.sin, second * self.cos + first * self.sin
        return torch.cat(turned, dim=-1).flatten(2)

    def project(self, mixed: Tensor) -> Tensor:
        """Output projection of the joined heads, after the LayerNorm."""
        return self.out(self.norm(mixed))


def _halves(values: Tensor, config: VisionConfig) -> Tensor:
    """Rows of a weight, or a bias, with each head's pairs of channels taken apart."""
    return values.unflatten(0, (config.heads, -1, 2)).transpose(1, 2).flatten(0, 2)


class SwiGlu(nn.Module):
    """A gated linear unit with a LayerNorm before its last layer."""

    def __init__(self, mlp: reference.SwiGlu) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = Linear.of(mlp.w1), Linear.of(mlp.w2), Linear.of(mlp.w3)
        self.norm = mlp.ffn_ln

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.norm(F.silu(self.w1(x)) * self.w2(x)))


def vision_tower(model: reference.FineClip, mean: Sequence[float], std: Sequence[float]) -> ClassTokenTower:
    """The vision tower, with the pixels' normalisation in it."""
    visual = model.visual
    projection = visual.patch_embed.proj
    weight = projection.weight.permute(0, 2, 3, 1).flatten(1)  # patch order: row, column, RGB
    return ClassTokenTower(
        PatchEmbedding(weight, projection.bias, mean, std),
        visual.cls_token[0, 0],
        visual.pos_embed[0],
        nn.Identity(),
        [_vision_block(block, model.config.vision_cfg) for block in visual.blocks],
        visual.norm,
        Linear.of(visual.head),
    )


def _vision_block(block: nn.Module, config: VisionConfig) -> blocks.Block:
    assert isinstance(block, reference.Block)
    return blocks.Block(block.norm1, RotaryAttention(block.attn, config), block.norm2, SwiGlu(block.mlp))


def text_graph(model: reference.FineClip, end_token: int) -> TextGraph:
    """The text tower; ``end_token`` is the largest of all ids."""
    text = model.text
    tower = CausalTextTower(
        text.token_embedding.weight,
        Positions([text.positional_embedding]),
        [_text_block(block) for block in text.transformer.resblocks],
        text.ln_final,
        end_token,
    )
    return TextGraph(tower, [(text.text_projection.T, None)])


def _text_block(block: nn.Module) -> blocks.Block:
    assert isinstance(block, reference.TextBlock)
    mlp = blocks.Mlp(block.mlp.c_fc, block.mlp.c_proj, block.mlp.activation)
    norm, attention = blocks.fold_query_bias(block.ln_1, blocks.Attention.of_packed(block.attn))
    return blocks.Block(norm, attention, block.ln_2, mlp)
