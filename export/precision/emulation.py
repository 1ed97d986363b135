"""Graphs of 16 and 8 bits as a GPU rounds them, on a CPU.

onnxruntime's CPU provider has no 16-bit kernels for these graphs. It computes the layers in float32 and removes the
casts around them. So it shows the effect of rounded weights, and neither rounded activations nor overflow. Here each
16-bit operator stands in float32 between explicit casts down and up, which onnxruntime keeps. Inputs and results are
rounded, and a number beyond the type's range becomes infinite. Sums are kept in float32, as tensor cores keep them.
Products of 8-bit numbers are written in float16, as engines write them (:mod:`fgclip_rt.engines.products`).
"""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir

from fgclip_rt.engines.products import narrow_products

from .protos import with_weights, without_weights

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

#: Operators that compute nothing, and whose CPU kernels take every type.
EXACT = ("Cast", "CastLike", "Concat", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


def emulate(model: ir.Model) -> ir.Model:
    """A graph whose 16-bit operators are rounded float32 ones, in standard operators only.

    Its products of 8-bit numbers are 16-bit operators.
    """
    proto, weights = without_weights(model)
    narrow_products(proto.graph)
    proto = onnx.inliner.inline_local_functions(proto)
    copy = with_weights(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True), weights)
    ups: dict[ir.Value, ir.Value] = {}
    for node in list(copy.graph):
        if node.op_type not in EXACT and any(value.dtype in _NARROW for value in node.outputs):
            _emulate(copy, node, ups)
    return copy


def _emulate(model: ir.Model, node: ir.Node, ups: dict[ir.Value, ir.Value]) -> None:
    """Put one operator between casts up of its inputs, which others share, and a cast down of its results."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in _NARROW:
            if value not in ups:
                up = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
                model.graph.insert_before(node, up)
                ups[value] = up.outputs[0]
            node.replace_input_with(index, ups[value])
    for output in node.outputs:
        assert output.dtype is not None
        down = ir.node("Cast", [output], attributes={"to": output.dtype})
        ir.convenience.replace_all_uses_with(output, down.outputs[0])
        down.replace_input_with(0, output)
        down.outputs[0].type, output.type = output.type, ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_after(node, down)
