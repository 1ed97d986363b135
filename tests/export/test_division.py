"""Graphs in two parts: they compute together what the whole does, and the first does without the input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fgclip_rt.arrays import Array
from fgclip_rt.backends.onnxruntime import open_session
from fgclip_rt.export.precision.division import divide
from fgclip_rt.export.precision.layers import find_layers
from fgclip_rt.export.precision.switches import CHOSEN, Choice, switched
from helpers import graph_inputs

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def run(model: ir.Model, weights: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    session = open_session(ir.to_proto(model).SerializeToString(), 1, weights=weights)
    names = [value.name for value in session.get_inputs()]
    results = session.run(None, {name: inputs[name] for name in names})
    return dict(zip([value.name for value in session.get_outputs()], results, strict=True))


@pytest.mark.parametrize("first", [True, False])
def test_two_parts_compute_what_the_whole_does(
    masked_graphs: Mapping[str, ir.Model], masked_bundle_path: Path, first: bool
) -> None:
    graph = masked_graphs["text"]
    layers = [layer.name for layer in find_layers(graph)]
    choices = dict.fromkeys(layers[:2] if first else layers[-2:], Choice(FLOAT, HALF))
    whole = switched(graph, choices, {})
    before, after = divide(whole, CHOSEN)
    assert before is not None
    inputs = graph_inputs("text")
    shared = run(before, masked_bundle_path, inputs)
    for chosen in ([True, False], [False, True], [False, False]):
        given = {**inputs, CHOSEN: np.array(chosen)}
        expected = run(whole, masked_bundle_path, given)
        actual = run(after, masked_bundle_path, {**given, **shared})
        assert actual.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(actual[name], values, rtol=1e-5, atol=1e-6)

    # The first part has everything before the first choice, and the second nothing of it.
    assert CHOSEN not in [value.name for value in before.graph.inputs]
    assert "If" not in [node.op_type for node in before.graph]
    assert [node.op_type for node in after.graph].count("If") == 2
    shares = len(before.graph) / len(whole.graph), len(after.graph) / len(whole.graph)
    assert sum(shares) == pytest.approx(1, abs=0.02)
    assert shares[0] < 0.5 if first else shares[0] > 0.7


def test_an_input_that_everything_depends_on_leaves_no_first_part() -> None:
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape([2]))
    twice = ir.node("Add", [x, x])
    twice.outputs[0].name, twice.outputs[0].type = "twice", ir.TensorType(FLOAT)
    model = ir.Model(
        ir.Graph([x], twice.outputs, nodes=[twice], opset_imports={"": 20}, name="doubling"), ir_version=10
    )
    before, after = divide(model, "x")
    assert before is None
    assert run(after, Path(), {"x": np.array([1, 2], np.float32)})["twice"].tolist() == [2, 4]
