"""A graph in which any layers can be in another type, as an input says.

Each run of it measures other layers. A graph for each choice would have to be lowered, written and opened for the sake
of a few runs, which takes several times as long as they do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx import GraphProto, NodeProto, TensorProto, helper
from onnx_ir.passes.common import ShapeInferencePass

from fgclip_rt.arrays import Array
from fgclip_rt.backends import Result
from fgclip_rt.bundle import Bundle
from fgclip_rt.manifest import FP32

from .emulation import emulate
from .graph_backend import GraphBackend
from .layers import Layer, find_layers
from .lower import FLOAT, Known, lower
from .protos import with_weights, without_weights

#: The input that chooses: bool [n], true for each layer that takes its other type, in the order of the choices.
CHOSEN = "chosen_layers"


class Choice(NamedTuple):
    """The two types of a layer.

    Attributes:
        usual: its type where it is not chosen.
        other: its type where it is.
    """

    usual: ir.DataType
    other: ir.DataType


def switched(
    model: ir.Model,
    choices: Mapping[str, Choice],
    ranges: Mapping[str, float],
    types: Mapping[str, ir.DataType] | None = None,
    known: Known | None = None,
) -> ir.Model:
    """A copy of a float32 graph with one more input, :data:`CHOSEN`, all of it rounded as on a GPU.

    It computes the same as a graph whose layers were lowered to the chosen types, if none is joined with its neighbours
    (:mod:`.joining`), as in 8 bits none is.

    Args:
        model: the graph.
        choices: types of the layers to choose from, by name. One that the graph does not hold changes nothing.
        ranges: as for :func:`fgclip_rt.export.precision.lower.lower`.
        types: types of other layers and of sums, as for ``lower``; by default all are float32.
        known: as for ``lower``.
    """
    known = {} if known is None else known
    fixed = {name: dtype for name, dtype in (types or {}).items() if name not in choices}
    # A layer by itself needs the types of its inputs, which rewriting leaves out here and there.
    model = ShapeInferencePass(strict_mode=True)(lower(model, fixed, ranges, known)).model
    places = {name: place for place, name in enumerate(choices)}
    found = {layer.node.outputs[0].name: layer for layer in find_layers(model) if layer.name in places}
    proto, weights = without_weights(model)
    present = {tensor.name for tensor in proto.graph.initializer}
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        layer = found.get(node.output[0])
        if layer is None:
            nodes.append(node)
            continue
        branches = []
        for dtype in choices[layer.name]:
            branch, weights_of_branch = _branch(model, layer, dtype, ranges, known)
            branches.append(branch)
            weights |= weights_of_branch
            proto.graph.initializer.extend(tensor for tensor in branch.initializer if tensor.name not in present)
            present |= {tensor.name for tensor in branch.initializer}
        nodes += _choice(node.output[0], places[layer.name], *branches)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.input.append(helper.make_tensor_value_info(CHOSEN, TensorProto.BOOL, [len(choices)]))
    return emulate(with_weights(proto, weights))


class SwitchedBackend(GraphBackend):
    """Runs switched graphs on the CPU.

    Attributes:
        chosen: names of the layers that take their other type.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[str, ir.Model], choices: Sequence[str]) -> None:
        """Prepare to run graphs.

        Args:
            bundle: the bundle whose folder holds the weights of the graphs.
            graphs: graphs made by :func:`switched`, by name.
            choices: the layers to choose from, in the order in which the graphs were given them.
        """
        super().__init__(bundle, FP32, graphs)
        self._choices = choices
        self.chosen: Collection[str] = ()

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """As :meth:`GraphBackend.submit`."""
        if graph in self._graphs:
            inputs = {**inputs, CHOSEN: np.array([name in self.chosen for name in self._choices], bool)}
        return super().submit(graph, inputs, outputs)


def _branch(
    model: ir.Model, layer: Layer, dtype: ir.DataType, ranges: Mapping[str, float], known: Known
) -> tuple[GraphProto, dict[str, ir.TensorProtocol]]:
    """One layer in a type, as the graph of its own that a branch is, and its weights."""
    alone = emulate(lower(_alone(model, layer), {layer.name: dtype}, ranges, known))
    # A branch sees the names of the whole graph, so that its own must differ from them, and from the other branch's.
    for value in [value for node in alone.graph for value in node.outputs]:
        value.name = f"{layer.node.outputs[0].name}/{dtype.name}/{value.name}"
    proto, weights = without_weights(alone)
    return proto.graph, weights


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
        name="layer",
    )
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _choice(result: str, place: int, usual: GraphProto, other: GraphProto) -> list[NodeProto]:
    """Nodes that run ``other`` if its place is chosen, and else ``usual``; both read the whole graph's values."""
    for branch in (usual, other):
        del branch.input[:], branch.value_info[:], branch.initializer[:]
    number, chosen = f"{result}/place", f"{result}/chosen"
    return [
        helper.make_node("Constant", [], [number], value_int=place),
        helper.make_node("Gather", [CHOSEN, number], [chosen]),
        helper.make_node("If", [chosen], [result], then_branch=other, else_branch=usual),
    ]
