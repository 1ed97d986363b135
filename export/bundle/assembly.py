"""A bundle in the making: its folder, the precisions written so far, and their manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import onnx_ir as ir

from fgclip_rt.bundle import MANIFEST, Bundle, file_info, other_files, sha256
from fgclip_rt.manifest import FP32, GraphFile, Limits, Lowering, Manifest, ParityRow, TensorSpec

from .weights import WeightFiles, external_tensors, has_weights

_T = TypeVar("_T")


class Assembly:
    """The folder of a bundle that is being written.

    Attributes:
        folder: its path.
        manifest: describes the graphs written so far; ``files`` is empty until :meth:`finish`.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Begin in ``folder``, which holds the tokenizer and the probe, with a manifest that has no graphs."""
        self.folder = folder
        self._weights = WeightFiles(folder)
        self.manifest = manifest

    def write(
        self, precision: str, models: Mapping[str, ir.Model], limits: Limits, lowering: Lowering | None = None
    ) -> None:
        """Write the graphs of a precision, and remove the graphs that it had."""
        self.remove(precision)
        # A graph with no weights is the same in every precision.
        files = {
            name: f"{name}.onnx" if precision == FP32 or not has_weights(model) else f"{name}.{precision}.onnx"
            for name, model in models.items()
        }
        self._weights.write({files[name]: model for name, model in models.items()}, _weights_name(precision))
        parity = self.manifest.parity
        self._change(
            graphs={
                name: {**self.manifest.graphs.get(name, {}), precision: _graph_file(files[name], model)}
                for name, model in models.items()
            },
            lowering=self.manifest.lowering if lowering is None else {**self.manifest.lowering, precision: lowering},
            parity=msgspec.structs.replace(parity, limits={**parity.limits, precision: limits}),
        )

    def write_scratch(self, purpose: str, models: Mapping[str, ir.Model]) -> None:
        """Write models in memory to scratch files, so that onnxruntime can map their weights.

        :meth:`finish` removes the files.

        Args:
            purpose: a word that names the files. Models that were written for it before cannot be opened any more.
            models: by name.
        """
        weights = f"weights.{purpose}.safetensors"
        files = {f"{name}.{purpose}.onnx": model for name, model in models.items()}
        # Removed first, not overwritten, because an earlier file may still be mapped.
        self._weights.remove(weights)
        self._weights.write(files, weights, lasting=False)

    def set_exact_probe(self, file: str) -> None:
        """Record the file of the probe's results in float64, which the limits of fp32 alone would refuse."""
        self._change(parity=msgspec.structs.replace(self.manifest.parity, exact_probe=file))

    def set_measured(self, precision: str, rows: Sequence[ParityRow]) -> None:
        """Record the comparisons of a precision."""
        parity = self.manifest.parity
        measured = {**parity.measured, precision: tuple(rows)}
        self._change(parity=msgspec.structs.replace(parity, measured=measured))

    def remove(self, precision: str) -> None:
        """Remove a precision. No other may use its weights yet."""
        self._forget(precision)
        self._weights.remove(_weights_name(precision))

    def write_manifest(self) -> Bundle:
        """Write the manifest as it is now, and return the bundle that it describes, ready to run.

        A model of that bundle refuses to load more graphs once the manifest is written again.
        """
        path = self.folder / MANIFEST
        path.write_text(self.manifest.to_json(), encoding="utf-8")
        return Bundle(self.folder, self.manifest, sha256(path))

    def finish(self, precisions: Sequence[str]) -> None:
        """Write the whole manifest for ``precisions``, and remove files that they do not need."""
        dropped = [precision for precision in self.manifest.precisions if precision not in precisions]
        for precision in dropped:
            self._forget(precision)
        if dropped:
            self._repack()
        wanted = {self.manifest.text.tokenizer, *self.manifest.parity.files, *self._graph_files()}
        for file in self._graph_files():
            wanted |= {str(tensor.location) for tensor in external_tensors(ir.load(self.folder / file))}
        # The disk may add a folder of its own, such as a NAS's "@eaDir", which stays.
        for name in [name for name in other_files(self.folder, wanted) if not name.endswith("/")]:
            (self.folder / name).unlink()
        self._change(files={name: file_info(self.folder / name) for name in sorted(wanted)})
        self.write_manifest()

    def _repack(self) -> None:
        """Write the weights of the remaining precisions anew, so that no file holds unused ones."""
        new = self.folder / "repacked"
        new.mkdir()
        weights = WeightFiles(new)
        for precision in self.manifest.precisions:
            files = {graph[precision].file for graph in self.manifest.graphs.values()}
            weights.write({file: ir.load(self.folder / file) for file in sorted(files)}, _weights_name(precision))
        for path in new.iterdir():
            path.replace(self.folder / path.name)
        new.rmdir()

    def _forget(self, precision: str) -> None:
        parity = self.manifest.parity
        self._change(
            graphs={name: _without(graph, precision) for name, graph in self.manifest.graphs.items()},
            lowering=_without(self.manifest.lowering, precision),
            parity=msgspec.structs.replace(
                parity,
                exact_probe=None if precision == FP32 else parity.exact_probe,
                limits=_without(parity.limits, precision),
                measured=_without(parity.measured, precision),
            ),
        )

    def _graph_files(self) -> set[str]:
        return {entry.file for graph in self.manifest.graphs.values() for entry in graph.values()}

    def _change(self, **parts: Any) -> None:
        self.manifest = msgspec.structs.replace(self.manifest, **parts)


def _without(entries: Mapping[str, _T], key: str) -> dict[str, _T]:
    return {name: entry for name, entry in entries.items() if name != key}


def _weights_name(precision: str) -> str:
    return "weights.safetensors" if precision == FP32 else f"weights.{precision}.safetensors"


def _graph_file(file: str, model: ir.Model) -> GraphFile:
    return GraphFile(
        file=file,
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
    )


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(name=value.name, dtype=np.dtype(value.dtype.numpy()).name, shape=shape)
