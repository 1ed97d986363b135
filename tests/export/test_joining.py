"""Operators between float16 layers: those that are in float16 with them, and those that stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporting import constant, float_value, hand_made, run
from fgclip_rt.export.precision.emulation import emulate
from fgclip_rt.export.precision.lower import lower

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16

#: Makes the nodes between two layers from the first one's result; the last node's result is what the second one reads.
Between = Callable[[ir.Value], Sequence[ir.Node]]


def layer(name: str, value: ir.Value) -> ir.Node:
    return ir.node("MatMul", [value, constant(f"{name}.weight", np.eye(4, dtype=np.float32) / 3)])


def sandwich(between: Between, returned: int | None = None) -> ir.Model:
    """Two layers with nodes between them; the result of one of the nodes can be a second output."""
    x, y = float_value("x", 2, 4), float_value("y", 2, 4)
    first = layer("first", x)
    nodes = between(first.outputs[0])
    second = layer("second", nodes[-1].outputs[0])
    outputs, more = [y], []
    if returned is not None:
        outputs.append(float_value("z", 2, 4))
        more = [ir.node("Identity", nodes[returned].outputs, outputs=outputs[1:])]
    return hand_made([x], outputs, [first, *nodes, second, *more, ir.node("Identity", second.outputs, outputs=[y])])


def operators(model: ir.Model, dtype: ir.DataType) -> list[str]:
    """The operators that give a type, in a graph's order."""
    graph = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return [node.op_type for node in graph.node if types[node.output[0]] == dtype]


def narrowed(model: ir.Model, dtype: ir.DataType = FLOAT16) -> ir.Model:
    lowered: ir.Model = lower(model, {"first": dtype, "second": dtype}, {})
    return lowered


def activated(value: ir.Value) -> list[ir.Node]:
    biased = ir.node("Add", [value, constant("first.bias", np.full(4, 0.1, np.float32))])
    gelu = ir.node("Gelu", biased.outputs)
    scale, shift = constant("norm.weight", np.full(4, 1.1, np.float32)), constant("norm.bias", np.ones(4, np.float32))
    return [biased, gelu, ir.node("LayerNormalization", [gelu.outputs[0], scale, shift])]


def quick_gelu(value: ir.Value) -> list[ir.Node]:
    scaled = ir.node("Mul", [value, constant("factor", np.float32(1.702))])
    sigmoid = ir.node("Sigmoid", scaled.outputs)
    return [scaled, sigmoid, ir.node("Mul", [value, sigmoid.outputs[0]])]


def gated(value: ir.Value) -> list[ir.Node]:
    gelu = ir.node("Gelu", [value])
    return [gelu, ir.node("Mul", [value, gelu.outputs[0]])]


def widened(value: ir.Value) -> list[ir.Node]:
    """As attention's heads grow: ones in the shape of the value, which integers compute."""
    shape = ir.node("Shape", [value], attributes={"end": 1})
    sizes = ir.node("Concat", [shape.outputs[0], constant("two", np.array([2], np.int64))], attributes={"axis": 0})
    ones = ir.node("Expand", [constant("one", np.float32(1)), sizes.outputs[0]])
    wide = ir.node("Concat", [value, ones.outputs[0]], attributes={"axis": 1})
    steps = [constant(name, np.array(at, np.int64)) for name, at in (("start", [0]), ("end", [4]), ("axis", [1]))]
    return [shape, sizes, ones, wide, ir.node("Slice", [wide.outputs[0], *steps])]


def random_input() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


@pytest.mark.parametrize("between", [activated, quick_gelu, widened])
def test_all_between_two_float16_layers_is_float16(between: Between) -> None:
    original = sandwich(between)
    model = narrowed(original)
    wanted = [node.op_type for node in between(float_value("x", 2, 4)) if node.op_type != "Shape"]
    joined = operators(model, FLOAT16)
    assert joined == ["Cast", "MatMul", *wanted[between is widened :], "MatMul"]
    assert operators(model, FLOAT) == ["Cast", "Identity"]
    expected = run(original, random_input())
    np.testing.assert_allclose(run(emulate(model), random_input()), expected, rtol=2e-2, atol=1e-3)


def test_a_product_of_two_results_stays_in_float32_because_it_may_leave_the_range() -> None:
    assert "Mul" in operators(narrowed(sandwich(gated)), FLOAT)


def test_bfloat16_has_too_few_digits() -> None:
    model = narrowed(sandwich(activated), BFLOAT16)
    assert operators(model, FLOAT)[:4] == ["Cast", "Add", "Gelu", "LayerNormalization"]


@pytest.mark.parametrize("returned", [0, 1, 2])
def test_a_result_that_the_graph_returns_keeps_all_around_it_in_float32(returned: int) -> None:
    model = narrowed(sandwich(activated, returned))
    assert operators(model, FLOAT)[:4] == ["Cast", "Add", "Gelu", "LayerNormalization"]


def test_a_layer_that_stays_in_float32_keeps_its_neighbours_there() -> None:
    for types in ({"first": FLOAT16}, {"second": FLOAT16}):
        assert operators(lower(sandwich(activated), types, {}), FLOAT16) == ["Cast", "MatMul"]


def test_a_cast_goes_before_what_only_moves_numbers() -> None:
    """A value in float32 is joined to the results of a layer: it is cast once, however many nodes read it."""
    x, more, y = float_value("x", 2, 4), float_value("more", 2, 2), float_value("y", 4, 4)
    first = layer("first", x)
    doubled = ir.node("Add", [more, more])
    joined = [
        ir.node("Concat", [first.outputs[0], doubled.outputs[0]], attributes={"axis": 1}, name=name) for name in "ab"
    ]
    weight = constant("second.weight", np.ones((6, 4), np.float32))
    products = [ir.node("MatMul", [node.outputs[0], weight]) for node in joined]
    both = ir.node("Concat", [product.outputs[0] for product in products], attributes={"axis": 0})
    nodes = [first, doubled, *joined, *products, both, ir.node("Identity", both.outputs, outputs=[y])]
    model = narrowed(hand_made([x, more], [y], nodes))
    halves = operators(model, FLOAT16)
    assert halves.count("Cast") == 2
    assert halves.count("Concat") == 2
    assert "Add" in operators(model, FLOAT)


def test_a_graph_with_layers_in_8_bits_is_left_as_it_is() -> None:
    types = {"first": FLOAT16, "second": FLOAT16, "third": ir.DataType.INT8}
    model = sandwich(activated)
    assert operators(lower(model, types, {"third": 1.0}), FLOAT)[:4] == ["Cast", "Add", "Gelu", "LayerNormalization"]
