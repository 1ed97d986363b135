"""Products of 8-bit numbers in engines: the same integers, written in float16 and scaled afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto

from exporting import linear_model, run
from fgclip_rt.engines.network import parser_input
from fgclip_rt.engines.products import largest_exponent, narrow_products
from fgclip_rt.export.precision.emulation import emulate
from fgclip_rt.export.precision.lower import lower

Array = np.ndarray[Any, Any]

TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
FORMATS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
LARGEST = {"int8": 128, "fp8": 448}


def narrowed(model: ir.Model) -> ModelProto:
    proto = ir.to_proto(model)
    narrow_products(proto.graph)
    return proto


def operators(proto: ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def layer(precision: str, weight: Array, largest: float) -> ir.Model:
    return lower(linear_model(weight), {"layer": TYPES[precision]}, {"layer": largest})


@pytest.mark.parametrize("precision", TYPES)
def test_a_product_has_16_bits_and_its_scales_have_32(precision: str) -> None:
    proto = narrowed(layer(precision, np.ones((8, 3)), 1.0))
    onnx.checker.check_model(proto, full_check=True)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
    }
    (product,) = [node for node in proto.graph.node if node.op_type == "MatMul"]
    assert {types[name] for name in (*product.input, *product.output)} == {TensorProto.FLOAT16}
    assert {types[node.output[0]] for node in proto.graph.node if node.op_type == "Mul"} == {TensorProto.FLOAT}
    assert sorted(operators(proto)) == sorted(
        ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Cast", "Mul", "Mul", "Mul", "Identity"]
    )


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("width", [1, 3, 768, 3072, 4304])
def test_no_sum_of_the_width_overflows_and_no_larger_power_would_do(precision: str, width: int) -> None:
    most = LARGEST[precision] ** 2 * width
    exponent = largest_exponent(FORMATS[precision], width)
    assert most * 2.0**exponent <= 65504 < most * 2.0 ** (exponent + 1)


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("width", [1, 16, 768, 4304])
def test_either_input_of_a_product_is_exact_in_float16(precision: str, width: int) -> None:
    """Every number of 8 bits, times its power of two."""
    dtype = TYPES[precision].numpy()
    numbers = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    exponent = largest_exponent(FORMATS[precision], width)
    for part in (exponent // 2, exponent - exponent // 2):
        scaled = numbers * 2.0**part
        np.testing.assert_array_equal(scaled.astype(np.float16).astype(np.float64), scaled)


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("largest", [1e-3, 4.0, 3e4])
def test_results_are_those_of_the_bundles_graph_but_for_one_rounding(precision: str, largest: float) -> None:
    """Whatever the scales are; those of some channels are a millionth of others'."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(768, 40)) * 10.0 ** random.integers(-6, 1, 40)
    x = (largest * random.uniform(-1, 1, size=(50, 768))).astype(np.float32)
    model = layer(precision, weight, largest)
    exact, actual = session(ir.to_proto(model), precision).run(None, {"x": x})[0], run(emulate(model), x)
    # Half a unit in the last of 11 digits, and what another order of summation does to sums that nearly cancel.
    assert (np.abs(actual - exact) <= 2.0**-11 * 1.001 * np.abs(exact) + 1e-6 * np.abs(exact).max(axis=0)).all()
    assert (actual != exact).mean() > 0.5


def session(proto: ModelProto, precision: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if precision == "fp8":  # onnxruntime would fuse the pairs, and its product of integers refuses float8
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("precision", TYPES)
def test_the_largest_sums_are_finite(precision: str) -> None:
    """With scales of channels in float16, TensorRT-RTX writes the bare sums, here far past 65,504."""
    x = np.full((1, 4096), 1.0, np.float32)
    model = layer(precision, np.full((4096, 2), [1.0, -1.0]), 1.0)
    np.testing.assert_allclose(run(emulate(model), x), [[4096, -4096]], rtol=2e-3)


def test_a_float32_graph_and_other_products_stay() -> None:
    float32 = linear_model(np.ones((8, 3)))
    for model in (float32, lower(float32, {"layer": ir.DataType.FLOAT16}, {})):
        assert narrowed(model) == ir.to_proto(model)


def test_the_bundles_own_graphs_stay_as_they_are(pocket_path: Path) -> None:
    """The CPU's INT8 has scales in float32, which onnxruntime needs to multiply integers."""
    path = pocket_path / "vision.int8.onnx"
    own = onnx.load(path, load_external_data=False)
    scales = {tensor.name: tensor.data_type for tensor in own.graph.initializer}
    pairs = [node for node in own.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {scales[node.input[1]] for node in pairs} == {TensorProto.FLOAT}
    parsed = onnx.load_model_from_string(parser_input(path, {"patches": 256}))
    count = operators(own).count("QuantizeLinear")
    assert operators(parsed).count("QuantizeLinear") == count > 0
    assert operators(parsed).count("DequantizeLinear") == 2 * count
    types = {tensor.name: tensor.data_type for tensor in parsed.graph.initializer}
    read = {node.input[1] for node in parsed.graph.node if node.op_type == "DequantizeLinear"}
    assert {types[name] for name in read} == {TensorProto.FLOAT16}
