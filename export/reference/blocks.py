"""Transformer blocks in plain PyTorch, with the parameter names of transformers' CLIP and SigLIP models.

References consist of them; graphs have their own (:mod:`fgclip_rt.export.graphs.blocks`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgclip_rt.errors import CheckpointError

#: Kinds of text; not every model has all of them.
WalkType: TypeAlias = Literal["short", "box", "long"]

#: Sizes beyond these are damage: with them, a tensor could have more bytes than 64 bits count.
LARGEST, _LARGEST_SIDE = 2**20, 2**14

Positive: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=LARGEST)]
#: Tokens of a text: one token would be its end alone.
Length: TypeAlias = Annotated[int, msgspec.Meta(gt=1, le=LARGEST)]
#: Side of an image or a patch in pixels.
Side: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=_LARGEST_SIDE)]
Epsilon: TypeAlias = Annotated[float, msgspec.Meta(gt=0, lt=1)]


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU by a sigmoid that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


#: Activation functions by their names in ``config.json``.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of a tower; the defaults are those of SigLIP 2 base."""

    hidden_size: Positive = 768
    intermediate_size: Positive = 3072
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    layer_norm_eps: Epsilon = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    def check(self, name: str) -> None:
        """Make sure that a tower of these sizes can be built.

        Raises:
            CheckpointError: two options contradict each other; ``name`` is their section.
        """
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json: {name}.hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}; the checkpoint's config is damaged."
            )
        if self.hidden_act not in ACTIVATIONS:
            raise CheckpointError(
                f"config.json: {name}.hidden_act is {self.hidden_act!r}, and only {', '.join(ACTIVATIONS)} can be "
                "exported; restore the file that came with the weights.",
                code="checkpoint_unsupported",
            )


@dataclass(frozen=True)
class TextTowerConfig(TowerConfig):
    """Sizes of a text tower, its tables of tokens and positions included."""

    vocab_size: Positive = 32000
    max_position_embeddings: Length = 64


def key_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, 1, N] from a mask [B, N] that is non-zero for keys that may be attended to."""
    mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return mask.masked_fill(valid == 0, torch.finfo(dtype).min)[:, None, None, :]


class Attention(nn.Module):
    """Multi-head self-attention with separate projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            projection(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TextEmbeddings(nn.Module):
    """Token table and table of positions."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def positions(self, walk_type: WalkType) -> Tensor:  # noqa: ARG002 (all are alike here)
        """The positions [L, D] of texts of a kind."""
        return self.position_embedding.weight

    def forward(self, input_ids: Tensor, walk_type: WalkType) -> Tensor:
        return self.token_embedding(input_ids) + self.positions(walk_type)[: input_ids.shape[1]]


class LongTextEmbeddings(TextEmbeddings):
    """Three tables of positions; long text takes ``ori`` for its first tokens and ``res`` for the others."""

    def __init__(self, config: TextTowerConfig, long_length: int, keep_length: int) -> None:
        """Make the tables.

        Args:
            config: of the text tower.
            long_length: tokens of a long text.
            keep_length: of these, how many take their positions from ``ori``.
        """
        super().__init__(config)
        self.keep_len = keep_length
        self.position_embedding_ori = nn.Embedding(long_length, config.hidden_size)
        self.position_embedding_res = nn.Embedding(long_length, config.hidden_size)

    def positions(self, walk_type: WalkType) -> Tensor:
        """The positions [L, D] of texts of a kind."""
        if walk_type != "long":
            return self.position_embedding.weight
        ori, res = self.position_embedding_ori.weight, self.position_embedding_res.weight
        return torch.cat([ori[: self.keep_len], res[self.keep_len :]])
