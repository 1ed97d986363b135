"""Transformer blocks of the graphs: the reference's weights, rewritten for inference.

They consist of MatMul, elementwise operators and attention (:mod:`fgclip_rt.export.graphs.attention`). Weights are
stored [in, out]. The query projection contains the scale of the scores. The biases of keys and values are folded away,
and so is that of the queries where the weights allow it. The patch projection contains the rescaling and normalisation
of the pixels, so that a caller sends raw bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..reference import blocks as reference_blocks
from .attention import multi_head_attention

#: Subtracted from the pixels' bytes, which are then centred on zero and fit into a symmetric int8.
_MIDDLE = 128

#: Largest shift of a LayerNorm's output that takes the bias of the queries in: as large as the output's own deviation.
#: 8-bit types, whose steps grow with the largest number, lose more by a shift of 4 than their floors allow.
_MOST_SHIFT = 1.0


class Linear(nn.Module):
    """``x @ weight + bias`` with the weight stored [in, out], as MatMul takes it; a view of the reference's weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take ``weight`` [out, in] and ``bias`` [out], as ``torch.nn.Linear`` keeps them."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().T, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Linear:
        return cls(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        product = torch.matmul(x, self.weight)
        return product if self.bias is None else product + self.bias


class PatchEmbedding(Linear):
    """Raw patches uint8 [B, N, P·P·3], each as (row, column, channel), to their projections [B, N, D]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, mean: Sequence[float], std: Sequence[float]) -> None:
        """Fold (pixel / 255 - mean) / std, per channel, into a projection [D, P·P·3] and its bias [D]."""
        repeats = weight.shape[1] // len(mean)
        means, stds = (torch.tensor(values, dtype=torch.float64).repeat(repeats) for values in (mean, std))
        exact = weight.detach().double()
        offset = exact @ ((_MIDDLE / 255 - means) / stds)
        if bias is not None:
            offset = offset + bias.detach().double()
        super().__init__((exact / (255 * stds)).float(), offset.float())

    def forward(self, patches: Tensor) -> Tensor:
        return super().forward(patches.to(torch.float32) - _MIDDLE)


class Attention(nn.Module):
    """Multi-head attention from some positions to all."""

    def __init__(self, q: Linear, k: Linear, v: Linear, out: Linear, heads: int) -> None:
        """Take the projections [D, D]; the query projection contains the scale of the scores (:meth:`of`)."""
        super().__init__()
        self.q, self.k, self.v, self.out = q, k, v, out
        self.heads = heads

    @classmethod
    def of(cls, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear, heads: int) -> Attention:
        return cls._folded((q.weight, q.bias), k.weight, (v.weight, v.bias), out, heads)

    @classmethod
    def of_packed(cls, attention: nn.MultiheadAttention) -> Attention:
        wq, wk, wv = attention.in_proj_weight.chunk(3)
        bq, _, bv = attention.in_proj_bias.chunk(3)
        return cls._folded((wq, bq), wk, (wv, bv), attention.out_proj, attention.num_heads)

    @classmethod
    def _folded(
        cls, q: tuple[Tensor, Tensor], k: Tensor, v: tuple[Tensor, Tensor], out: nn.Linear, heads: int
    ) -> Attention:
        """Attention whose keys and values have no biases.

        The key bias shifts all scores of a query alike, and the softmax cancels it. The value bias passes through the
        weighted sum unchanged, because the weights sum to one, and becomes a part of the output bias.
        """
        (wq, bq), (wv, bv) = q, v
        scale = (wq.shape[0] // heads) ** -0.5
        bias = out.bias.double() + out.weight.double() @ bv.double()
        return cls(
            Linear(wq * scale, bq * scale), Linear(k, None), Linear(wv, None), Linear(out.weight, bias.float()), heads
        )

    def forward(
        self,
        queries: Tensor,
        x: Tensor,
        key_bias: Tensor | None = None,
        score_bias: Tensor | None = None,
        *,
        rest_keep_own: bool = False,
    ) -> Tensor:
        """Attend from ``queries`` to ``x``.

        Args:
            queries: [B, Q, D]; with rotary positions, the first Q of ``x``.
            x: [B, N, D].
            key_bias: [B, N], added to the scores of each key; the scores are never held in memory.
            score_bias: [1 or B, 1, Q, N], added to the scores; the scores are then held in memory.
            rest_keep_own: let every other position keep its own value, as if it attended to itself alone.

        Returns:
            [B, Q, D], or [B, N, D] with ``rest_keep_own``.
        """
        q, k, v = self.rotated(self.q(queries)), self.rotated(self.k(x)), self.v(x)
        mixed = multi_head_attention(q, k, v, self.heads, score_bias, key_bias)
        if rest_keep_own:
            mixed = torch.cat([mixed, v[:, mixed.shape[1] :]], dim=1)
        return self.project(mixed)

    def rotated(self, x: Tensor) -> Tensor:
        """Queries or keys with rotary positions applied; unchanged here, because these blocks have none."""
        return x

    def project(self, mixed: Tensor) -> Tensor:
        """Output projection of the joined heads."""
        return self.out(mixed)


def fold_query_bias(norm: nn.Module, attention: Attention) -> tuple[nn.Module, Attention]:
    """A LayerNorm and the attention that it feeds alone, without the bias of the queries, if the weights allow it.

    A shift of the LayerNorm's output gives the queries their bias. It shifts all keys alike, which the softmax cancels,
    and all values alike, which the bias of the output takes back. TensorRT then hands the projections to its attention
    as they are; for a bias it copies the queries, the keys and the values.

    Positions must not turn the keys, or these would not be shifted alike.
    """
    bias = attention.q.bias
    assert isinstance(norm, nn.LayerNorm)
    assert bias is not None
    assert attention.out.bias is not None
    query, value, out = (linear.weight.double() for linear in (attention.q, attention.v, attention.out))
    shift, singular = torch.linalg.solve_ex(query.T, bias.double())
    if singular or not shift.abs().max() <= _MOST_SHIFT:
        return norm, attention
    shifted = copy.deepcopy(norm)
    shifted.bias = nn.Parameter((norm.bias.double() + shift).float(), requires_grad=False)
    out_bias = attention.out.bias.double() - shift @ value @ out
    q, project = Linear(attention.q.weight.T, None), Linear(attention.out.weight.T, out_bias.float())
    return shifted, Attention(q, attention.k, attention.v, project, attention.heads)


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, fc1: nn.Linear, fc2: nn.Linear, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear.of(fc1), Linear.of(fc2)
        self.activation = activation

    @classmethod
    def of(cls, mlp: reference_blocks.Mlp) -> Mlp:
        return cls(mlp.fc1, mlp.fc2, mlp.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, norm1: nn.Module, attention: Attention, norm2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2, self.mlp = norm1, attention, norm2, mlp

    @classmethod
    def of(cls, layer: nn.Module) -> Block:
        assert isinstance(layer, reference_blocks.EncoderLayer)
        attention = layer.self_attn
        projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
        norm1, folded = fold_query_bias(layer.layer_norm1, Attention.of(*projections, attention.heads))
        return cls(norm1, folded, layer.layer_norm2, Mlp.of(layer.mlp))

    def forward(self, x: Tensor, key_bias: Tensor | None = None, score_bias: Tensor | None = None) -> Tensor:
        normed = self.norm1(x)
        return self.finish(x, self.attention(normed, normed, key_bias, score_bias))

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the block after the attention, for all positions or only for those that are still needed."""
        x = x + mixed
        return x + self.mlp(self.norm2(x))
