"""Functions and constants for tests of exports and of graphs in memory; needs torch and onnx_ir."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fgclip_rt import export
from fgclip_rt.export.families.base import ReferenceModel
from fgclip_rt.export.families.fgclip2 import model as fgclip2
from fgclip_rt.export.families.fgclip2.graphs import DenseGraph
from fgclip_rt.export.families.siglip2.graphs import VisionGraph
from fgclip_rt.export.graphs.attention import add_definition
from fgclip_rt.export.graphs.regions import RegionGraph
from fgclip_rt.export.graphs.text import TextGraph
from fgclip_rt.export.graphs.trace import GraphSource
from fgclip_rt.export.graphs.trace import trace as traced
from helpers import GOLDENS

#: Model and files of a checkpoint, as commands take them, by the golden's name.
SQUARE_CHECKPOINTS: dict[str, tuple[str, export.LocalFiles]] = {
    "fgclip1": (str(GOLDENS / "fgclip1" / "checkpoint"), export.LocalFiles()),
    "fineclip": (
        str(GOLDENS / "fineclip" / "checkpoint.pt"),
        export.LocalFiles(
            config=GOLDENS / "fineclip" / "model_config.json",
            tokenizer=GOLDENS / "fgclip1" / "checkpoint" / "tokenizer.json",
        ),
    ),
}

#: Graphs by the modules that they are traced from.
MODULES = {
    VisionGraph: "vision",
    DenseGraph: "dense",
    TextGraph: "text",
    RegionGraph: "region",
}

#: Layers of the golden checkpoints' graphs that stay in float32.
SENSITIVE = {"vision": ("pooling",), "dense": ("pooling",), "text": ("text_heads",), "region": ()}

Trace = Callable[[GraphSource], ir.Model]


def _biases(names: Iterable[str]) -> set[str]:
    """The biases of queries, which a graph has or has not by the values of its weights."""
    return {name for name in names if name.endswith("attention.q.bias")}


def trace_as_in(bundle: Path) -> Trace:
    """A quick way to trace a checkpoint: the graphs of a bundle of the same sizes, with the checkpoint's weights.

    Its weights decide which biases a graph has. A graph with others than the bundle's is traced as usual.
    """

    def trace(source: GraphSource) -> ir.Model:
        model = ir.load(bundle / f"{MODULES[type(source.module)]}.onnx")
        parameters = dict(source.module.named_parameters())
        if _biases(parameters) != _biases(model.graph.initializers):
            return traced(source)
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            values = parameters[name].numpy() if name in parameters else value.const_value.numpy()
            # A copy, because a test may change it.
            value.const_value = ir.Tensor(np.array(values, order="C"), name=name)
        return model

    return trace


def hasten(patch: pytest.MonkeyPatch, bundle: Path) -> Trace:
    """Have exports trace by :func:`trace_as_in`, and probe two images only."""
    trace = trace_as_in(bundle)
    patch.setattr("fgclip_rt.export.pipeline.trace", trace)
    patch.setattr("fgclip_rt.export.bundle.probe.IMAGE_SIZES", ((60, 80), (20, 300)))
    return trace


def unused_source() -> export.Source:
    """A source that must not be loaded, because an argument or the output is refused first."""

    def load() -> Any:
        raise AssertionError("loaded before everything else was checked")

    return export.Source("unused", load)


def tamper(monkeypatch: pytest.MonkeyPatch, trace: Trace, name: str, by: float) -> None:
    """Have the graphs written with one weight changed."""

    def changed(source: GraphSource) -> ir.Model:
        model = trace(source)
        if name in model.graph.initializers:
            weight = model.graph.initializers[name].const_value
            assert weight is not None
            weight.numpy().flat[0] += by
        return model

    monkeypatch.setattr("fgclip_rt.export.pipeline.trace", changed)


def small_random(seed: int) -> ReferenceModel:
    """A whole model with random weights, of the smallest sizes."""
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return fgclip2.random({"vision_config": tower, "text_config": tower | {"vocab_size": 260}}, seed)


def constant(name: str, values: np.ndarray[Any, Any]) -> ir.Value:
    """An initializer."""
    tensor = ir.Tensor(np.asarray(values, order="C"), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


def float_value(name: str, *shape: int | str) -> ir.Value:
    """An input or output."""
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def hand_made(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], nodes: Sequence[ir.Node]) -> ir.Model:
    """A model of some nodes and the initializers that they read."""
    read = {
        value: None for node in nodes for value in node.inputs if value is not None and value.const_value is not None
    }
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=tuple(read), opset_imports={"": 20}, name="graph")
    model = ir.Model(graph, ir_version=10)
    add_definition(model)
    return model


def linear_model(weight: np.ndarray[Any, Any]) -> ir.Model:
    """``y = x @ weight`` as a layer called ``layer``. With a bias, onnxruntime would make it a Gemm of floats."""
    rows, columns = weight.shape
    x, y = float_value("x", "n", rows), float_value("y", "n", columns)
    product = ir.node("MatMul", [x, constant("layer.weight", weight.astype(np.float32))])
    return hand_made([x], [y], [product, ir.node("Identity", product.outputs, outputs=[y])])


def run(model: ir.Model, *inputs: np.ndarray[Any, Any]) -> Any:
    """The first output of a model in memory."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]
