"""Graph modules to ONNX models in memory."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from .attention import DOMAIN as ATTENTION_DOMAIN
from .attention import add_definition, expand_key_biases

#: LayerNormalization needs 17, and Gelu with its tanh form 20.
OPSET = 20


@dataclass(frozen=True)
class GraphSource:
    """A module to trace, with the names of its ONNX inputs and outputs.

    Attributes:
        module: the graph, in evaluation mode.
        inputs: example inputs by name, in the order of ``forward``.
        dynamic: per input, the names of its dynamic axes by index.
        outputs: names of the outputs and of their axes.
        sensitive: names of layers, and of modules of such, that stay in float32 in every precision: they cost little
            and feel every rounding.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Sequence[str | int]]
    sensitive: Sequence[str] = ()


def trace(source: GraphSource) -> ir.Model:
    """Trace a graph with ``torch.onnx``; its weights stay references to the module's tensors, not copies."""
    axes = sorted({axis for axes in source.dynamic.values() for axis in axes.values()})
    dims = {axis: torch.export.Dim(axis, min=1, max=2**20) for axis in axes}
    shapes = {name: {i: dims[a] for i, a in source.dynamic.get(name, {}).items()} for name in source.inputs}
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            source.module.eval(),
            kwargs=dict(source.inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(source.inputs),
            output_names=list(source.outputs),
            dynamic_shapes=shapes,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _check_axes(model, source)
    _tidy(model, source)
    expand_key_biases(model)
    add_definition(model)
    return model


def _check_axes(model: ir.Model, source: GraphSource) -> None:
    """Make sure that the dynamic axes of the inputs are dynamic.

    The exporter tries one strategy after another, and a later one fixes an axis that the first could not trace.
    """
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        for index, axis in source.dynamic.get(value.name, {}).items():
            if str(value.shape[index]) != axis:
                raise ValueError(f"the exporter fixed axis {index} ({axis}) of {value.name} to {value.shape[index]}")


def _tidy(model: ir.Model, source: GraphSource) -> None:
    """Leave only what readers and parsers need: named axes, and the modules' names on attention and norms.

    No trace of this machine's source files stays.
    """
    for value, axes in zip(model.graph.outputs, source.outputs.values(), strict=True):
        value.shape = ir.Shape(axes)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        if node.domain == ATTENTION_DOMAIN or node.op_type == "LayerNormalization":
            *_, module, _ = ast.literal_eval(node.metadata_props["pkg.torch.onnx.name_scopes"])
            node.name = module
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            # The exporter leaves shapes here that its later rewrites have made stale; parsers infer their own.
            if not output.is_graph_output():
                output.shape, output.type = None, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's advice for its own developers from our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
