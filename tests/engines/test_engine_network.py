"""What the engines' parser is given: the same computation, in a form that TensorRT makes fast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import GraphProto, numpy_helper

from fgclip_rt import parity
from fgclip_rt.engines.network import parser_input, unhide_keys
from fgclip_rt.export import PRECISIONS
from helpers import SQUARE_NAMES, graph_inputs

Array = np.ndarray[Any, Any]


def session(model: Path | bytes, folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if isinstance(model, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def attentions(path: Path) -> int:
    graph = onnx.load(path, load_external_data=False).graph
    return sum(node.op_type == "MultiHeadAttention" for node in graph.node)


@pytest.mark.parametrize("graph", ["vision", "dense", "text"])
def test_attention_with_a_mask_gives_the_same_numbers(masked_bundle_path: Path, graph: str) -> None:
    """Of two images with patches past one grid, and of two texts with hidden tokens."""
    path = masked_bundle_path / f"{graph}.onnx"
    inputs = graph_inputs(graph)
    fixed = {"patches": 12, "tokens": 64}
    changed = session(parser_input(path, fixed), path.parent).run(None, inputs)
    for actual, expected in zip(changed, session(path, path.parent).run(None, inputs), strict=True):
        # Of what lies past a grid nothing is said.
        rows = np.s_[:, :10] if expected.ndim == 3 else np.s_[:]
        assert parity.compare(actual[rows], expected[rows], PRECISIONS["fp32"].limits, graph, "").passed
    model = onnx.load(path, load_external_data=False)
    assert unhide_keys(model.graph) == attentions(path) > 0


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.9999), ("int8", 0.99)])
def test_lower_precisions_do_too(pocket_path: Path, precision: str, least: float) -> None:
    """Another rounding may take a value over the edge of one of INT8's steps, and on from there."""
    path = pocket_path / f"dense.{precision}.onnx"
    inputs = graph_inputs("dense")
    changed = session(parser_input(path, {"patches": 12}), path.parent).run(None, inputs)
    for actual, expected in zip(changed, session(path, path.parent).run(None, inputs), strict=True):
        cosines = (actual * expected).sum(-1) / np.linalg.norm(actual, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert (cosines[:, :10] if expected.ndim == 3 else cosines).min() > least
    model = onnx.load(path, load_external_data=False)
    assert unhide_keys(model.graph) == attentions(path) == 7


def test_attention_that_hides_nothing_stays(pocket_path: Path) -> None:
    model = onnx.load(pocket_path / "text.fp16.onnx", load_external_data=False)
    before = model.SerializeToString()
    assert unhide_keys(model.graph) == 0
    assert model.SerializeToString() == before


def of_ones(graph: GraphProto) -> None:
    """Queries get another channel than one of ones."""
    for tensor in graph.initializer:
        if tensor.name == source_of_ones(graph):
            tensor.CopyFrom(numpy_helper.from_array(np.float32(2.0), tensor.name))


def source_of_ones(graph: GraphProto) -> str:
    expands = (node for node in graph.node if node.op_type == "Expand")
    return next(node.input[0] for node in expands if any(node.input[0] == each.name for each in graph.initializer))


def of_scale(graph: GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f = 0.5


def of_axis(graph: GraphProto) -> None:
    for node in graph.node:
        if node.op_type == "Concat" and len(node.input) == 2:
            for attribute in node.attribute:
                attribute.i = 2


@pytest.mark.parametrize("change", [of_ones, of_scale, of_axis])
def test_what_is_hidden_in_another_way_stays(masked_bundle_path: Path, change: Callable[[GraphProto], None]) -> None:
    model = onnx.load(masked_bundle_path / "vision.onnx", load_external_data=False)
    change(model.graph)
    before = model.SerializeToString()
    assert unhide_keys(model.graph) == 0
    assert model.SerializeToString() == before


LAYERS = """
import re, sys
from pathlib import Path
import tensorrt_rtx as trt
from fgclip_rt.engines.network import parser_input

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.text = ""

    def log(self, severity, message):
        self.text += message + "\\n"

logger, path = Logger(), sys.argv[1]
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
assert trt.OnnxParser(network, logger).parse(parser_input(Path(path), {"patches": 256}), path)
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
profile = builder.create_optimization_profile()
for index in range(network.num_inputs):
    tensor = network.get_input(index)
    sizes = ([batch if size < 0 else size for size in tensor.shape] for batch in (1, 8, 32))
    profile.set_shape(tensor.name, *map(tuple, sizes))
config.add_optimization_profile(profile)
assert builder.build_serialized_network(network, config)
print(len(re.findall(r"^Name: _gem[mv]_mha_v\\d\\w*, LayerType", logger.text, re.MULTILINE)))
"""


def count_attention_kernels(path: Path) -> int:
    """By what TensorRT-RTX lists of an engine's layers while it builds."""
    command = [sys.executable, "-P", "-c", LAYERS, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_attention_becomes_one_kernel(pocket_path: Path, precision: str) -> None:
    assert count_attention_kernels(pocket_path / f"vision.{precision}.onnx") == 6


@pytest.mark.parametrize("name", SQUARE_NAMES)
def test_so_do_those_of_towers_with_a_class_token(name: str, square_path: Callable[[str], Path]) -> None:
    """The last one too, in which the class token alone attends. Heads of texts are too small here for a kernel."""
    assert count_attention_kernels(square_path(name) / "dense.fp16.onnx") == 3
