"""ONNX models to files that share safetensors files of weights.

The external data of every graph lies in safetensors files. ONNX addresses bytes by offset, so onnxruntime maps the same
file into memory that any safetensors reader can list. A weight that two graphs use is stored once.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import safetensors.torch
import torch
from torch import Tensor

#: Tensors up to this many elements stay inside the graph's own file.
_INLINE_ELEMENTS = 64

#: Types by safetensors' names.
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


class WeightFiles:
    """The weights of the graphs in one folder: safetensors files in which a tensor of one name is stored once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stored: dict[str, ir.ExternalTensor] = {}

    def write(self, models: Mapping[str, ir.Model], weights: str, *, lasting: bool = True) -> None:
        """Write models to the files they are keyed by, and tensors that the folder lacks to the file ``weights``.

        The initializers of the models then refer to the folder's files.

        Args:
            models: by file name.
            weights: name of the safetensors file for new tensors. It is not written if there are none.
            lasting: whether later models may refer to the file too.

        Raises:
            ValueError: one name stands for two different tensors.
        """
        new: dict[str, Tensor] = {}
        for file, model in models.items():
            for name, value in _large_initializers(model):
                tensor = _torch_tensor(value)
                earlier = _torch_tensor(self._stored[name]) if name in self._stored else new.setdefault(name, tensor)
                if not _same(earlier, tensor):
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
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
        if tensor.dtype in _TORCH_ONLY:
            return torch.from_numpy(array.view(f"i{array.itemsize}")).view(_TORCH_ONLY[tensor.dtype])
        return torch.from_numpy(array)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def _tensors(path: Path) -> Iterator[ir.ExternalTensor]:
    """Every tensor of a safetensors file, by its offset and length in bytes."""
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
