"""Lowering: the layers of a graph, the nodes that lowering writes, and the emulated rounding of 16 bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from exporting import SENSITIVE, constant, float_value, hand_made, linear_model, run
from fgclip_rt.bundle import Bundle
from fgclip_rt.export.bundle.weights import WeightFiles
from fgclip_rt.export.graphs.attention import (
    HIDDEN,
    KEY_BIASED,
    add_definition,
    expand_key_biases,
    multi_head_attention,
)
from fgclip_rt.export.precision.emulation import EXACT, emulate
from fgclip_rt.export.precision.graph_backend import GraphBackend
from fgclip_rt.export.precision.layers import array, find_layers
from fgclip_rt.export.precision.lower import Known, input_scale, lower, quantised_weight
from fgclip_rt.export.precision.precisions import PRECISIONS
from fgclip_rt.export.precision.smoothing import find_sites, smooth
from helpers import graph_inputs

FLOAT, FLOAT16, INT8 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8
FLOAT8 = ir.DataType.FLOAT8E4M3FN
GRAPHS = ("vision", "dense", "text")

FloatArray = NDArray[np.float32]


def block(name: str) -> list[tuple[str, str]]:
    """Names and kinds of the layers of one transformer block."""
    attention = [(f"{name}.attention.{part}", "linear") for part in ("q", "k", "v")]
    out = [(f"{name}.attention", "attention"), (f"{name}.attention.out", "linear")]
    return [*attention, *out, (f"{name}.mlp.fc1", "linear"), (f"{name}.mlp.fc2", "linear")]


VISION = [("vision.patch_embedding", "linear"), *block("vision.blocks.0"), *block("vision.blocks.1")]
POOLING = [(f"pooling.{name}", "linear") for name in ("out", "mlp.fc1", "mlp.fc2")]
LAYERS = {
    "vision": [*VISION, *POOLING],
    "dense": [*VISION, *POOLING, *block("dense")],
    "text": [("text.tokens", "table"), *block("text.blocks.0"), *block("text.blocks.1"), ("text_heads", "linear")],
    "region": [],
}


def types_of(model: ir.Model, precision: str, sensitive: Sequence[str]) -> dict[str, ir.DataType]:
    return {layer.name: PRECISIONS[precision].type_of(layer) for layer in find_layers(model, sensitive)}


def lowered(model: ir.Model, precision: str, sensitive: Sequence[str] = ()) -> ir.Model:
    """A model in a precision, with ranges that suit the golden checkpoint."""
    types = types_of(model, precision, sensitive)
    return lower(model, types, dict.fromkeys(types, 4.0) | {"vision.patch_embedding": 128.0})


def initializers(model: ir.Model) -> dict[str, NDArray[Any]]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def written(model: ir.Model, folder: Path) -> Path:
    WeightFiles(folder).write({"graph.onnx": model.clone()}, "weights.safetensors")
    return folder / "graph.onnx"


def optimized(model: ir.Model, folder: Path) -> Counter[str]:
    """The operators that onnxruntime runs for a model."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(written(model, folder)), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node)


def node_types(model: ir.Model) -> list[tuple[onnx.NodeProto, set[int], set[int]]]:
    """Every node with the types of its inputs and outputs, by strict inference; attention is inlined."""
    inlined = onnx.inliner.inline_local_functions(ir.to_proto(model))
    graph = onnx.shape_inference.infer_shapes(inlined, strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return [(node, {types[i] for i in node.input if i}, {types[o] for o in node.output}) for node in graph.node]


# Layers


@pytest.mark.parametrize("graph", LAYERS)
def test_layers_are_products_with_weights_and_attention_and_the_table_of_tokens(
    masked_graphs: Mapping[str, ir.Model], graph: str
) -> None:
    layers = find_layers(masked_graphs[graph])
    assert [(layer.name, layer.kind) for layer in layers] != [] or graph == "region"
    assert sorted((layer.name, layer.kind) for layer in layers) == sorted(LAYERS[graph])
    for layer in layers:
        assert len(layer.activations) == {"linear": 1, "attention": 3, "table": 0}[layer.kind]
        if layer.kind != "attention":
            assert str(layer.weight.name) == (layer.name if layer.kind == "table" else f"{layer.name}.weight")


def test_a_sensitive_name_stands_for_a_layer_or_its_parts_and_for_no_longer_word() -> None:
    names = ("pooling", "pooling.out", "pooling.mlp.fc1", "poolingx", "poolingx.out", "vision.pooling.out")
    x = float_value("x", "n", 3)
    nodes = [ir.node("MatMul", [x, constant(f"{name}.weight", np.eye(3, dtype=np.float32))]) for name in names]
    model = hand_made([x], [node.outputs[0] for node in nodes], nodes)
    assert [layer.name for layer in find_layers(model)] == list(names)
    left = [layer.name for layer in find_layers(model, ["pooling", "vision.pool"])]
    assert left == ["poolingx", "poolingx.out", "vision.pooling.out"]


# 16 bits


@pytest.mark.parametrize("graph", GRAPHS)
def test_in_fp16_the_products_of_layers_are_float16_and_what_only_they_read_too(
    masked_graphs: Mapping[str, ir.Model], graph: str
) -> None:
    layers = find_layers(masked_graphs[graph], SENSITIVE[graph])
    kinds = Counter(layer.kind for layer in layers)
    nodes = node_types(lowered(masked_graphs[graph], "fp16", SENSITIVE[graph]))
    narrow = Counter(node.op_type for node, _, outputs in nodes if FLOAT16 in outputs)
    assert narrow["MatMul"] == kinds["linear"] + 2 * kinds["attention"]
    assert narrow["Gather"] == kinds["table"]
    assert narrow["Gelu"] == sum(layer.name.endswith("fc1") for layer in layers) > 0
    # The residual stream is in float32 here, and so is what reads it.
    moved = {"Cast", "CastLike", "Concat", "Expand", "Reshape", "Transpose"}
    assert set(narrow) - moved == {"MatMul", "Add", "Gelu"} | ({"Gather"} if kinds["table"] else set())

    for node, inputs, outputs in nodes:
        if node.op_type == "MatMul":
            narrow_weight = any(name.endswith(".weight.fp16") for name in node.input)
            wide_weight = any(name.endswith((".positions", ".weight", ".keys", ".values")) for name in node.input)
            assert not (narrow_weight and FLOAT in inputs | outputs)
            assert not (wide_weight and FLOAT16 in inputs | outputs)
        if node.op_type not in {"Cast", "CastLike"}:
            assert not {FLOAT, FLOAT16} <= inputs | outputs, node.op_type
    wide = Counter(node.op_type for node, inputs, _ in nodes if FLOAT in inputs)
    assert wide["Softmax"] == kinds["attention"] + (graph != "text")
    assert wide["LayerNormalization"] == sum(node.op_type == "LayerNormalization" for node, _, _ in nodes) > 0
    assert wide["ReduceL2"] == 1


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_each_value_is_cast_once_to_each_type(
    masked_graphs: Mapping[str, ir.Model], graph: str, precision: str
) -> None:
    model = lowered(masked_graphs[graph], precision, SENSITIVE[graph])
    casts = [(node.inputs[0], node.attributes["to"].as_int()) for node in model.graph if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    for value, _ in casts:
        assert value is not None
        producer = value.producer()
        assert producer is None or producer.op_type != "Cast", value


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_node_of_a_lowered_graph_is_read(
    masked_graphs: Mapping[str, ir.Model], graph: str, precision: str
) -> None:
    model = lowered(masked_graphs[graph], precision, SENSITIVE[graph])
    idle = [node for node in model.graph if not any(o.uses() or o.is_graph_output() for o in node.outputs)]
    assert [(node.op_type, str(node.inputs[0])) for node in idle] == []


@pytest.mark.parametrize("graph", GRAPHS)
def test_in_fp16_the_out_projection_reads_what_attention_gives_as_it_is(
    masked_graphs: Mapping[str, ir.Model], graph: str
) -> None:
    model = lowered(masked_graphs[graph], "fp16", SENSITIVE[graph])
    attention = [node for node in model.graph if node.op_type == "MultiHeadAttention"]
    assert len(attention) == sum(kind == "attention" for _, kind in LAYERS[graph])
    for node in attention:
        readers = {user.inputs[1].name for user, _ in node.outputs[0].uses() if user.op_type == "MatMul"}
        assert readers == {f"{node.name}.out.weight.fp16"}


def test_a_layer_moved_back_is_between_casts_of_its_neighbours(masked_graphs: Mapping[str, ir.Model]) -> None:
    types = types_of(masked_graphs["vision"], "fp16", ()) | {"vision.blocks.0.mlp.fc1": FLOAT}
    nodes = node_types(lower(masked_graphs["vision"], types, {}))
    (product,) = [outputs for node, _, outputs in nodes if "vision.blocks.0.mlp.fc1.weight" in node.input]
    assert product == {FLOAT}
    (product,) = [outputs for node, _, outputs in nodes if "vision.blocks.0.mlp.fc2.weight.fp16" in node.input]
    assert product == {FLOAT16}


# 16 and 8 bits


@pytest.mark.parametrize("dtype", [FLOAT16, INT8], ids=["fp16", "int8"])
def test_graphs_share_the_weights_that_one_of_them_rounded(
    masked_graphs: Mapping[str, ir.Model], dtype: ir.DataType
) -> None:
    graphs = [masked_graphs[name] for name in ("vision", "dense")]
    layers = {layer.name: layer for graph in graphs for layer in find_layers(graph)}
    types = {name: dtype if layer.kind == "linear" else FLOAT16 for name, layer in layers.items()}
    ranges = dict.fromkeys(layers, 3.0)
    known: Known = {}
    together = [lower(graph, types, ranges, known).graph.initializers for graph in graphs]
    for initializers, graph in zip(together, graphs, strict=True):
        alone = lower(graph, types, ranges).graph.initializers
        assert initializers.keys() == alone.keys()
        for name, value in initializers.items():
            np.testing.assert_array_equal(array(value), array(alone[name]), err_msg=name)
            if name in known:
                assert value.const_value is known[name]
    assert len(together[0].keys() & together[1].keys() & known.keys()) > 10


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_lowering_leaves_the_original_as_it_was(
    masked_graphs: Mapping[str, ir.Model], graph: str, precision: str
) -> None:
    before = ir.to_proto(masked_graphs[graph]).SerializeToString(deterministic=True)
    other = lowered(masked_graphs[graph], precision, SENSITIVE[graph])
    emulate(other)
    assert ir.to_proto(masked_graphs[graph]).SerializeToString(deterministic=True) == before
    assert ir.to_proto(other).SerializeToString(deterministic=True) != before


@pytest.mark.parametrize("graph", LAYERS)
def test_a_graph_lowered_with_no_types_is_the_original(masked_graphs: Mapping[str, ir.Model], graph: str) -> None:
    original = ir.to_proto(masked_graphs[graph])
    for types in ({}, types_of(masked_graphs[graph], "fp32", ())):
        assert ir.to_proto(lower(masked_graphs[graph], types, {})) == original


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_lowered_files_are_valid_and_take_and_give_the_same_types(
    masked_graphs: Mapping[str, ir.Model], tmp_path: Path, graph: str, precision: str
) -> None:
    path = written(lowered(masked_graphs[graph], precision, SENSITIVE[graph]), tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    actual, expected = onnx.load(path, load_external_data=False), ir.to_proto(masked_graphs[graph])
    assert actual.graph.input == expected.graph.input
    assert actual.graph.output == expected.graph.output


@pytest.mark.parametrize("graph", GRAPHS)
def test_an_fp16_graph_holds_its_rounded_weights_and_no_others(
    masked_graphs: Mapping[str, ir.Model], graph: str
) -> None:
    before = initializers(masked_graphs[graph])
    after = initializers(lowered(masked_graphs[graph], "fp16", SENSITIVE[graph]))
    weights = {
        layer.weight.name for layer in find_layers(masked_graphs[graph], SENSITIVE[graph]) if layer.kind != "attention"
    }
    narrow = {name.removesuffix(".fp16") for name in after if name.endswith(".fp16")}
    assert weights <= narrow
    assert narrow - weights == {name for name in narrow if name.endswith(".bias")} | {"attention.1.0"} & narrow
    assert {name for name in after if not name.endswith(".fp16")} <= set(before) - weights
    for name in narrow:
        np.testing.assert_array_equal(after[f"{name}.fp16"], before[str(name)].astype(np.float16), strict=True)


def test_a_weight_that_something_else_reads_in_float32_stays() -> None:
    weight = constant("layer.weight", np.eye(3, dtype=np.float32))
    x, y = float_value("x", "n", 3), float_value("y", "n", 3)
    product = ir.node("MatMul", [x, weight])
    wide = ir.node("MatMul", [x, constant("other.weight", np.eye(3, dtype=np.float32))])
    total = ir.node("ReduceSum", [weight, constant("axis", np.array([0], np.int64))])
    first = ir.node("Add", [product.outputs[0], wide.outputs[0]])
    model = hand_made(
        [x], [y], [product, wide, total, first, ir.node("Add", [first.outputs[0], total.outputs[0]], outputs=[y])]
    )
    half = lower(model, {"layer": FLOAT16}, {})
    assert set(half.graph.initializers) == {"layer.weight", "layer.weight.fp16", "other.weight", "axis"}
    np.testing.assert_array_equal(run(half, np.ones((1, 3), np.float32)), np.full((1, 3), 3, np.float32))


# 8 bits


@pytest.mark.parametrize("graph", GRAPHS)
def test_in_int8_each_linear_layer_and_nothing_else_reads_through_a_quantisation_of_its_own(
    masked_graphs: Mapping[str, ir.Model], graph: str
) -> None:
    layers = [layer.name for layer in find_layers(masked_graphs[graph], SENSITIVE[graph]) if layer.kind == "linear"]
    ranges = {name: 1.0 + index for index, name in enumerate(layers)}
    model = lower(masked_graphs[graph], types_of(masked_graphs[graph], "int8", SENSITIVE[graph]), ranges)
    numbers, originally = initializers(model), initializers(masked_graphs[graph])
    seen = set()
    for weights in model.graph:
        if weights.op_type != "DequantizeLinear" or weights.inputs[0].const_value is None:
            continue
        weight, scale, zero = (str(value.name) for value in weights.inputs)
        name = weight.removesuffix(".weight.int8")
        seen.add(name)
        ((product, index),) = weights.outputs[0].uses()
        assert (product.op_type, index) == ("MatMul", 1)
        assert weights.attributes["axis"].as_int() == 1
        assert (scale, zero) == (f"{weight}_scale", f"{weight}_zero")
        columns = originally[f"{name}.weight"].shape[1]
        np.testing.assert_array_equal(numbers[zero], np.zeros(columns, np.int8), strict=True)
        assert (numbers[scale].dtype, numbers[scale].shape) == (np.float32, (columns,))
        assert numbers[weight].dtype == np.int8
        assert (np.abs(numbers[weight].astype(int)).max(axis=0) == 64).all()
        error = np.abs(numbers[weight] * numbers[scale] - originally[f"{name}.weight"])
        assert (error <= 0.5001 * numbers[scale]).all()

        dequantise = product.inputs[0].producer()
        quantise = dequantise.inputs[0].producer()
        assert (quantise.op_type, dequantise.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert list(quantise.outputs[0].uses()) == [(dequantise, 0)]
        assert list(dequantise.outputs[0].uses()) == [(product, 0)]
        step, origin = f"{name}.int8.input_scale", f"{name}.int8.input_zero"
        for node in (quantise, dequantise):
            assert [value.name for value in node.inputs[1:]] == [step, origin]
        np.testing.assert_array_equal(numbers[step], np.float32(ranges[name]) / np.float32(127), strict=True)
        np.testing.assert_array_equal(numbers[origin], np.int8(0), strict=True)
    assert seen == set(layers)
    counts = Counter(node.op_type for node in model.graph)
    assert (counts["QuantizeLinear"], counts["DequantizeLinear"]) == (len(layers), 2 * len(layers))


@pytest.mark.parametrize("graph", GRAPHS)
def test_onnxruntime_runs_every_quantised_layer_as_a_product_of_integers(
    masked_graphs: Mapping[str, ir.Model], tmp_path: Path, graph: str
) -> None:
    counts = optimized(lowered(masked_graphs[graph], "int8", SENSITIVE[graph]), tmp_path)
    layers = find_layers(masked_graphs[graph], SENSITIVE[graph])
    assert counts["MatMulIntegerToFloat"] == sum(layer.kind == "linear" for layer in layers)
    assert counts["QuantizeLinear"] == counts["MatMulIntegerToFloat"]
    assert not counts["DequantizeLinear"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_products_of_integers_are_what_the_file_says(
    masked_graphs: Mapping[str, ir.Model], tmp_path: Path, graph: str
) -> None:
    path = written(lowered(masked_graphs[graph], "int8", SENSITIVE[graph]), tmp_path)
    results = []
    for literal in ("0", "1"):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", literal)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, graph_inputs(graph)))
    for integers, floats in zip(*results, strict=True):
        # A sum in another order may move a later layer's input to its next step, and no further.
        assert np.abs(integers - floats).max() < 0.1 * np.abs(floats).max()


def integer_product(x: FloatArray, weight: FloatArray, largest: float) -> FloatArray:
    """The expected quantised product, computed in integers."""
    step = np.float32(largest) / np.float32(127)
    steps = np.abs(weight).max(axis=0) / np.float32(64)
    inputs = np.clip(np.rint(x / step), -128, 127).astype(np.int64)
    return ((inputs @ np.rint(weight / steps).astype(np.int64)) * (float(step) * steps.astype(np.float64))).astype(
        np.float32
    )


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_a_quantised_layer_gives_the_product_of_its_rounded_numbers_and_saturates_beyond_its_range(
    tmp_path: Path, rows: int
) -> None:
    random = np.random.default_rng(rows)
    weight = (random.normal(size=(96, 40)) * random.uniform(0.01, 10, 40)).astype(np.float32)
    x = random.normal(size=(rows, 96)).astype(np.float32)
    x[0, :8] = [5, -5, 100, -100, 1e30, -1e30, 2, -2]
    model = lower(linear_model(weight), {"layer": INT8}, {"layer": 2.0})
    assert optimized(model, tmp_path) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    actual = run(model, x)
    expected = integer_product(x, weight, 2.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.abs(actual[0] - x[0] @ weight).max() > 1e20


matrices = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-1e6, 1e6, width=32))


@given(weight=matrices)
@example(weight=np.zeros((3, 2), np.float32))
@example(weight=np.array([[0, 1e-45], [0, 1e-40]], np.float32))
def test_no_weight_is_further_than_half_a_step_from_its_quantised_one(weight: FloatArray) -> None:
    quantised, scale = quantised_weight(weight, INT8)
    assert (quantised.dtype, scale.dtype) == (np.int8, np.float32)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    error = np.abs(weight.astype(np.float64) - quantised.astype(np.float64) * scale)
    assert (error <= 0.50001 * scale.astype(np.float64)).all()
    assert (np.abs(quantised.astype(int)) <= 64).all()
    assert (quantised[:, ~weight.any(axis=0)] == 0).all()


@given(weight=matrices)
def test_no_weight_is_further_from_its_8_bit_float_than_that_type_allows(weight: FloatArray) -> None:
    quantised, scale = quantised_weight(weight, FLOAT8)
    actual = quantised.astype(np.float64) * scale
    error = np.abs(weight.astype(np.float64) - actual)
    assert (error <= np.maximum(np.abs(weight) / 16, scale * 2.0**-10) * 1.0001).all()


def test_the_step_of_an_input_that_was_always_zero_is_positive() -> None:
    assert input_scale(INT8, 0.0) > 0
    model = lower(linear_model(np.eye(4)), {"layer": INT8}, {"layer": 0.0})
    np.testing.assert_array_equal(run(model, np.zeros((2, 4), np.float32)), np.zeros((2, 4), np.float32))


def test_two_products_of_the_largest_input_and_weight_fit_into_16_bits() -> None:
    # CPUs with AVX2 and without VNNI shift inputs to 0…255 and add two products at a time in 16 bits, which saturate.
    quantised, _ = quantised_weight(np.array([[1.0, -1.0, 3e-3]], np.float32), INT8)
    assert 2 * 255 * np.abs(quantised.astype(int)).max() <= np.iinfo(np.int16).max


@pytest.mark.parametrize("length", [2, 64, 1152, 4096])
def test_sums_of_the_largest_products_are_exact_on_this_cpu(length: int) -> None:
    # Weights of 8 bits instead of 7 fail here on a CPU without VNNI.
    signs = np.where(np.arange(length) % 2, -1, 1).astype(np.float32)
    weight = np.stack([np.full(length, 0.5), np.full(length, -0.5), signs], axis=1).astype(np.float32)
    x = np.stack([np.ones(length), -np.ones(length), signs, -signs]).astype(np.float32)
    actual = run(lower(linear_model(weight), {"layer": INT8}, {"layer": 1.0}), x)
    np.testing.assert_allclose(actual, x @ weight, rtol=1e-6, atol=1e-6 * length)


# Emulation


def in_fp16(weight: NDArray[Any]) -> ir.Model:
    return lower(linear_model(weight), {"layer": FLOAT16}, {})


def narrow(values: NDArray[Any], dtype: ir.DataType = FLOAT16) -> FloatArray:
    with np.errstate(over="ignore"):
        return values.astype(dtype.numpy()).astype(np.float32)


def test_a_number_beyond_float16_becomes_infinite_in_emulation_and_not_in_onnxruntime_on_a_cpu() -> None:
    model, x = in_fp16(np.ones((2, 1))), np.array([[1e5, 1]], np.float32)
    assert run(emulate(model), x) == np.inf
    assert np.isfinite(run(model, x)).all(), "onnxruntime rounds as a GPU does now: is the emulation still needed?"


def test_weights_and_products_beyond_float16_become_infinite_too() -> None:
    one, many = np.ones((1, 1), np.float32), np.full((1, 2), 200, np.float32)
    assert run(emulate(in_fp16(np.array([[65504]]))), one) == 65504
    assert run(emulate(in_fp16(np.array([[1e5]]))), one) == np.inf
    assert run(emulate(in_fp16(np.full((2, 1), 200))), many) == np.inf
    assert run(emulate(in_fp16(np.full((2, 1), 100))), many) == 40_000


def test_a_third_is_rounded_on_its_way_through_a_layer() -> None:
    third = np.full((1, 1), 1 / 3, np.float32)
    assert run(emulate(in_fp16(np.ones((1, 1)))), third) == np.float32(0.33325195)
    assert run(emulate(in_fp16(third)), np.ones((1, 1), np.float32)) == np.float32(0.33325195)
    assert run(emulate(in_fp16(third)), third) == narrow(narrow(third) * narrow(third))


@pytest.mark.parametrize(("precision", "digits"), [("fp16", 11), ("bf16", 8)])
def test_emulation_rounds_inputs_weights_and_results_and_no_sum(precision: str, digits: int) -> None:
    dtype = PRECISIONS[precision].linear
    random = np.random.default_rng(0)
    weight, x = random.normal(size=(300, 50)).astype(np.float32), random.normal(size=(20, 300)).astype(np.float32)
    actual = run(emulate(lower(linear_model(weight), {"layer": dtype}, {})), x)
    sums = narrow(x, dtype) @ narrow(weight, dtype)
    np.testing.assert_array_equal(narrow(actual, dtype), actual)
    # Another order of summation may round a few sums to the next number.
    assert (actual == narrow(sums, dtype)).mean() > 0.99
    np.testing.assert_allclose(actual, sums, rtol=2.0**-digits * 1.01, atol=1e-5)
    assert run(emulate(in_fp16(np.ones((4096, 1)))), np.ones((1, 4096), np.float32)) == 4096


def test_emulated_graphs_have_standard_operators_in_float32_between_casts_only(
    masked_graphs: Mapping[str, ir.Model],
) -> None:
    # Values that are only moved keep their numbers in any type.
    assert set(EXACT).isdisjoint({"Add", "Mul", "MatMul", "Softmax", "LayerNormalization", "Expand", "ReduceSum"})
    model = emulate(lowered(masked_graphs["dense"], "fp16", SENSITIVE["dense"]))
    assert not model.functions
    for node, inputs, outputs in node_types(model):
        assert not node.domain
        if node.op_type not in EXACT:
            assert FLOAT16 not in inputs | outputs


@pytest.mark.parametrize("graph", GRAPHS)
def test_emulating_a_float32_graph_takes_attention_apart_and_changes_nothing_else(
    masked_graphs: Mapping[str, ir.Model], graph: str
) -> None:
    def nodes(proto: onnx.ModelProto) -> list[tuple[str, list[str], list[str]]]:
        return [(node.op_type, list(node.input), list(node.output)) for node in proto.graph.node]

    proto = ir.to_proto(masked_graphs[graph])
    emulated = ir.to_proto(emulate(masked_graphs[graph]))
    assert nodes(emulated) == nodes(onnx.inliner.inline_local_functions(proto))
    assert emulated.graph.initializer == proto.graph.initializer


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("graph", ["dense", "text"])
def test_emulated_graphs_give_nearly_the_originals_vectors(
    masked_bundle_path: Path, masked_graphs: Mapping[str, ir.Model], graph: str, precision: str
) -> None:
    model = lowered(masked_graphs[graph], precision, SENSITIVE[graph])
    bundle = Bundle.open(masked_bundle_path, check_hashes=False)
    names = [str(value.name) for value in masked_graphs[graph].graph.outputs]
    actual, expected = (
        GraphBackend(bundle, "fp32", {graph: variant}).submit(graph, graph_inputs(graph), names).result()
        for variant in (emulate(model), masked_graphs[graph])
    )
    for rough, exact in zip(actual, expected, strict=True):
        assert np.abs(rough - exact).max() < {"fp16": 5e-3, "int8": 0.2}[precision] * np.abs(exact).max()
        assert np.abs(rough - exact).max() > 1e-5 * np.abs(exact).max()


# Hidden keys

HEADS = 2


def attention_model() -> ir.Model:
    """One attention of queries, keys, values and a bias of the keys."""
    query, key = float_value("query", 1, "m", 4 * HEADS), float_value("key", 1, "n", 4 * HEADS)
    value, bias, y = float_value("value", 1, "n", 3 * HEADS), float_value("bias", 1, "n"), float_value("y", 1, "m", 6)
    node = ir.node(
        KEY_BIASED,
        [query, key, value, bias],
        attributes={"num_heads": HEADS, "scale": 1.0},
        domain="com.microsoft",
        name="attention",
    )
    model = hand_made([query, key, value, bias], [y], [node, ir.node("Identity", node.outputs, outputs=[y])])
    expand_key_biases(model)
    add_definition(model)
    return model


def masked(hidden: int, garbage: float, seed: int = 0) -> list[FloatArray]:
    """Inputs of :func:`attention_model`; the last ``hidden`` keys are hidden and multiplied by ``garbage``."""
    random = np.random.default_rng(seed)
    query, key, value = (random.normal(size=(1, n, c * HEADS)).astype(np.float32) for n, c in ((6, 4), (9, 4), (9, 3)))
    bias = np.where(np.arange(9) < 9 - hidden, 0, HIDDEN).astype(np.float32)[None]
    key[:, 9 - hidden :] *= garbage
    value[:, 9 - hidden :] *= garbage
    return [query, key, value, bias]


def test_a_hidden_key_has_no_weight_at_all() -> None:
    query, key, value, bias = masked(hidden=4, garbage=1.0)
    value[:, 5:] = 1e30
    expected = run(attention_model(), query, key[:, :5], value[:, :5], bias[:, :5])
    q, k, v, b = map(torch.from_numpy, (query, key, value, bias))
    for actual in (
        run(attention_model(), query, key, value, bias),
        run(emulate(attention_model()), query, key, value, bias),
        multi_head_attention(q, k, v, HEADS, key_bias=b).numpy(),
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_hidden_key_has_no_weight_in_float16_either() -> None:
    assert np.isfinite(np.float16(HIDDEN))
    half = emulate(lower(attention_model(), {"attention": FLOAT16}, {}))
    plain = run(half, *masked(hidden=4, garbage=1.0))
    np.testing.assert_array_equal(run(half, *masked(hidden=4, garbage=1000.0)), plain)
    np.testing.assert_array_equal(run(half, *masked(hidden=4, garbage=0.0)), plain)
    np.testing.assert_allclose(plain, run(attention_model(), *masked(hidden=4, garbage=1000.0)), rtol=0, atol=5e-3)
    assert np.abs(plain - run(half, *masked(hidden=3, garbage=1.0))).max() > 0.05


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("graph", ["vision", "dense", "text"])
def test_the_names_of_what_hides_keys_outlast_every_step(
    masked_graphs: Mapping[str, ir.Model], graph: str, precision: str, tmp_path: Path
) -> None:
    """Steps: rescaling, rounding, writing, reading, and writing again as when a precision is dropped."""
    model = masked_graphs[graph]
    places = find_sites(model, ())
    widths = {place.name: array(place.readers[0].weight).shape[0] for place in places}
    factors = {name: np.full(width, 2, np.float32) for name, width in widths.items()}
    changed = lowered(smooth(model, (), factors), precision) if precision != "fp32" else model
    path = written(ir.load(written(changed, tmp_path)), tmp_path)
    before, after = (names_of_keys(proto) for proto in (ir.to_proto(model), onnx.load(path)))
    assert after == before
    values = {output for node in onnx.load(path).graph.node for output in node.output}
    assert all(values.issuperset(names.values()) and len(names) == 3 for names in after.values())
    assert len(after) == len([layer for layer in find_layers(model) if layer.kind == "attention"]) > 1


def names_of_keys(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    nodes = (node for node in model.graph.node if node.op_type == "MultiHeadAttention")
    return {node.name: {entry.key: entry.value for entry in node.metadata_props} for node in nodes}
