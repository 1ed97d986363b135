"""A float32 graph in lower precision: explicit types and Q/DQ, layer by layer, and nothing else.

Everything between the layers stays in float32: biases, LayerNorm, GELU, positions, pooling, normalisation, and the
residual stream, except in blocks whose sums have another type. So a 16-bit layer stands between two casts, and an 8-bit
layer reads its input and its weight through QuantizeLinear and DequantizeLinear. Between two float16 layers there are
no casts, and biases, LayerNorm and GELU are in float16 (:mod:`.joining`). Such a file means the same to every runtime
that reads types. A strongly typed TensorRT network does, so it needs no builder flag.

8-bit quantisation is symmetric, with one scale for a layer's input and one for each output channel of its weight:
TensorRT takes no other. Weights of int8 have 7 bits, because CPUs without VNNI add two products of 8 by 8 bits in 16
and saturate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fgclip_rt.arrays import Array, FloatArray

from .joining import HALF, join
from .layers import Layer, array, find_layers, find_residuals

FLOAT = ir.DataType.FLOAT

#: Rounded initializers by name, which graphs with the same weights and types share.
Known: TypeAlias = "dict[str, ir.Tensor[Any]]"

#: The largest magnitude of a quantised input and of a quantised weight.
_LARGEST = {ir.DataType.INT8: (127, 64), ir.DataType.FLOAT8E4M3FN: (448, 448)}
QUANTISED = tuple(_LARGEST)

_SUFFIX = {
    ir.DataType.FLOAT16: ".fp16",
    ir.DataType.BFLOAT16: ".bf16",
    ir.DataType.INT8: ".int8",
    ir.DataType.FLOAT8E4M3FN: ".fp8",
}


def lower(
    model: ir.Model,
    types: Mapping[str, ir.DataType],
    ranges: Mapping[str, float],
    known: Known | None = None,
) -> ir.Model:
    """A copy of a float32 graph whose layers have other types.

    Args:
        model: the graph; its initializers are shared with the copy.
        types: type of each layer and of each sum of the residual stream, by its name. One that is not named stays in
            float32.
        ranges: largest magnitude of the input of each quantised layer, by its name; values beyond it saturate.
        known: initializers that other graphs have already. The graph takes them instead of rounding its weights anew,
            and adds its own.

    Returns:
        The copy. Rounded weights are initializers with a suffix, ``NAME.fp16``.
    """
    rewrite = _Rewrite(model.clone(), ranges, {} if known is None else known)
    places = {node: place for place, node in enumerate(rewrite.model.graph)}
    layers = [*find_layers(rewrite.model), *find_residuals(rewrite.model)]
    # In the graph's order, because a cast stands before the first layer that reads it.
    for layer in sorted(layers, key=lambda layer: places[layer.node]):
        dtype = types.get(layer.name, FLOAT)
        if dtype in QUANTISED:
            rewrite.quantise(layer, dtype)
        elif dtype != FLOAT:
            rewrite.narrow(layer, dtype)
    if joins(types):
        rewrite.join()
    RemoveUnusedNodesPass()(rewrite.model)
    return rewrite.model


def joins(types: Mapping[str, ir.DataType]) -> bool:
    """Whether :func:`lower` leaves no cast between float16 layers, so that the types of neighbours count.

    Beside 8 bits it leaves them: few layers are float16 there, and graphs on a CPU share the weights that they pack,
    except those of float16 norms.
    """
    return not any(dtype in QUANTISED for dtype in types.values())


def input_scale(dtype: ir.DataType, largest: float) -> np.float32:
    """The step of a quantised input whose largest magnitude is given."""
    return np.float32(_steps(np.asarray(largest), _LARGEST[dtype][0]))


def quantised_weight(weight: FloatArray, dtype: ir.DataType) -> tuple[Array, FloatArray]:
    """A weight [in, out] in 8 bits, and the step of each output channel, float32 [out]."""
    scale = _steps(np.abs(weight).max(axis=0), _LARGEST[dtype][1])
    return rounded(weight / scale, dtype), scale


def rounded(values: FloatArray, dtype: ir.DataType) -> Array:
    """Values rounded to the nearest of another type. Values beyond the range of int8 saturate, as in QuantizeLinear."""
    if dtype == ir.DataType.INT8:
        return np.clip(np.rint(values), -128, 127).astype(np.int8)
    with np.errstate(over="ignore"):  # a 16-bit type overflows to infinity
        return values.astype(dtype.numpy())


def _steps(largest: Array, levels: int) -> FloatArray:
    """Positive steps, for zeros too: an input may be zero throughout calibration, and a channel may be unused."""
    return np.maximum(np.where(largest > 0, largest, 1) / levels, np.finfo(np.float32).tiny).astype(np.float32)


class _Rewrite:
    """Edits of one graph."""

    def __init__(self, model: ir.Model, ranges: Mapping[str, float], known: Known) -> None:
        self.model = model
        self._ranges = ranges
        self._known = known
        # Each value is cast once to each type, and a value that was just cast up is not rounded again.
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        # The float16 values that were cast to float32, by the result.
        self._raised: dict[ir.Value, ir.Value] = {}

    def narrow(self, layer: Layer, dtype: ir.DataType) -> None:
        """Compute a layer or a sum in a 16-bit type, between casts."""
        node = layer.node
        if layer.kind in ("linear", "table"):
            weight = self._initializer(layer.weight.name, dtype, lambda: rounded(array(layer.weight), dtype))
            node.replace_input_with(0 if layer.kind == "table" else 1, weight)
        for index, value in enumerate(node.inputs):
            if value in layer.activations:
                node.replace_input_with(index, self._cast(value, dtype, node))
        (output,) = node.outputs
        up = ir.node("Cast", [output], attributes={"to": FLOAT})
        ir.convenience.replace_all_uses_with(output, up.outputs[0])
        up.replace_input_with(0, output)
        self.model.graph.insert_after(node, up)
        self._casts[up.outputs[0], dtype] = output
        if dtype == HALF:
            self._raised[up.outputs[0]] = output

    def quantise(self, layer: Layer, dtype: ir.DataType) -> None:
        """Have a linear layer read its input and weight through QuantizeLinear and DequantizeLinear."""
        node = layer.node
        quantised = cache(lambda: quantised_weight(array(layer.weight), dtype))
        zero = np.zeros((), dtype.numpy())
        # A pair of its own for each layer: onnxruntime fuses no quantisation that several layers share.
        step = self._initializer(
            layer.name, dtype, lambda: np.asarray(input_scale(dtype, self._ranges[layer.name])), ".input_scale"
        )
        origin = self._initializer(layer.name, dtype, lambda: zero, ".input_zero")
        quantise = ir.node("QuantizeLinear", [node.inputs[0], step, origin])
        dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], step, origin])
        name = layer.weight.name
        weights = ir.node(
            "DequantizeLinear",
            [
                self._initializer(name, dtype, lambda: quantised()[0]),
                self._initializer(name, dtype, lambda: quantised()[1], "_scale"),
                self._initializer(name, dtype, lambda: np.broadcast_to(zero, quantised()[1].shape), "_zero"),
            ],
            attributes={"axis": 1},
        )
        self.model.graph.insert_before(node, [quantise, dequantise, weights])
        node.replace_input_with(0, dequantise.outputs[0])
        node.replace_input_with(1, weights.outputs[0])

    def join(self) -> None:
        """Leave no cast between float16 layers."""
        join(
            self.model.graph,
            self._raised,
            lambda value: self._initializer(value.name, HALF, lambda: rounded(array(value), HALF)),
        )

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        if (value, dtype) not in self._casts:
            cast = ir.node("Cast", [value], attributes={"to": dtype})
            self.model.graph.insert_before(before, cast)
            self._casts[value, dtype] = cast.outputs[0]
        return self._casts[value, dtype]

    def _initializer(
        self, name: str | None, dtype: ir.DataType, values: Callable[[], Array], kind: str = ""
    ) -> ir.Value:
        assert name is not None
        name = f"{name}{_SUFFIX[dtype]}{kind}"
        if name not in self._known:
            self._known[name] = ir.Tensor(np.asarray(values(), order="C"), name=name)
        tensor, initializers = self._known[name], self.model.graph.initializers
        if name not in initializers:
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            self.model.graph.register_initializer(value)
        return initializers[name]
