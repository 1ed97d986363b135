"""A graph of a bundle as TensorRT's parser takes it: fixed sizes, attention with a mask, and 8-bit products in float16.

The bundle's graphs hide keys with more channels in every head (:mod:`fgclip_rt.export.graphs.attention`), for the sake
of onnxruntime's blocks. Heads of such a size suit none of TensorRT's fused kernels: it would write all scores to
memory, in float32. With a mask instead of the channels each attention becomes one kernel, in 16-bit types. The exporter
names on the node what the channels were added to; a graph without these names would be slow, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from fgclip_rt.errors import EngineError
from fgclip_rt.manifest import KeyBias

from .products import narrow_products


def parser_input(path: Path, fixed: Mapping[str, int]) -> bytes:
    """The ONNX file at ``path`` with the axes in ``fixed`` of one size, serialised; its weights stay where they are.

    All other attention is replaced by its definition in standard operators: TensorRT-RTX's parser knows the operator
    by name, and refuses heads whose keys and values differ in width.

    Args:
        path: of the graph.
        fixed: size by the name of the axis.

    Raises:
        EngineError: it is no ONNX file, or it does not name the keys that its attentions hide.
    """
    model = _read(path)
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in fixed:
                axis.dim_value = fixed[axis.dim_param]
    _mask_attentions(model.graph)
    narrow_products(model.graph)
    model = onnx.inliner.inline_local_functions(model)
    # Shapes recorded for intermediate values assume dynamic axes; drop them.
    del model.graph.value_info[:]
    serialised: bytes = model.SerializeToString()
    return serialised


def weight_files(path: Path) -> list[str]:
    """Names of the files, beside the ONNX file at ``path``, that its weights lie in.

    Raises:
        EngineError: as :func:`parser_input`.
    """
    graph = _read(path).graph
    return sorted({ExternalDataInfo(tensor).location for tensor in graph.initializer if uses_external_data(tensor)})


def _read(path: Path) -> ModelProto:
    """The graph without its weights, once it names all that :func:`_mask_attentions` needs."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own kinds
        raise EngineError(f"{path} is no ONNX graph ({error}); export the bundle again.") from None
    has_attention = any(node.op_type == _ATTENTION for node in model.graph.node)
    stated = _metadata(model).get(KeyBias.COUNT, None if has_attention else "0")
    values = {output for node in model.graph.node for output in node.output} | {
        value.name for value in model.graph.input
    }
    named = sum(values.issuperset(names) for names in map(_key_bias, model.graph.node) if names is not None)
    if stated != str(named):
        raise EngineError(f"{path} was exported by an earlier fgclip-rt; export the bundle again.")
    return model


_ATTENTION = "MultiHeadAttention"


def _key_bias(node: NodeProto) -> tuple[str, str, str] | None:
    """The names of the queries, the keys and the key bias of an attention; None if it hides no keys."""
    names = _metadata(node)
    if node.op_type != _ATTENTION or not {KeyBias.QUERIES, KeyBias.KEYS, KeyBias.BIAS} <= names.keys():
        return None
    return names[KeyBias.QUERIES], names[KeyBias.KEYS], names[KeyBias.BIAS]


def _metadata(holder: ModelProto | NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in holder.metadata_props}


def _mask_attentions(graph: GraphProto) -> None:
    """Give every attention that hides keys its heads' own size, and a mask in standard operators.

    Nobody reads the rest of the channels' nodes, and parsers drop them.
    """
    nodes: list[NodeProto] = []
    for node in graph.node:
        names = _key_bias(node)
        nodes += [node] if names is None else _masked_attention(graph, node, *names)
    del graph.node[:]
    graph.node.extend(nodes)


def _masked_attention(graph: GraphProto, node: NodeProto, queries: str, keys: str, key_bias: str) -> list[NodeProto]:
    """The nodes to use instead of ``node``; their softmax is in float32, as its definition has it."""
    made: list[NodeProto] = []
    prefix = f"{node.output[0]}.masked"

    def add(operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{prefix}.{len(made)}"
        made.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(name: str, values: list[int]) -> str:
        graph.initializer.append(helper.make_tensor(f"{prefix}.{name}", TensorProto.INT64, [len(values)], values))
        return f"{prefix}.{name}"

    # The values have the type that the attention is computed in; queries and keys are named before their casts to it.
    values = node.input[2]
    split = constant("split", [0, 0, _heads(node), -1])
    query = add("Transpose", add("CastLike", queries, values), perm=[0, 2, 1, 3])
    key = add("Transpose", add("CastLike", keys, values), perm=[0, 2, 3, 1])
    value = add("Transpose", add("Reshape", values, split), perm=[0, 2, 1, 3])
    scores = add("Cast", add("MatMul", query, key), to=TensorProto.FLOAT)
    bias = add("Unsqueeze", key_bias, constant("axes", [1, 2]))
    weights = add("CastLike", add("Softmax", add("Add", scores, bias), axis=-1), value)
    mixed = add("Transpose", add("MatMul", weights, value), perm=[0, 2, 1, 3])
    add("Reshape", mixed, constant("join", [0, 0, -1]), output=node.output[0])
    return made


def _heads(node: NodeProto) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "num_heads")
