"""Attention as one node that onnxruntime runs block by block, and that any other reader can take apart.

The node is ``com.microsoft.MultiHeadAttention``, and every file carries its definition in standard operators as a model
function of that name. onnxruntime knows the operator and computes it without ever holding the [N, N] scores, as
FlashAttention does (https://arxiv.org/abs/2205.14135): with them, 16,384 patches would need tens of gigabytes. A reader
that does not know it falls back on the definition, and ``onnx.inliner`` replaces the node by it. In a 16-bit type the
definition keeps its softmax in float32.

onnxruntime's blocks take no mask, so eight more channels in every head hide keys: they hold one in every query, and in
every key numbers whose sum is zero, or so negative that the key's weight vanishes. Modules ask for that with a key
bias. One channel would do, but the kernels of onnxruntime's CUDA provider take only heads of a multiple of eight.
:func:`expand_key_biases` adds the channels to the traced graph and names on each node what they were added to, so that
a reader can use a mask instead. A mask that differs from query to query, as a causal one, is added to the scores; they
are then held, for texts are short.
"""

from __future__ import annotations

import onnx_ir as ir
import onnxscript
import torch
import torch.nn.functional as F
from onnxscript import opset20 as op
from torch import Tensor

from fgclip_rt.manifest import KeyBias

DOMAIN, NAME = "com.microsoft", "MultiHeadAttention"

#: The operator that stands in a graph between its trace and :func:`expand_key_biases`: its fourth input is a key bias.
KEY_BIASED = "KeyBiasedMultiHeadAttention"

#: Added to the scores of a hidden key. Far below any score, so that its weight is zero, and finite in float16 too.
HIDDEN = -1e4

#: Channels by which heads grow; a power of two, so that its share of a bias is exact in every type.
_CHANNELS = 8


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    score_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """softmax(query · keyᵀ + bias) · value per head; the queries are scaled already.

    Args:
        query: float [B, Q, heads·c].
        key: float [B, N, heads·c].
        value: float [B, N, heads·d].
        heads: number of heads.
        score_bias: float [1 or B, 1, Q, N], added to the scores. In one graph every attention has one, or none has.
        key_bias: float [B, N], added to the scores of each key: zero for one to keep, :data:`HIDDEN` for one to hide.
            An attention has one kind of bias at most.

    Returns:
        float [B, Q, heads·d].
    """
    assert score_bias is None or key_bias is None
    if torch.compiler.is_exporting():
        shape = (query.shape[0], query.shape[1], value.shape[2])
        bias = (None, None, score_bias) if score_bias is not None else () if key_bias is None else (key_bias,)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NAME if key_bias is None else KEY_BIASED}",
            (query, key, value, *bias),
            {"num_heads": heads, "scale": 1.0},
            dtype=value.dtype,
            shape=shape,
            version=1,
        )
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = score_bias if key_bias is None else key_bias[:, None, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)


def expand_key_biases(model: ir.Model) -> None:
    """Make every :data:`KEY_BIASED` node an attention whose heads have eight more channels.

    The node's metadata then names the queries [B, Q, heads, c], the keys [B, N, heads, c] and the bias [B, N] that it
    was made from, and the model's says how many such nodes there are (:class:`fgclip_rt.manifest.KeyBias`).
    """
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, KEY_BIASED)]
    channels: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        _expand(model.graph, node, channels)
    model.metadata_props[KeyBias.COUNT] = str(len(nodes))


def _expand(graph: ir.Graph, node: ir.Node, channels: dict[ir.Value, ir.Value]) -> None:
    """Add the channels to one attention; ``channels`` holds those of keys by their bias, which layers share."""
    query, key, value, bias = node.inputs
    assert bias is not None
    heads = node.attributes["num_heads"].as_int()
    added: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        added.append(ir.node(operator, inputs, attributes))
        return added[-1].outputs[0]

    split, join = _constant(graph, [0, 0, heads, -1]), _constant(graph, [0, 0, -1])
    queries, keys = add("Reshape", query, split), add("Reshape", key, split)
    queries.name, keys.name = f"{node.name}.queries", f"{node.name}.keys"
    ones_shape = add("Concat", add("Shape", query, end=2), _constant(graph, [heads, _CHANNELS]), axis=0)
    ones = add("Expand", _constant(graph, 1.0), ones_shape)
    if bias not in channels:
        share = add("Mul", bias, _constant(graph, 1 / _CHANNELS))
        unsqueezed = add("Unsqueeze", share, _constant(graph, [2, 3]))
        channels[bias] = add("Expand", unsqueezed, _constant(graph, [1, 1, heads, _CHANNELS]))
    wide_queries = add("Reshape", add("Concat", queries, ones, axis=-1), join)
    wide_keys = add("Reshape", add("Concat", keys, channels[bias], axis=-1), join)

    attention = ir.node(
        NAME, [wide_queries, wide_keys, value], node.attributes, domain=DOMAIN, version=1, name=node.name
    )
    attention.metadata_props.update(
        {KeyBias.QUERIES: str(queries.name), KeyBias.KEYS: str(keys.name), KeyBias.BIAS: str(bias.name)}
    )
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*added, attention], node.outputs, attention.outputs)


def _constant(graph: ir.Graph, values: float | list[int]) -> ir.Value:
    """An initializer, which attentions share."""
    name = f"attention.{values}"
    if name not in graph.initializers:
        tensor = ir.tensor(values, ir.DataType.FLOAT if isinstance(values, float) else ir.DataType.INT64, name=name)
        graph.register_initializer(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        )
    return graph.initializers[name]


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
