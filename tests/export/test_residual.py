"""The residual stream in float16: the sums that make it, the blocks in which it may be, and the casts around them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from exporting import SENSITIVE, constant, float_value, hand_made, run
from fgclip_rt.bundle import Bundle
from fgclip_rt.export.precision.emulation import emulate
from fgclip_rt.export.precision.layers import Layer, block_of, find_residuals
from fgclip_rt.export.precision.lower import lower
from fgclip_rt.export.precision.observation import ObservingBackend
from fgclip_rt.export.precision.precisions import PRECISIONS
from fgclip_rt.export.precision.residual import LARGEST, calm_blocks, spans
from fgclip_rt.manifest import Span

FLOAT16 = ir.DataType.FLOAT16

#: Sums of each golden graph. The last block of texts goes on with one token, which no norm has read by itself.
SUMS = {
    "vision": [f"vision.blocks.{block}.norm{norm}" for block in (0, 1) for norm in (1, 2)],
    "dense": [f"vision.blocks.{block}.norm{norm}" for block in (0, 1) for norm in (1, 2)],
    "text": ["text.blocks.0.norm1", "text.blocks.0.norm2", "text.blocks.1.norm2"],
    "region": [],
}


def stack(*branches: float) -> ir.Model:
    """Blocks ``a.0``, ``a.1``, … of one sum each: the stream, and its norm times a number."""
    x, y = float_value("x", "n", 2), float_value("y", "n", 2)
    stream, nodes = x, []
    for index, branch in enumerate(branches):
        norm = ir.node(
            "LayerNormalization", [stream, constant(f"a.{index}.scale", np.ones(2, np.float32))], name=f"a.{index}.norm"
        )
        factor = constant(f"a.{index}.factor", np.full(2, branch, np.float32))
        scaled = ir.node("Mul", [norm.outputs[0], factor])
        total = ir.node("Add", [stream, scaled.outputs[0]])
        nodes += [norm, scaled, total]
        stream = total.outputs[0]
    return hand_made([x], [y], [*nodes, ir.node("Identity", [stream], outputs=[y])])


def narrow(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("graph", SUMS)
def test_the_sums_of_the_blocks_are_found_and_no_others(masked_graphs: Mapping[str, ir.Model], graph: str) -> None:
    """The sum of positions is none, and results of the pooling and dense heads are returned in float32."""
    found = find_residuals(masked_graphs[graph], SENSITIVE[graph])
    assert [(layer.name, layer.kind) for layer in found] == [(name, "residual") for name in SUMS[graph]]
    assert all(len(layer.activations) == 2 for layer in found)
    assert find_residuals(masked_graphs[graph], [*SENSITIVE[graph], "vision", "text"]) == []


def test_a_stream_within_a_span_is_cast_at_its_borders_only() -> None:
    """Blocks 1 and 2 of four: one cast down of the stream and of the first branch, and one up for the block after.

    The first branch of the span reads the stream before it; the second is in float16 from its norm on.
    """
    model = stack(1, 1, 1, 1)
    narrow_sums = {"a.1.norm": FLOAT16, "a.2.norm": FLOAT16}
    lowered = lower(model, narrow_sums, {})
    sums = [node for node in lowered.graph if node.op_type == "Add"]
    origins = [[value.producer().op_type if value.producer() else "input" for value in node.inputs] for node in sums]
    assert origins == [["input", "Mul"], ["Cast", "Cast"], ["Add", "Mul"], ["Cast", "Mul"]]
    for node in lowered.graph:
        if node.op_type == "LayerNormalization":
            producer = node.inputs[0].producer()
            up = producer is not None and producer.op_type == "Cast"
            assert up == (node.name == "a.3.norm")
    casts = [node.attributes["to"].as_int() for node in lowered.graph if node.op_type == "Cast"]
    assert sorted(casts) == sorted([FLOAT16] * 2 + [ir.DataType.FLOAT])


def test_a_narrow_stream_is_rounded_after_each_sum_and_its_branches_after_each_operator() -> None:
    x = np.array([[1 / 3, -5.1]], np.float32)
    model = stack(1 / 3, 1 / 3)
    actual = run(emulate(lower(model, {"a.0.norm": FLOAT16, "a.1.norm": FLOAT16}, {})), x)

    def normed(values: NDArray[np.float32]) -> NDArray[np.float32]:
        centred = values - values.mean(axis=1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)

    # The first norm reads the stream before the span, which is not rounded.
    stream = narrow(narrow(x) + narrow(normed(x) / 3))
    third = narrow(np.float32([1 / 3]))
    stream = narrow(stream + narrow(narrow(normed(stream)) * third))
    np.testing.assert_array_equal(actual, stream)


def test_a_span_that_overflows_is_infinite_in_emulation() -> None:
    """So a plan with a stream that no observation saw is refused by parity."""
    x = np.array([[1, -1]], np.float32)
    model = stack(1e5, 1)
    assert np.isfinite(run(emulate(lower(model, {"a.1.norm": ir.DataType.FLOAT}, {})), x)).all()
    assert not np.isfinite(run(emulate(lower(model, {"a.0.norm": FLOAT16}, {})), x)).all()
    assert not np.isfinite(run(emulate(lower(model, {"a.1.norm": FLOAT16}, {})), x)).all()


def test_peaks_are_the_largest_of_all_runs_and_of_inputs_and_result(masked_bundle_path: Path) -> None:
    model = stack(3, -2)
    bundle = Bundle.open(masked_bundle_path, check_hashes=False)
    backend = ObservingBackend(bundle, {"vision": model}, {"vision": find_residuals(model)})
    for scale in (1, 7, 2):
        backend.submit("vision", {"x": np.array([[scale, -scale]], np.float32)}, ["y"]).result()
    # The stream is 7, then 7 + 3, then 10 - 2: the second sum reads 10, and writes 8.
    assert backend.observations.peaks() == pytest.approx({"a.0.norm": 10, "a.1.norm": 10}, rel=1e-4)
    backend.submit("vision", {"x": np.array([[np.nan, 1]], np.float32)}, ["y"]).result()
    assert calm_blocks(find_residuals(model), backend.observations.peaks()) == []


def residual(name: str) -> Layer:
    return Layer(name, "residual", ir.node("Add", []))


def test_a_block_is_calm_if_all_its_sums_are_in_every_graph() -> None:
    sums = [residual(f"vision.blocks.{block}.norm{norm}") for block in range(3) for norm in (1, 2)]
    peaks = {layer.name: 1.0 for layer in sums}
    assert calm_blocks([*sums, *sums], peaks) == ["vision.blocks.0", "vision.blocks.1", "vision.blocks.2"]
    assert calm_blocks(sums, peaks | {"vision.blocks.1.norm2": LARGEST}) == ["vision.blocks.0", "vision.blocks.2"]
    assert calm_blocks(sums, peaks | {"vision.blocks.1.norm1": np.nextafter(LARGEST, 0)}) == calm_blocks(sums, peaks)
    assert calm_blocks(sums, peaks | {"vision.blocks.0.norm1": np.inf})[0] == "vision.blocks.1"
    assert calm_blocks(sums, peaks | {"vision.blocks.0.norm1": np.nan})[0] == "vision.blocks.1"
    assert LARGEST * 4 < 65_504


@given(st.lists(st.booleans(), min_size=8, max_size=8))
def test_spans_hold_the_chosen_blocks_and_no_others(chosen: list[bool]) -> None:
    blocks = [f"{tower}.blocks.{index}" for tower in ("vision", "text") for index in range(4)]
    wanted = [block for block, is_chosen in zip(blocks, chosen, strict=True) if is_chosen]
    found = spans(blocks, wanted)
    within = [blocks[blocks.index(span.first) : blocks.index(span.last) + 1] for span in found]
    assert [block for part in within for block in part] == wanted
    # No span crosses towers, and none could be longer.
    assert all(len({block.split(".")[0] for block in part}) == 1 for part in within)
    for left, right in pairwise(found):
        index = blocks.index(left.last) + 1
        assert blocks[index] != right.first or index == 4


def test_a_block_is_named_as_the_module_that_holds_its_norms() -> None:
    assert block_of(residual("vision.blocks.11.norm2")) == "vision.blocks.11"
    assert spans(["a.0", "a.1", "a.2"], ["a.1"]) == (Span(first="a.1", last="a.1"),)


def test_only_precisions_with_float16_have_a_narrow_stream() -> None:
    narrow_ones = [name for name, kind in PRECISIONS.items() if kind.residual == FLOAT16]
    assert narrow_ones == ["fp16", "int8", "fp8"]
    assert PRECISIONS["bf16"].residual == PRECISIONS["fp32"].residual == ir.DataType.FLOAT
