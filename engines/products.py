"""Products of 8-bit numbers that an engine writes in 16 bits.

A bundle's DequantizeLinear has float32 scales, so a strongly typed network writes every 8-bit product in float32: twice
the memory of float16, and the next kernel reads it again. With the scales in float16, TensorRT-RTX writes float16, but
applies scales of channels only after that: the sums themselves would pass 65,504. So both inputs get a constant power
of two for a scale, which the product's kernel applies, and which no sum of the layer's width can take past float16's
end. The next kernel applies the true scales in float32, with the bias. The 8-bit numbers stay the same, and nothing but
the product is rounded, to 11 bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

#: The largest magnitude of a product of two numbers, by their type.
_LARGEST: dict[int, int] = {TensorProto.INT8: 128 * 128, TensorProto.FLOAT8E4M3FN: 448 * 448}


def narrow_products(graph: GraphProto) -> None:
    """Have every product of dequantised inputs and weights be float16, and scale it in float32 afterwards."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[NodeProto] = []
    for node in graph.node:
        scaled = [makers[name] for name in node.input if name in makers and makers[name].op_type == "DequantizeLinear"]
        if node.op_type != "MatMul" or len(scaled) != 2 or scaled[1].input[0] not in weights:
            nodes.append(node)
            continue
        weight = weights[scaled[1].input[0]]
        nodes += _narrow(graph, node, scaled[0], scaled[1], largest_exponent(weight.data_type, weight.dims[0]))
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in read)


def largest_exponent(dtype: int, width: int) -> int:
    """The largest power of two by which no sum of ``width`` products of a type can pass float16's end."""
    return math.floor(math.log2(float(np.finfo(np.float16).max) / (_LARGEST[dtype] * width)))


def _narrow(graph: GraphProto, node: NodeProto, x: NodeProto, weight: NodeProto, exponent: int) -> list[NodeProto]:
    prefix = f"{node.output[0]}.narrow"
    made: list[NodeProto] = []

    def constant(name: str, value: np.float16 | np.float32) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{prefix}.{name}"))
        return f"{prefix}.{name}"

    def add(operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{prefix}.{len(made)}"
        made.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    # Shared out to the two, so that either times a number of 8 bits is exact in float16.
    first = add("DequantizeLinear", x.input[0], constant("x", np.float16(2.0 ** (exponent // 2))))
    second = add("DequantizeLinear", weight.input[0], constant("weight", np.float16(2.0 ** (exponent - exponent // 2))))
    product = add("Cast", add("MatMul", first, second), to=TensorProto.FLOAT)
    scale = add("Mul", add("Mul", x.input[1], constant("back", np.float32(2.0**-exponent))), weight.input[1])
    add("Mul", product, scale, output=node.output[0])
    return made
