"""A graph in which any one layer can be in another type, as an input says.

Each run of it measures another layer. A graph for each layer would have to be lowered, written and opened for the sake
of one run, which takes several times as long as the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx import GraphProto, NodeProto, TensorProto, compose, helper
from onnx_ir.passes.common import ShapeInferencePass

from .emulation import emulate
from .layers import Layer, find_layers
from .lower import FLOAT, lower

#: The input that chooses: int64 [], the place of a layer among those that were given; :data:`NONE` for no layer.
CHOSEN = "chosen_layer"
NONE = -1


def switched(model: ir.Model, layers: Sequence[str], dtype: ir.DataType, ranges: Mapping[str, float]) -> ir.Model:
    """A copy of a float32 graph with one more input, :data:`CHOSEN`.

    Args:
        model: the graph.
        layers: names of the layers to choose from. One that the graph does not hold changes nothing.
        dtype: the type of the chosen layer, rounded as on a GPU.
        ranges: as for :func:`fgclip_rt.export.precision.lower.lower`.
    """
    # A layer by itself needs the types of its inputs, which rewriting leaves out here and there.
    model = ShapeInferencePass(strict_mode=True)(model.clone()).model
    places = {name: place for place, name in enumerate(layers)}
    found = {layer.node.outputs[0].name: layer for layer in find_layers(model) if layer.name in places}
    proto = ir.to_proto(model)
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        layer = found.get(node.output[0])
        if layer is None:
            nodes.append(node)
        else:
            other = ir.to_proto(emulate(lower(_alone(model, layer), {layer.name: dtype}, ranges)))
            nodes += _choice(node, places[layer.name], other.graph)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.input.append(helper.make_tensor_value_info(CHOSEN, TensorProto.INT64, []))
    return ir.from_proto(proto)


def _alone(model: ir.Model, layer: Layer) -> ir.Model:
    """A model of one layer, whose inputs have the names that they have in the whole graph."""
    values = {
        value: ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)
        for value in layer.node.inputs
        if value is not None
    }
    node = ir.node(
        layer.node.op_type,
        [None if value is None else values[value] for value in layer.node.inputs],
        layer.node.attributes,
        domain=layer.node.domain,
        name=layer.node.name,
    )
    # A result of the model of its own, because a layer's is replaced by its cast.
    last = ir.node("Identity", node.outputs)
    last.outputs[0].type = ir.TensorType(FLOAT)
    graph = ir.Graph(
        [value for value in values.values() if value.const_value is None],
        last.outputs,
        nodes=[node, last],
        initializers=[value for value in values.values() if value.const_value is not None],
        opset_imports=model.graph.opset_imports,
        name="other",
    )
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _choice(node: NodeProto, place: int, other: GraphProto) -> list[NodeProto]:
    """Nodes that run a layer's own node, or ``other`` if its place is chosen."""
    (result,) = node.output
    # A branch sees the names of the whole graph, so that its own must differ from them.
    then = compose.add_prefix_graph(other, f"{result}/other/", rename_inputs=False)
    del then.input[:], then.value_info[:]
    same = NodeProto()
    same.CopyFrom(node)
    same.output[0] = f"{result}/same"
    kind = other.output[0].type
    otherwise = helper.make_graph([same], "same", [], [helper.make_value_info(same.output[0], kind)])
    number, chosen = f"{result}/place", f"{result}/chosen"
    return [
        helper.make_node("Constant", [], [number], value_int=place),
        helper.make_node("Equal", [CHOSEN, number], [chosen]),
        helper.make_node("If", [chosen], [result], then_branch=then, else_branch=otherwise),
    ]
