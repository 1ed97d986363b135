"""Values in a model while it runs.

Of the inputs of linear layers: some rows, and the range that holds nearly all values, also once their channels are
rescaled. Of sums with the residual stream: the largest magnitude.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx_ir as ir

from fgclip_rt.arrays import Array, FloatArray
from fgclip_rt.backends import Finished, Result
from fgclip_rt.bundle import Bundle
from fgclip_rt.manifest import FP32

from .graph_backend import GraphBackend
from .layers import Kind, Layer, find_residuals

#: Name of the method for the manifest: :data:`_PERCENTILE` per cent of the values lie within the range.
METHOD: Literal["percentile"] = "percentile"

_PERCENTILE = 99.999
#: Largest magnitudes of a value that are kept, of which :data:`_PERCENTILE` needs one. They suffice for 3.2 billion.
_KEPT = 2**15
#: Largest magnitudes of a channel that are kept, if channels may be rescaled. They suffice for 40,000 rows of 1,152
#: channels however these are rescaled, and for more unless most of the largest come from few channels.
_KEPT_OF_A_CHANNEL = 2**9
#: Rows that are kept of each run, besides the row with the largest value.
_ROWS_PER_RUN = 8


class Observations:
    """Rows, peaks and largest magnitudes of the values in graphs, over many runs."""

    def __init__(self, layers: Mapping[str, Sequence[Layer]], rescaled: Collection[str] = ()) -> None:
        """Observe nothing yet.

        Args:
            layers: layers and sums to watch, by graph.
            rescaled: names of layers whose input may be rescaled by channel.
        """
        self._linear = {name: _of_kind("linear", of_graph) for name, of_graph in layers.items()}
        self._sums = {name: _of_kind("residual", of_graph) for name, of_graph in layers.items()}
        self._by_channel = {
            (graph, _input(layer))
            for graph, of_graph in self._linear.items()
            for layer in of_graph
            if layer.name in rescaled
        }
        # By graph and value, because several layers may read one value.
        self._rows: dict[tuple[str, str], list[FloatArray]] = {}
        self._largest: dict[tuple[str, str], _Largest] = {}
        self._peaks: dict[str, Array] = {}
        self._random = np.random.default_rng(0)

    def values(self, graph: str) -> list[str]:
        """Names of the values of a graph to observe: inputs of linear layers."""
        return list(dict.fromkeys(map(_input, self._linear.get(graph, ()))))

    def sums(self, graph: str) -> Sequence[Layer]:
        """Sums of a graph whose peaks to observe."""
        return self._sums.get(graph, ())

    def add(self, graph: str, results: Mapping[str, Array]) -> None:
        """Take a run into account.

        Args:
            graph: the graph that ran.
            results: its values and the peaks of its sums, by name.
        """
        for name in self.values(graph):
            self._add_value((graph, name), results[name].reshape(-1, results[name].shape[-1]))
        for layer in self.sums(graph):
            self._peaks[layer.name] = np.maximum(self._peaks.get(layer.name, 0), results[_peak(layer)])

    def rows(self) -> dict[str, FloatArray]:
        """Rows [n, in] of the input of each layer that ran, by its name: some of each run, and the largest of each."""
        return {name: np.concatenate(self._rows[value]) for name, value in self._inputs_that_ran()}

    def ranges(self, factors: Mapping[str, FloatArray] = MappingProxyType({})) -> dict[str, float]:
        """Largest magnitude worth representing in the input of each layer that ran, by its name.

        Args:
            factors: float32 [in], by which the channels of a rescaled layer's input are divided, by its name.
        """
        return {
            name: self._largest[value].percentile(_PERCENTILE, factors.get(name))
            for name, value in self._inputs_that_ran()
        }

    def peaks(self) -> dict[str, float]:
        """The largest magnitude that each sum read or wrote, by its name; not a number if a value was not."""
        return {name: float(peak) for name, peak in self._peaks.items()}

    def _inputs_that_ran(self) -> Iterator[tuple[str, tuple[str, str]]]:
        for graph, layers in self._linear.items():
            for layer in layers:
                if (graph, _input(layer)) in self._rows:
                    yield layer.name, (graph, _input(layer))

    def _add_value(self, value: tuple[str, str], rows: FloatArray) -> None:
        largest = int(np.abs(rows).max(axis=1).argmax())
        chosen = self._random.choice(len(rows), min(_ROWS_PER_RUN, len(rows)), replace=False)
        self._rows.setdefault(value, []).append(rows[[*chosen, largest]])
        if value in self._by_channel:
            self._largest.setdefault(value, _Largest(_KEPT_OF_A_CHANNEL)).add(rows)
        else:
            self._largest.setdefault(value, _Largest(_KEPT)).add(rows.reshape(-1, 1))


class ObservingBackend:
    """Runs float32 graphs on the CPU, and observes them.

    Attributes:
        observations: of all runs so far.
    """

    precision = FP32
    device = "cpu"

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, ir.Model],
        layers: Mapping[str, Sequence[Layer]],
        rescaled: Collection[str] = (),
    ) -> None:
        """Prepare to run graphs.

        Args:
            bundle: the bundle whose folder holds the weights of the graphs.
            graphs: float32 graphs, by name.
            layers: as for :class:`Observations`, and so is ``rescaled``.
            rescaled: names of layers.
        """
        self.observations = Observations(layers, rescaled)
        widened = {name: self._with_outputs(name, model) for name, model in graphs.items()}
        self._backend = GraphBackend(bundle, FP32, widened)

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """As :meth:`fgclip_rt.backends.Backend.submit`; the run is observed."""
        values, sums = self.observations.values(graph), self.observations.sums(graph)
        wanted = [*outputs, *values, *map(_peak, sums)]
        results = dict(zip(wanted, self._backend.submit(graph, inputs, wanted).result(), strict=True))
        self.observations.add(graph, results)
        return Finished([results[name] for name in outputs])

    def batch_size(self, graph: str, length: int) -> int:
        """The batch size of a backend for the bundle's own graphs."""
        return self._backend.batch_size(graph, length)

    def _with_outputs(self, graph: str, model: ir.Model) -> ir.Model:
        """A copy of a graph that also returns the values and the peaks of the sums that are observed."""
        model = model.clone()
        names = {layer.name for layer in self.observations.sums(graph)}
        for layer in find_residuals(model):
            if layer.name in names:
                _add_peak(model, layer)
        values = self.observations.values(graph)
        for node in model.graph:
            for value in node.outputs:
                if value.name in values and not value.is_graph_output():
                    value.type = ir.TensorType(ir.DataType.FLOAT)
                    model.graph.outputs.append(value)
        return model


class _Largest:
    """The largest magnitudes in each column of a value, over many runs."""

    def __init__(self, kept: int) -> None:
        self._most = kept
        self._count = 0
        # Parts float32 [columns, n] of what each column kept. They lie by column, because to select is slow otherwise.
        self._kept: list[FloatArray] = []
        # No magnitude of a column that was left out exceeds this.
        self._least: FloatArray = np.zeros(1, np.float32)

    def add(self, values: FloatArray) -> None:
        """Take the values [n, columns] of a run into account."""
        sizes = np.abs(values)
        self._count += sizes.size
        self._kept.append(sizes.compress((sizes >= self._least).any(axis=1), axis=0).T)
        if sum(part.shape[1] for part in self._kept) > 3 * self._most:
            kept = np.ascontiguousarray(np.concatenate(self._kept, axis=1))
            kept.partition(kept.shape[1] - self._most, axis=1)
            kept = kept[:, -self._most :].copy()
            self._kept, self._least = [kept], kept.min(axis=1)

    def percentile(self, percent: float, factors: FloatArray | None = None) -> float:
        """The magnitude that at least ``percent`` of all values do not exceed, once columns are divided by factors.

        It is the least of this kind, unless more values of a column exceed it than are kept.
        """
        factors = np.ones(1, np.float32) if factors is None else factors
        sizes = (np.concatenate(self._kept, axis=1) / factors[:, None]).ravel()
        beyond = int(self._count * (1 - percent / 100))
        place = max(0, len(sizes) - 1 - beyond)
        return float(max(np.partition(sizes, place)[place], (self._least / factors).max()))


def _of_kind(kind: Kind, layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer.kind == kind]


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
