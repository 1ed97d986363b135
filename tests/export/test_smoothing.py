"""Smoothing: the sites that can be rescaled, unchanged results, and the choice of factors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from exporting import SENSITIVE, constant, float_value, hand_made, linear_model, run
from fgclip_rt.bundle import Bundle
from fgclip_rt.export.precision.graph_backend import GraphBackend
from fgclip_rt.export.precision.layers import SMOOTHED, Layer, array, find_layers
from fgclip_rt.export.precision.lower import lower
from fgclip_rt.export.precision.smoothing import ScalingSite, choose_factors, find_sites, smooth
from helpers import assert_parity, graph_inputs

INT8 = ir.DataType.INT8

FloatArray = NDArray[np.float32]


def block(name: str) -> list[str]:
    return [f"{name}.norm1", f"{name}.attention", f"{name}.norm2"]


VISION = [*block("vision.blocks.0"), *block("vision.blocks.1")]
PLACES = {
    "vision": VISION,
    "dense": [*VISION, "dense.attention", "dense.norm"],
    "text": [*block("text.blocks.0"), *block("text.blocks.1")],
    "region": [],
}


@pytest.mark.parametrize("graph", PLACES)
def test_sites_are_norms_and_attention_that_only_layers_read(masked_graphs: Mapping[str, ir.Model], graph: str) -> None:
    sites = find_sites(masked_graphs[graph], SENSITIVE[graph])
    # The sites lack vision.post_norm, which the pooling's keys read too, and text.post_norm, before a sensitive layer.
    assert sorted(site.name for site in sites) == sorted(PLACES[graph])
    for site in sites:
        module, _, kind = site.name.rpartition(".")
        parts = {
            "norm": ["mlp.fc1"],
            "norm1": ["attention.q", "attention.k", "attention.v"],
            "norm2": ["mlp.fc1"],
            "attention": ["attention.out"],
        }
        assert {reader.name for reader in site.readers} == {f"{module}.{part}" for part in parts[kind]}
        made = {str(operand.node.inputs[operand.index].name) for operand in site.producers}
        norm = {f"{site.name}.weight", f"{site.name}.bias"}
        assert made == ({f"{site.name}.v.weight"} if kind == "attention" else norm)


def test_what_is_sensitive_is_no_scaling_site(masked_graphs: Mapping[str, ir.Model]) -> None:
    def names(graph: str, *sensitive: str) -> set[str]:
        return {site.name for site in find_sites(masked_graphs[graph], sensitive)}

    assert names("vision") == {*PLACES["vision"], "pooling.norm"}
    assert names("text") == {*PLACES["text"], "text.post_norm"}
    assert names("vision", "pooling", "vision.blocks.0.attention.k") == {*PLACES["vision"][1:]}, (
        "one of three layers that read a norm keeps it as it is"
    )
    assert names("vision", "pooling", "vision.blocks.0.attention.v") == set(PLACES["vision"][2:])


@pytest.mark.parametrize("graph", ["vision", "dense", "text"])
def test_a_smoothed_graph_computes_the_same(
    masked_bundle_path: Path, masked_graphs: Mapping[str, ir.Model], graph: str
) -> None:
    original = masked_graphs[graph]
    before = ir.to_proto(original).SerializeToString(deterministic=True)
    random = np.random.default_rng(0)
    sites = find_sites(original, SENSITIVE[graph])
    factors = {
        site.name: np.exp(random.normal(0, 1, len(array(site.readers[0].weight)))).astype(np.float32) for site in sites
    }
    smoothed = smooth(original, SENSITIVE[graph], factors)
    assert ir.to_proto(original).SerializeToString(deterministic=True) == before

    bundle = Bundle.open(masked_bundle_path, check_hashes=False)
    outputs = [str(value.name) for value in original.graph.outputs]
    actual, expected = (
        GraphBackend(bundle, "fp32", {graph: model}).submit(graph, graph_inputs(graph), outputs).result()
        for model in (smoothed, original)
    )
    for changed, plain in zip(actual, expected, strict=True):
        np.testing.assert_allclose(changed, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
        assert_parity(changed, plain)

    readers = {f"{reader.name}.weight" for site in sites for reader in site.readers}
    producers = {str(operand.node.inputs[operand.index].name) for site in sites for operand in site.producers}
    names = set(original.graph.initializers)
    assert set(smoothed.graph.initializers) == names - readers - producers | {
        name + SMOOTHED for name in readers | producers
    }
    kept = [(layer.name, layer.kind) for layer in find_layers(original)]
    assert [(layer.name, layer.kind) for layer in find_layers(smoothed)] == kept


def test_a_graph_smoothed_nowhere_is_the_original(masked_graphs: Mapping[str, ir.Model]) -> None:
    for graph in PLACES:
        smoothed = smooth(masked_graphs[graph], SENSITIVE[graph], {"nowhere": np.ones(64, np.float32)})
        assert ir.to_proto(smoothed) == ir.to_proto(masked_graphs[graph])


def test_a_rescaled_channel_is_smaller_for_its_readers(
    masked_bundle_path: Path, masked_graphs: Mapping[str, ir.Model]
) -> None:
    factor = np.linspace(0.5, 20, 64).astype(np.float32)
    name = "text.blocks.0.norm2"
    smoothed = smooth(masked_graphs["text"], SENSITIVE["text"], {name: factor})
    bundle = Bundle.open(masked_bundle_path, check_hashes=False)
    values = []
    for model in (masked_graphs["text"].clone(), smoothed):
        (norm,) = (node for node in model.graph if node.name == name)
        norm.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(norm.outputs[0])
        backend = GraphBackend(bundle, "fp32", {"text": model})
        values += backend.submit("text", graph_inputs("text"), [str(norm.outputs[0].name)]).result()
    np.testing.assert_allclose(values[1], values[0] / factor, rtol=1e-4, atol=1e-5)


def norm(x: ir.Value, name: str, scale: ir.Value, bias: ir.Value) -> ir.Node:
    return ir.node("LayerNormalization", [x, scale, bias], name=name)


def norm_model(others: str = "") -> ir.Model:
    """Two norms with one scale and bias, each before a layer; ``others`` adds a reader to the first norm."""
    x = float_value("x", "n", 4)
    scale, bias = constant("scale", np.arange(1, 5, dtype=np.float32)), constant("bias", np.ones(4, np.float32))
    first, second = norm(x, "first", scale, bias), norm(x, "second", scale, bias)
    weights = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    products = [
        ir.node("MatMul", [node.outputs[0], constant(f"{node.name}_reader.weight", weight)])
        for node, weight in zip((first, second), weights, strict=True)
    ]
    y = float_value("y", "n", 4)
    nodes = [first, second, *products, ir.node("Add", [node.outputs[0] for node in products], outputs=[y])]
    outputs = [y]
    if others == "output":
        first.outputs[0].name, first.outputs[0].type = "normed", ir.TensorType(ir.DataType.FLOAT)
        outputs.append(first.outputs[0])
    elif others == "elementwise":
        nodes.append(ir.node("Relu", [first.outputs[0]]))
    elif others == "product of two":
        nodes.append(ir.node("MatMul", [first.outputs[0], first.outputs[0]]))
    elif others == "table":
        nodes.append(ir.node("MatMul", [first.outputs[0], constant("positions", np.eye(4, dtype=np.float32))]))
    elif others == "sliced elsewhere":
        bounds = [constant(name, np.array([value], np.int64)) for name, value in (("a", 0), ("b", 1), ("c", 0))]
        cut = ir.node("Slice", [first.outputs[0], *bounds])
        nodes += [cut, ir.node("Relu", [cut.outputs[0]])]
    return hand_made([x], outputs, nodes)


@pytest.mark.parametrize("others", ["output", "elementwise", "product of two", "table", "sliced elsewhere"])
def test_a_norm_that_something_else_reads_is_no_scaling_site(others: str) -> None:
    assert [site.name for site in find_sites(norm_model(), ())] == ["first", "second"]
    assert [site.name for site in find_sites(norm_model(others), ())] == ["second"]


def test_norms_that_share_their_numbers_are_rescaled_each_by_itself() -> None:
    model, x = norm_model(), np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    factors = {"first": np.array([0.1, 1, 2, 30], np.float32), "second": np.array([7, 1, 0.2, 3], np.float32)}
    for some in ({"first": factors["first"]}, {"second": factors["second"]}, factors):
        np.testing.assert_allclose(run(smooth(model, (), some), x), run(model, x), rtol=1e-5, atol=1e-5)


def attention_model(others: str = "") -> ir.Model:
    """Attention between a projection of its values and a layer; ``others`` adds a reader or a producer in between."""
    random = np.random.default_rng(0)
    x, y = float_value("x", 1, "n", 4), float_value("y", 1, "n", 4)
    weights = random.normal(size=(2, 4, 4)).astype(np.float32)
    product = ir.node("MatMul", [x, constant("a.v.weight", weights[0])])
    nodes = [product]
    if others == "bias":
        bias = constant("a.v.bias", random.normal(size=4).astype(np.float32))
        nodes.append(ir.node("Add", [product.outputs[0], bias]))
    attention = ir.node(
        "MultiHeadAttention",
        [x, x, nodes[-1].outputs[0]],
        attributes={"num_heads": 2, "scale": 1.0},
        domain="com.microsoft",
        name="a",
    )
    out = ir.node("MatMul", [attention.outputs[0], constant("a.out.weight", weights[1])])
    nodes += [attention, out]
    read = {"values": product, "mixture": attention}
    if others in read:
        nodes.append(ir.node("Relu", [read[others].outputs[0]]))
    return hand_made([x], [y], [*nodes, ir.node("Identity", out.outputs, outputs=[y])])


@pytest.mark.parametrize("others", ["values", "mixture", "bias"])
def test_attention_is_a_scaling_site_only_where_a_layer_makes_its_values_for_it_alone(others: str) -> None:
    model = attention_model()
    assert [site.name for site in find_sites(model, ())] == ["a"]
    assert find_sites(attention_model(others), ()) == []

    x = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
    smoothed = smooth(model, (), {"a": np.array([0.2, 1, 3, 40], np.float32)})
    np.testing.assert_allclose(run(smoothed, x), run(model, x), rtol=1e-5, atol=1e-5)


# Choice of factors


def site_of(*weights: FloatArray) -> ScalingSite:
    layers = []
    for index, weight in enumerate(weights):
        node = ir.node("MatMul", [float_value("x", "n", len(weight)), constant(f"{index}.weight", weight)])
        layers.append(Layer(str(index), "linear", node))
    return ScalingSite("site", (), tuple(layers))


def quantised_error(inputs: FloatArray, weight: FloatArray, factors: FloatArray) -> float:
    """Relative error of a product in int8 whose channels were rescaled."""
    scaled = inputs / factors
    model = lower(linear_model(weight * factors[:, None]), {"layer": INT8}, {"layer": float(np.abs(scaled).max())})
    exact = inputs @ weight
    return float(np.linalg.norm(run(model, scaled) - exact) / np.linalg.norm(exact))


def gaussian(*shape: int) -> FloatArray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_even_channels_stay_as_they_are() -> None:
    random = np.random.default_rng(0)
    weight, inputs = (random.uniform(-1, 1, shape).astype(np.float32) for shape in ((64, 32), (200, 64)))
    assert choose_factors(site_of(weight), inputs, INT8) is None


@pytest.mark.parametrize("readers", [1, 3])
def test_a_channel_a_hundred_times_the_others_is_divided_and_the_error_falls(readers: int) -> None:
    inputs, weights = gaussian(200, 64), gaussian(readers, 64, 32)
    inputs[:, 7] *= 100
    # A trained layer reads such a channel with small weights.
    weights[:, 7] /= 30
    factors = choose_factors(site_of(*weights), inputs, INT8)
    assert factors is not None
    assert (factors.dtype, factors.shape) == (np.float32, (64,))
    assert factors[7] > 5 * np.delete(factors, 7).max()
    for weight in weights:
        assert quantised_error(inputs, weight, factors) < 0.3 * quantised_error(inputs, weight, np.ones_like(factors))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("unused", ["inputs", "weights", "both", "different ones"])
def test_channels_that_are_never_used_get_usable_factors(unused: str) -> None:
    inputs, weight = gaussian(200, 64), gaussian(64, 32)
    inputs[:, 7] *= 100
    weight[7] /= 30
    if unused in ("inputs", "both", "different ones"):
        inputs[:, 3] = 0
    if unused in ("weights", "both"):
        weight[3] = 0
    if unused == "different ones":
        weight[4] = 0
    factors = choose_factors(site_of(weight), inputs, INT8)
    assert factors is not None
    assert np.isfinite(factors).all()
    assert (factors > 0).all()
    assert quantised_error(inputs, weight, factors) < 0.4 * quantised_error(inputs, weight, np.ones_like(factors))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_where_nothing_is_read_or_nothing_comes_of_it_there_is_nothing_to_choose_factors() -> None:
    assert choose_factors(site_of(gaussian(64, 32)), np.zeros((9, 64), np.float32), INT8) is None
    assert choose_factors(site_of(np.zeros((64, 32), np.float32)), gaussian(9, 64), INT8) is None


def test_a_reader_of_zeros_beside_another_does_not_spoil_the_choice() -> None:
    inputs, weight = gaussian(200, 64), gaussian(64, 32)
    inputs[:, 7] *= 100
    weight[7] /= 30
    factors = choose_factors(site_of(weight, np.zeros_like(weight)), inputs, INT8)
    assert factors is not None
    assert np.isfinite(factors).all()
