"""Attention as one node that onnxruntime runs block by block, and that any other reader can take apart.

The node is ``com.microsoft.MultiHeadAttention``, and every file carries its definition in standard operators as a model
function of that name. onnxruntime knows the operator and computes it without ever holding the [N, N] scores, as
FlashAttention does (https://arxiv.org/abs/2205.14135): with them, 16,384 patches would need tens of gigabytes. A reader
that does not know it falls back on the definition, and ``onnx.inliner`` replaces the node by it. In a 16-bit type the
definition keeps its softmax in float32.

onnxruntime's blocks take no mask, so a masked caller hides keys with one more channel: it holds one in every query, and
in every key a number that is zero, or so negative that the key's weight vanishes (:func:`hide_keys`). A mask that
differs from query to query, as a causal one, is added to the scores instead; they are then held, for texts are short.
"""

from __future__ import annotations

import onnx_ir as ir
import onnxscript
import torch
import torch.nn.functional as F
from onnxscript import opset20 as op
from torch import Tensor

DOMAIN, NAME = "com.microsoft", "MultiHeadAttention"

#: Added to the scores of a hidden key. Far below any score, so that its weight is zero, and finite in float16 too.
HIDDEN = -1e4


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, score_bias: Tensor | None = None
) -> Tensor:
    """softmax(query · keyᵀ) · value per head; the queries are scaled already.

    Args:
        query: float [B, Q, heads·c].
        key: float [B, N, heads·c].
        value: float [B, N, heads·d].
        heads: number of heads.
        score_bias: float [1 or B, 1, Q, N], added to the scores. In one graph every attention has one, or none has.

    Returns:
        float [B, Q, heads·d].
    """
    if torch.compiler.is_exporting():
        shape = (query.shape[0], query.shape[1], value.shape[2])
        bias = () if score_bias is None else (None, None, score_bias)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NAME}",
            (query, key, value, *bias),
            {"num_heads": heads, "scale": 1.0},
            dtype=value.dtype,
            shape=shape,
            version=1,
        )
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=score_bias, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)


def hide_keys(query: Tensor, key: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Queries [B, Q, heads·(c+1)] and keys [B, N, heads·(c+1)] whose scores are those of the given ones plus ``bias``.

    Args:
        query: float [B, Q, heads·c].
        key: float [B, N, heads·c].
        bias: float [B, N], zero for a key to keep and :data:`HIDDEN` for one to hide.
        heads: number of heads.
    """
    ones = torch.ones(query.shape[0], query.shape[1], heads, 1, dtype=query.dtype)
    biases = bias[:, :, None, None].expand(-1, -1, heads, 1)
    query = torch.cat([query.unflatten(-1, (heads, -1)), ones], dim=-1)
    key = torch.cat([key.unflatten(-1, (heads, -1)), biases], dim=-1)
    return query.flatten(2), key.flatten(2)


@onnxscript.script(onnxscript.values.Opset(DOMAIN, 1), default_opset=op)
def MultiHeadAttention(query, key, value, num_heads: int, scale: float):  # type: ignore[no-untyped-def] # noqa: N802
    """The operator in standard ones, its softmax in float32; onnxscript compiles this function and never runs it."""
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    split = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    q = op.Transpose(op.Reshape(query, split), perm=[0, 2, 1, 3])
    k = op.Transpose(op.Reshape(key, split), perm=[0, 2, 3, 1])
    v = op.Transpose(op.Reshape(value, split), perm=[0, 2, 1, 3])
    scores = op.Mul(op.Cast(op.MatMul(q, k), to=1), op.Constant(value_float=scale))
    weights = op.CastLike(op.Softmax(scores, axis=-1), v)
    mixed = op.Transpose(op.MatMul(weights, v), perm=[0, 2, 1, 3])
    return op.Reshape(mixed, op.Constant(value_ints=[0, 0, -1]))


@onnxscript.script(onnxscript.values.Opset(DOMAIN, 1), default_opset=op)
def BiasedMultiHeadAttention(  # type: ignore[no-untyped-def] # noqa: N802
    query,
    key,
    value,
    bias,  # noqa: ARG001 (the operator has it)
    key_padding_mask,  # noqa: ARG001
    attention_bias,
    num_heads: int,
    scale: float,
):
    """The same with a bias of the scores; the operator's two inputs before that are not used."""
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    split = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    q = op.Transpose(op.Reshape(query, split), perm=[0, 2, 1, 3])
    k = op.Transpose(op.Reshape(key, split), perm=[0, 2, 3, 1])
    v = op.Transpose(op.Reshape(value, split), perm=[0, 2, 1, 3])
    scores = op.Mul(op.Cast(op.MatMul(q, k), to=1), op.Constant(value_float=scale))
    scores = op.Add(scores, op.Cast(attention_bias, to=1))
    weights = op.CastLike(op.Softmax(scores, axis=-1), v)
    mixed = op.Transpose(op.MatMul(weights, v), perm=[0, 2, 1, 3])
    return op.Reshape(mixed, op.Constant(value_ints=[0, 0, -1]))


def add_definition(model: ir.Model) -> None:
    """Put the operator's definition into a model that uses it."""
    inputs = {len(node.inputs) for node in model.graph if node.domain == DOMAIN}
    if inputs:
        (count,) = inputs
        definition = MultiHeadAttention if count == 3 else BiasedMultiHeadAttention
        function = ir.serde.deserialize_function(definition.to_function_proto())
        function.name = NAME
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1
