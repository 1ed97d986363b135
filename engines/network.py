"""A graph of a bundle as TensorRT's parser takes it: sizes fixed where an engine fixes them, and attention with a mask.

The bundle's graphs hide keys with one more channel in every head (:mod:`fgclip_rt.export.graphs.attention`), for the
sake of onnxruntime's blocks. Heads of such a size suit none of TensorRT's fused kernels: it would write all scores to
memory, in float32. With a mask in the channel's place each attention becomes one kernel, in 16-bit types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from fgclip_rt.errors import EngineError


def parser_input(path: Path, fixed: Mapping[str, int]) -> bytes:
    """The ONNX file at ``path`` with the axes in ``fixed`` of one size, serialised; its weights stay where they are.

    What attention is left is replaced by its definition in standard operators: TensorRT-RTX's parser knows the operator
    by name, and refuses heads whose keys and values differ in width.

    Args:
        path: of the graph.
        fixed: size by the name of the axis.
    """
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in fixed:
                axis.dim_value = fixed[axis.dim_param]
    unhide_keys(model.graph)
    model = onnx.inliner.inline_local_functions(model)
    # What the exporter noted of the values in between holds for the sizes that were free.
    del model.graph.value_info[:]
    serialised: bytes = model.SerializeToString()
    return serialised


def weight_files(path: Path) -> list[str]:
    """Names of the files, beside the ONNX file at ``path``, that its weights lie in.

    Raises:
        EngineError: it is no ONNX file.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own kinds
        raise EngineError(f"{path} is no ONNX graph ({error}); export the bundle again.") from None
    return sorted({ExternalDataInfo(tensor).location for tensor in graph.initializer if uses_external_data(tensor)})


def unhide_keys(graph: GraphProto) -> int:
    """Give every attention whose keys are hidden by a channel its heads' own size, and a mask in standard operators.

    An attention that is written in another way stays as it is. What is left over of the channel is read by nobody, and
    parsers drop it.

    Returns:
        How many there were.
    """
    reader = _Reader(graph)
    nodes: list[NodeProto] = []
    count = 0
    for node in graph.node:
        hidden = reader.hidden_keys(node) if node.op_type == "MultiHeadAttention" else None
        if hidden is None:
            nodes.append(node)
        else:
            count += 1
            nodes += _masked_attention(graph, node, hidden)
    del graph.node[:]
    graph.node.extend(nodes)
    return count


@dataclass(frozen=True)
class _HiddenKeys:
    """What an attention was made of before the channel was added.

    Attributes:
        query: name of the queries, [B, Q, heads, c].
        key: name of the keys, [B, N, heads, c].
        bias: name of what is added to the scores of a key, float [B, N].
        cast: the type that queries and keys are cast to, as ONNX numbers it; None where they are not.
    """

    query: str
    key: str
    bias: str
    cast: int | None


class _Reader:
    """A graph, looked at from the end."""

    def __init__(self, graph: GraphProto) -> None:
        self._producers = {output: node for node in graph.node for output in node.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer if not uses_external_data(tensor)}

    def hidden_keys(self, node: NodeProto) -> _HiddenKeys | None:
        """How the keys of an attention are hidden; None where they are not, or in a way that is not ours."""
        query, key = (self._widened(name) for name in node.input[:2])
        if query is None or key is None or query[2] != key[2] or _attribute(node, "scale") != 1.0:
            return None
        ones, biases = (self._made_by(channel, "Expand") for channel in (query[1], key[1]))
        if ones is None or biases is None or not self._is(ones.input[0], 1.0):
            return None
        unsqueeze = self._made_by(biases.input[0], "Unsqueeze")
        if unsqueeze is None or not self._is(unsqueeze.input[1], [2, 3]):
            return None
        return _HiddenKeys(query[0], key[0], unsqueeze.input[0], query[2])

    def _widened(self, name: str) -> tuple[str, str, int | None] | None:
        """Heads, the channel that was added to them, and the type that both were cast to."""
        cast = self._made_by(name, "Cast")
        flat = self._made_by(name if cast is None else cast.input[0], "Reshape")
        joined = None if flat is None else self._made_by(flat.input[0], "Concat")
        if joined is None or len(joined.input) != 2 or _attribute(joined, "axis") not in (-1, 3):
            return None
        return joined.input[0], joined.input[1], None if cast is None else int(_attribute(cast, "to"))

    def _made_by(self, name: str, operator: str) -> NodeProto | None:
        node = self._producers.get(name)
        return node if node is not None and node.op_type == operator else None

    def _is(self, name: str, values: Any) -> bool:
        """Whether a value is a constant, and holds ``values``."""
        node = self._made_by(name, "Constant")
        tensor = self._constants.get(name) if node is None else _attribute(node, "value")
        if not isinstance(tensor, TensorProto):
            return False
        return bool(np.array_equal(numpy_helper.to_array(tensor).ravel(), np.ravel(values)))


def _masked_attention(graph: GraphProto, node: NodeProto, hidden: _HiddenKeys) -> list[NodeProto]:
    """The nodes that take the place of ``node``; their softmax is in float32, as its definition has it."""
    made: list[NodeProto] = []
    prefix = f"{node.output[0]}.masked"

    def add(operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{prefix}.{len(made)}"
        made.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(name: str, values: list[int]) -> str:
        graph.initializer.append(helper.make_tensor(f"{prefix}.{name}", TensorProto.INT64, [len(values)], values))
        return f"{prefix}.{name}"

    def cast(name: str) -> str:
        return name if hidden.cast is None else add("Cast", name, to=hidden.cast)

    split = constant("split", [0, 0, int(_attribute(node, "num_heads")), -1])
    query = add("Transpose", cast(hidden.query), perm=[0, 2, 1, 3])
    key = add("Transpose", cast(hidden.key), perm=[0, 2, 3, 1])
    value = add("Transpose", add("Reshape", node.input[2], split), perm=[0, 2, 1, 3])
    scores = add("Cast", add("MatMul", query, key), to=TensorProto.FLOAT)
    bias = add("Unsqueeze", hidden.bias, constant("axes", [1, 2]))
    weights = add("CastLike", add("Softmax", add("Add", scores, bias), axis=-1), value)
    mixed = add("Transpose", add("MatMul", weights, value), perm=[0, 2, 1, 3])
    add("Reshape", mixed, constant("join", [0, 0, -1]), output=node.output[0])
    return made


def _attribute(node: NodeProto, name: str) -> Any:
    """An attribute's value; None where it is not there."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)
