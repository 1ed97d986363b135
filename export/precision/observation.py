"""Values in a model while it runs.

Of the inputs of linear layers: some rows, and the range that holds nearly all values. Of sums with the residual stream:
the largest magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from fgclip_rt.arrays import Array, FloatArray
from fgclip_rt.backends import Finished, Result
from fgclip_rt.bundle import Bundle
from fgclip_rt.manifest import FP32

from .graph_backend import GraphBackend
from .layers import Layer, find_residuals

#: Name of the method for the manifest: :data:`_PERCENTILE` per cent of the values lie within the range.
METHOD: Literal["percentile"] = "percentile"

_PERCENTILE = 99.999
#: Largest magnitudes of a value that are kept, of which :data:`_PERCENTILE` needs one. They suffice for 3.2 billion.
_KEPT = 2**15
#: Rows that are kept of each run, besides the row with the largest value.
_ROWS_PER_RUN = 8


class ObservingBackend:
    """Runs float32 graphs on the CPU, and keeps rows of the inputs of linear layers and the peaks of sums."""

    precision = FP32
    device = "cpu"

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, ir.Model],
        layers: Mapping[str, Sequence[Layer]],
        *,
        find_ranges: bool = False,
    ) -> None:
        """Prepare to run graphs.

        Args:
            bundle: the bundle whose folder holds the weights of the graphs.
            graphs: float32 graphs, by name.
            layers: layers of the graphs to watch, by graph.
            find_ranges: collect magnitudes for :meth:`ranges`, which takes time.
        """
        self._sums = {
            name: [layer for layer in of_graph if layer.kind == "residual"] for name, of_graph in layers.items()
        }
        self._layers = {
            name: [layer for layer in of_graph if layer.kind == "linear"] for name, of_graph in layers.items()
        }
        widened = {name: self._with_outputs(name, model) for name, model in graphs.items()}
        self._backend = GraphBackend(bundle, FP32, widened)
        # By graph and value, because several layers may read one value.
        self._rows: dict[tuple[str, str], list[FloatArray]] = {}
        self._peaks: dict[str, Array] = {}
        self._random = np.random.default_rng(0)
        self._magnitudes: dict[tuple[str, str], _Largest] | None = {} if find_ranges else None

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """As :meth:`fgclip_rt.backends.Backend.submit`; rows of the watched layers' inputs are kept."""
        watched, sums = self._watched(graph), self._sums.get(graph, ())
        wanted = [*outputs, *watched, *map(_peak, sums)]
        results = dict(zip(wanted, self._backend.submit(graph, inputs, wanted).result(), strict=True))
        for name in watched:
            self._note(graph, name, results[name])
        for layer in sums:
            self._peaks[layer.name] = np.maximum(self._peaks.get(layer.name, 0), results[_peak(layer)])
        return Finished([results[name] for name in outputs])

    def batch_size(self, graph: str, length: int) -> int:
        """The batch size of a backend for the bundle's own graphs."""
        return self._backend.batch_size(graph, length)

    def rows(self) -> dict[str, FloatArray]:
        """Rows [n, in] of the input of each layer that ran, by its name: some of each run, and the largest of each."""
        return {
            layer.name: np.concatenate(self._rows[graph, _input(layer)])
            for graph, layers in self._layers.items()
            for layer in layers
            if (graph, _input(layer)) in self._rows
        }

    def ranges(self) -> dict[str, float]:
        """Largest magnitude worth representing in the input of each layer that ran, by its name."""
        assert self._magnitudes is not None
        return {
            layer.name: self._magnitudes[graph, _input(layer)].percentile(_PERCENTILE)
            for graph, layers in self._layers.items()
            for layer in layers
            if (graph, _input(layer)) in self._magnitudes
        }

    def peaks(self) -> dict[str, float]:
        """The largest magnitude that each sum read or wrote, by its name; not a number if a value was not."""
        return {name: float(peak) for name, peak in self._peaks.items()}

    def _with_outputs(self, graph: str, model: ir.Model) -> ir.Model:
        """A copy of a graph that also returns the inputs of its watched layers and the peaks of its sums."""
        model = model.clone()
        names = {layer.name for layer in self._sums.get(graph, ())}
        for layer in find_residuals(model):
            if layer.name in names:
                _add_peak(model, layer)
        watched = self._watched(graph)
        for node in model.graph:
            for value in node.outputs:
                if value.name in watched and not value.is_graph_output():
                    value.type = ir.TensorType(ir.DataType.FLOAT)
                    model.graph.outputs.append(value)
        return model

    def _watched(self, graph: str) -> list[str]:
        return list(dict.fromkeys(map(_input, self._layers.get(graph, ()))))

    def _note(self, graph: str, name: str, value: FloatArray) -> None:
        rows = value.reshape(-1, value.shape[-1])
        largest = int(np.abs(rows).max(axis=1).argmax())
        chosen = self._random.choice(len(rows), min(_ROWS_PER_RUN, len(rows)), replace=False)
        self._rows.setdefault((graph, name), []).append(rows[[*chosen, largest]])
        if self._magnitudes is not None:
            self._magnitudes.setdefault((graph, name), _Largest()).add(value)


class _Largest:
    """The largest magnitudes of a value over many runs."""

    def __init__(self) -> None:
        self._count = 0
        self._kept = np.zeros(0, np.float32)
        self._least = np.float32(0)

    def add(self, values: FloatArray) -> None:
        """Take the values of a run into account."""
        sizes = np.abs(values).ravel()
        self._count += sizes.size
        kept = np.concatenate([self._kept, sizes[sizes >= self._least]])
        if len(kept) > 2 * _KEPT:
            kept = np.partition(kept, len(kept) - _KEPT)[-_KEPT:]
            self._least = kept.min()
        self._kept = kept

    def percentile(self, percent: float) -> float:
        """The magnitude that ``percent`` of all values do not exceed."""
        beyond = min(int(self._count * (1 - percent / 100)), len(self._kept) - 1)
        place = len(self._kept) - 1 - beyond
        return float(np.partition(self._kept, place)[place])


def _peak(layer: Layer) -> str:
    return f"{layer.name}.peak"


def _add_peak(model: ir.Model, layer: Layer) -> None:
    """Have a graph return the largest magnitude of a sum's inputs and result, a scalar."""
    sizes = [ir.node("Abs", [value]) for value in (*layer.activations, *layer.node.outputs)]
    peaks = [ir.node("ReduceMax", size.outputs, {"keepdims": 0}) for size in sizes]
    peak = ir.node("Max", [peak.outputs[0] for peak in peaks])
    output = peak.outputs[0]
    output.name, output.type, output.shape = _peak(layer), ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    model.graph.insert_after(layer.node, [*sizes, *peaks, peak])
    model.graph.outputs.append(output)


def _input(layer: Layer) -> str:
    (value,) = layer.activations
    return str(value.name)
