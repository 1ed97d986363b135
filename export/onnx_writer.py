"""Graph modules to ONNX files that share one safetensors file of weights.

The external data of every graph lies in ``weights.safetensors``: ONNX addresses bytes by offset, so the same file is
both what onnxruntime maps into memory and a safetensors file that any reader can list. A weight that two graphs use
is stored once.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import safetensors.torch
import torch
from torch import Tensor, nn

from .attention import add_definition

#: LayerNormalization needs 17, and Gelu with its tanh form 20.
OPSET = 20

#: Tensors up to this many elements stay inside the graph's own file.
_INLINE_ELEMENTS = 64


@dataclass(frozen=True)
class GraphSource:
    """A module to trace, with what its ONNX inputs and outputs are called.

    Attributes:
        module: the graph, in evaluation mode.
        inputs: example inputs by name, in the order of ``forward``.
        dynamic: per input, the names of its dynamic axes by index.
        outputs: names of the outputs and of their axes.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Sequence[str | int]]


def trace(source: GraphSource) -> ir.Model:
    """Trace a graph with ``torch.onnx``; its weights stay references to the module's tensors, not copies."""
    axes = sorted({axis for axes in source.dynamic.values() for axis in axes.values()})
    dims = {axis: torch.export.Dim(axis, min=1, max=2**20) for axis in axes}
    shapes = tuple({i: dims[a] for i, a in source.dynamic.get(name, {}).items()} for name in source.inputs)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            source.module.eval(),
            tuple(source.inputs.values()),
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
    _tidy(model, source)
    add_definition(model)
    return model


def write_graphs(models: Mapping[str, ir.Model], weights_path: Path) -> None:
    """Write each model to the file it is keyed by, beside ``weights_path``, which gets the weights of all.

    Raises:
        ValueError: two graphs use one name for different weights.
    """
    weights: dict[str, Tensor] = {}
    for file, model in models.items():
        for name, tensor in _large_initializers(model):
            if name in weights and not _same(weights[name], tensor):
                raise ValueError(f"{file} uses the name {name} for other weights than an earlier graph")
            weights.setdefault(name, tensor)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, weights_path)

    locations = _locate(weights_path)
    for file, model in models.items():
        for name, _ in list(_large_initializers(model)):
            offset, length = locations[name]
            value = model.graph.initializers[name]
            assert value.const_value is not None
            value.const_value = ir.ExternalTensor(
                weights_path.name,
                offset,
                length,
                value.const_value.dtype,
                shape=ir.Shape(value.const_value.shape.numpy()),
                name=name,
                base_dir=weights_path.parent,
            )
        ir.save(model, weights_path.parent / file)


def _large_initializers(model: ir.Model) -> Iterator[tuple[str, Tensor]]:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if tensor.size > _INLINE_ELEMENTS:
            raw = tensor.raw
            yield name, raw.detach() if isinstance(raw, Tensor) else torch.from_numpy(tensor.numpy())


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def _locate(path: Path) -> dict[str, tuple[int, int]]:
    """Absolute offset and length in bytes of every tensor in a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: (8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _tidy(model: ir.Model, source: GraphSource) -> None:
    """Leave only what a reader or another parser needs: named axes, no trace of this machine's source files."""
    for value, axes in zip(model.graph.outputs, source.outputs.values(), strict=True):
        value.shape = ir.Shape(axes)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
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
