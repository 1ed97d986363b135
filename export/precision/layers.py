"""The layers of a graph whose precision can be chosen: products with a weight, attention, and tables of vectors.

The sums of the residual stream have a type of their own, which is chosen by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from fgclip_rt.arrays import FloatArray

from ..graphs.attention import DOMAIN, NAME

Kind: TypeAlias = Literal["linear", "attention", "table", "residual"]

_WEIGHT = ".weight"
#: Marks a float32 weight that :mod:`fgclip_rt.export.precision.smoothing` has rescaled.
SMOOTHED = ".smoothed"


@dataclass(frozen=True)
class Layer:
    """One layer, found by :func:`find_layers` or :func:`find_residuals`.

    Attributes:
        name: name of its module; the same in every graph that holds the layer. A sum has the name of the norm that
            reads the residual stream before it.
        kind: a product with a weight [in, out], attention, a table [rows, D], or a sum with the residual stream.
        node: the node that computes it.
    """

    name: str
    kind: Kind
    node: ir.Node

    @property
    def activations(self) -> tuple[ir.Value, ...]:
        """The inputs that are not weights: queries, keys and values of attention, none of a table, both of a sum."""
        if self.kind == "table":
            return ()
        return tuple(value for value in self.node.inputs if value is not None and value.const_value is None)

    @property
    def weight(self) -> ir.Value:
        """The initializer of a linear layer or table."""
        value = self.node.inputs[0 if self.kind == "table" else 1]
        assert value is not None
        return value


def find_layers(model: ir.Model, sensitive: Sequence[str] = ()) -> list[Layer]:
    """The layers of a float32 graph, in its order.

    Args:
        model: a traced graph.
        sensitive: names of layers, or of modules that hold layers, to leave out.
    """
    candidates = (_layer(node) for node in model.graph)
    return [layer for layer in candidates if layer is not None and not _is_part(layer.name, sensitive)]


def find_residuals(model: ir.Model, sensitive: Sequence[str] = ()) -> list[Layer]:
    """The sums by which blocks add to the residual stream, in a graph's order.

    Args:
        model: a traced graph, in float32.
        sensitive: as for :func:`find_layers`.
    """
    found = (_residual(node) for node in model.graph)
    return [layer for layer in found if layer is not None and not _is_part(layer.name, sensitive)]


def block_of(residual: Layer) -> str:
    """The name of the block that a sum belongs to."""
    return residual.name.rpartition(".")[0]


def array(value: ir.Value) -> FloatArray:
    """The numbers of an initializer."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def _layer(node: ir.Node) -> Layer | None:
    if (node.domain, node.op_type) == (DOMAIN, NAME):
        assert node.name is not None
        return Layer(node.name, "attention", node)
    if node.op_type == "MatMul" and _is_matrix(node.inputs[1]):
        name = _name(node.inputs[1]).removesuffix(SMOOTHED)
        # A product with another matrix is no layer of weights: it interpolates a table of positions, or scores keys.
        return Layer(name.removesuffix(_WEIGHT), "linear", node) if name.endswith(_WEIGHT) else None
    if node.op_type == "Gather" and _is_matrix(node.inputs[0]):
        return Layer(_name(node.inputs[0]), "table", node)
    return None


def _residual(node: ir.Node) -> Layer | None:
    """A sum with a value that a norm reads too: pre-norm blocks add to the value that they normalise.

    A sum that the graph returns is a result, in float32.
    """
    if node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    norms = [
        user.name
        for value in node.inputs
        if value is not None and value.const_value is None
        for user, _ in value.uses()
        if user.op_type == "LayerNormalization"
    ]
    return Layer(str(norms[0]), "residual", node) if norms else None


def _is_part(name: str, of: Sequence[str]) -> bool:
    return any(name == whole or name.startswith(f"{whole}.") for whole in of)


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 2


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name
