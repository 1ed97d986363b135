"""The layers of a graph whose precision can be chosen: products with a weight, attention, and tables of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from fgclip_rt.arrays import FloatArray

from ..graphs.attention import DOMAIN, NAME

Kind: TypeAlias = Literal["linear", "attention", "table"]

_WEIGHT = ".weight"
#: Marks a float32 weight that :mod:`fgclip_rt.export.precision.smoothing` has rescaled.
SMOOTHED = ".smoothed"


@dataclass(frozen=True)
class Layer:
    """One layer, found by :func:`find_layers`.

    Attributes:
        name: name of its module; the same in every graph that holds the layer.
        kind: a product with a weight [in, out], attention, or a table [rows, D].
        node: the node that computes it.
    """

    name: str
    kind: Kind
    node: ir.Node

    @property
    def activations(self) -> tuple[ir.Value, ...]:
        """The inputs that are not weights: queries, keys and values of attention, none of a table."""
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
    return [
        layer
        for layer in candidates
        if layer is not None and not any(layer.name == name or layer.name.startswith(f"{name}.") for name in sensitive)
    ]


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


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 2


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name
