"""Graph modules to ONNX files that share safetensors files of weights.

The external data of every graph lies in safetensors files: ONNX addresses bytes by offset, so the same file is both
what onnxruntime maps into memory and one that any reader can list. A weight that two graphs use is stored once.
"""

from __future__ import annotations

import ast
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import safetensors.torch
import torch
from torch import Tensor, nn

from .attention import DOMAIN as ATTENTION_DOMAIN
from .attention import add_definition

#: LayerNormalization needs 17, and Gelu with its tanh form 20.
OPSET = 20

#: Tensors up to this many elements stay inside the graph's own file.
_INLINE_ELEMENTS = 64

#: By safetensors' names.
_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "I8": ir.DataType.INT8,
    "I64": ir.DataType.INT64,
}

#: Types that NumPy lacks, as PyTorch has them.
_TORCH_ONLY = {ir.DataType.BFLOAT16: torch.bfloat16, ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn}


@dataclass(frozen=True)
class GraphSource:
    """A module to trace, with what its ONNX inputs and outputs are called.

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
    _tidy(model, source)
    add_definition(model)
    return model


class WeightFiles:
    """The weights of the graphs in one folder: safetensors files in which a tensor of one name is stored once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stored: dict[str, ir.ExternalTensor] = {}

    def write(self, models: Mapping[str, ir.Model], weights: str, *, lasting: bool = True) -> None:
        """Write models to the files they are keyed by, and what the folder does not hold yet to the file ``weights``.

        The initializers of the models then refer to the folder's files.

        Args:
            models: by file name.
            weights: name of the safetensors file for new tensors. It is not written when there are none.
            lasting: whether later models may refer to the file too.

        Raises:
            ValueError: one name stands for two different tensors.
        """
        new: dict[str, Tensor] = {}
        for file, model in models.items():
            for name, value in _large_initializers(model):
                tensor = _torch_tensor(value)
                known = _torch_tensor(self._stored[name]) if name in self._stored else new.setdefault(name, tensor)
                if not _same(known, tensor):
                    raise ValueError(f"{file} uses the name {name} for other weights than an earlier graph")
        stored = dict(self._stored)
        if new:
            path = self._folder / weights
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in new.items()}, path)
            stored |= {str(tensor.name): tensor for tensor in _tensors(path)}
        for file, model in models.items():
            for name, _ in list(_large_initializers(model)):
                model.graph.initializers[name].const_value = stored[name]
            ir.save(model, self._folder / file)
        if lasting:
            self._stored = stored

    def remove(self, weights: str) -> None:
        """Remove a file of weights, if it is there; no graph that is kept may refer to it."""
        self._stored = {name: tensor for name, tensor in self._stored.items() if str(tensor.location) != weights}
        (self._folder / weights).unlink(missing_ok=True)


def has_weights(model: ir.Model) -> bool:
    """Whether a model has any initializer that does not stay inside its own file."""
    return any(True for _ in _large_initializers(model))


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """The initializers of a model that lie in other files."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value


def _large_initializers(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if tensor.size > _INLINE_ELEMENTS:
            yield name, tensor


def _torch_tensor(tensor: ir.TensorProtocol) -> Tensor:
    if isinstance(tensor.raw, Tensor):
        return tensor.raw.detach()
    array = np.asarray(tensor.numpy())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and nobody writes
        if tensor.dtype in _TORCH_ONLY:
            return torch.from_numpy(array.view(f"i{array.itemsize}")).view(_TORCH_ONLY[tensor.dtype])
        return torch.from_numpy(array)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def _tensors(path: Path) -> Iterator[ir.ExternalTensor]:
    """Every tensor of a safetensors file, by its place in bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        yield ir.ExternalTensor(
            path.name,
            8 + size + start,
            stop - start,
            _DTYPES[entry["dtype"]],
            shape=ir.Shape(entry["shape"]),
            name=name,
            base_dir=path.parent,
        )


def _tidy(model: ir.Model, source: GraphSource) -> None:
    """Leave only what a reader or another parser needs: named axes, the modules' names on attention and norms, and no
    trace of this machine's source files.
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
