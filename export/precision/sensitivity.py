"""Loss of the results from each layer alone in another type, by which layers are chosen to go back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import onnx_ir as ir

from fgclip_rt.arrays import Array
from fgclip_rt.backends import Backend, Result
from fgclip_rt.bundle import Bundle
from fgclip_rt.graphs import Graph, Graphs, ImageInputs, Inputs, TextInputs
from fgclip_rt.manifest import FP32
from fgclip_rt.probe import Probe, ProbeImage, ProbeTexts
from fgclip_rt.progress import BeginStage, silent

from .division import divide
from .graph_backend import GraphBackend
from .lower import FLOAT
from .switches import CHOSEN, Choice, SwitchedBackend, switched

#: Layers of one switched graph, which holds two forms of each weight. They are near each other in the graph's order, so
#: that much of it is the same for all.
_SWITCHED = 24

#: Largest number of patches of all images that are run, unless every image has more. More of them rank the layers alike
#: and take longer.
_MOST_PATCHES = 128

#: Largest number of tokens of a walk type's texts, unless two have more. Two texts alone rank the layers worse.
_MOST_TOKENS = 320


class Loss(NamedTuple):
    """A loss that can be measured.

    Attributes:
        graph: ``vision``, ``dense`` or ``text``.
        layer: one of its layers.
        dtype: the type of that layer; all others are in float32.
    """

    graph: str
    layer: str
    dtype: ir.DataType


class Sensitivity:
    """Runs a graph with one layer in another type, and compares it with itself in float32. Losses are kept."""

    def __init__(
        self, bundle: Bundle, graphs: Mapping[str, ir.Model], probe: Probe, ranges: Mapping[str, float]
    ) -> None:
        """Prepare to run graphs.

        Args:
            bundle: the bundle with float32 whose folder holds the graphs' weights.
            graphs: float32 graphs, by name.
            probe: the probe whose texts and one or more of whose smaller images are run.
            ranges: as for :func:`fgclip_rt.export.precision.lower.lower`.
        """
        self._bundle, self._graphs, self._ranges = bundle, graphs, ranges
        walk_types = bundle.manifest.text.walk_types
        images = [ImageInputs(image.patches[np.newaxis], image.grid[np.newaxis]) for image in _chosen(probe.images)]
        texts = [_some_texts(texts, walk_types[name].index) for name, texts in probe.walk_types.items()]
        self._inputs: dict[str, Sequence[Inputs]] = {"vision": images, "dense": images, "text": texts}
        self._exact: dict[str, Array] = {}
        self._costs: dict[Loss, float] = {}

    def costs(self, losses: Sequence[Loss], begin: BeginStage = silent, stage: str = "find losses") -> list[float]:
        """One minus the mean cosine between the vectors of a graph with and without a layer in another type.

        Args:
            losses: the losses to measure; those that were measured before are known.
            begin: is told how many are measured.
            stage: the name of the work, for ``begin``.

        Returns:
            The losses, in their order; infinity where a vector is not finite.
        """
        done = begin(stage, len(losses))
        for loss in losses:
            if loss in self._costs:
                done()
        for graph, dtype, missing in _together([loss for loss in losses if loss not in self._costs]):
            measure = self._prepare(graph, missing, dtype)
            for layer in missing:
                self._costs[Loss(graph, layer, dtype)] = measure(layer)
                done()
        return [self._costs[loss] for loss in losses]

    def is_finite(self, backend: Backend, graphs: Collection[str]) -> bool:
        """Whether a backend's vectors of all measured inputs are numbers, in those ``graphs`` that have a tower."""
        return all(np.isfinite(self._vectors(graph, backend)).all() for graph in self._inputs if graph in graphs)

    def measured_in(self, layer: str, dtype: ir.DataType) -> str | None:
        """A graph in which the loss from a layer in ``dtype`` is known; None if there is none."""
        return next((known.graph for known in self._costs if known[1:] == (layer, dtype)), None)

    def _prepare(self, graph: str, layers: Sequence[str], dtype: ir.DataType) -> Callable[[str], float]:
        """Get ready to measure the loss of a graph from any one of some layers in ``dtype``."""
        choices = dict.fromkeys(layers, Choice(FLOAT, dtype))
        model = switched(self._graphs[graph], choices, self._ranges)
        backend = _Divided(self._bundle, graph, model, layers)
        if graph not in self._exact:
            self._exact[graph] = self._vectors(graph, backend)
        exact = self._exact[graph]

        def measure(layer: str) -> float:
            backend.chosen = [layer]
            actual = self._vectors(graph, backend)
            if not np.isfinite(actual).all():
                return math.inf
            lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(exact, axis=1)
            return float(1 - np.mean((actual * exact).sum(axis=1) / np.maximum(lengths, 1e-30)))

        return measure

    def _vectors(self, graph: str, backend: Backend) -> Array:
        """Vectors float64 [n, D] of the chosen images, of their patches, or of the texts."""
        graphs = Graphs(self._bundle, backend)
        outputs = [graphs.run(cast("Graph", graph), inputs, normalize=False).result() for inputs in self._inputs[graph]]
        # Losses of one layer in 16 bits are below what a cosine in float32 can tell.
        return np.concatenate([vectors.reshape(-1, graphs.dim) for vectors in outputs]).astype(np.float64)


class _Divided:
    """Runs a switched graph, of which it computes once for each input what no choice changes.

    Attributes:
        chosen: as of :class:`SwitchedBackend`.
    """

    precision = FP32
    device = "cpu"

    def __init__(self, bundle: Bundle, graph: str, model: ir.Model, choices: Sequence[str]) -> None:
        before, after = divide(model, CHOSEN)
        self._results = [] if before is None else [str(value.name) for value in before.graph.outputs]
        self._before = GraphBackend(bundle, FP32, {} if before is None else {graph: before})
        self._after = SwitchedBackend(bundle, {graph: after}, choices)
        # By the identity of the inputs, which stay in memory beside them.
        self._known: dict[tuple[int, ...], Mapping[str, Array]] = {}
        self.chosen: Collection[str] = ()

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """As :meth:`fgclip_rt.backends.Backend.submit`, for inputs that are not changed afterwards."""
        key = tuple(map(id, inputs.values()))
        if key not in self._known:
            results = self._before.submit(graph, inputs, self._results).result() if self._results else []
            self._known[key] = {**inputs, **dict(zip(self._results, results, strict=True))}
        self._after.chosen = self.chosen
        return self._after.submit(graph, self._known[key], outputs)

    def batch_size(self, graph: str, length: int) -> int:
        """As :meth:`fgclip_rt.backends.Backend.batch_size`."""
        return self._after.batch_size(graph, length)


def _together(losses: Sequence[Loss]) -> Iterator[tuple[str, ir.DataType, Sequence[str]]]:
    """Graphs, types and layers of losses that one switched graph can measure."""
    layers: dict[tuple[str, ir.DataType], dict[str, None]] = {}
    for loss in losses:
        layers.setdefault((loss.graph, loss.dtype), {})[loss.layer] = None
    for (graph, dtype), names in layers.items():
        for start in range(0, len(names), _SWITCHED):
            yield graph, dtype, list(names)[start : start + _SWITCHED]


def _chosen(images: Sequence[ProbeImage]) -> list[ProbeImage]:
    """The largest images that are small enough together; the smallest image if none is."""
    by_size = sorted(images, key=lambda image: -len(image.patches))
    chosen: list[ProbeImage] = []
    for image in by_size:
        together = len(image.patches) + sum(len(other.patches) for other in chosen)
        if together <= _MOST_PATCHES:
            chosen.append(image)
    return chosen or by_size[-1:]


def _some_texts(texts: ProbeTexts, walk_type: int) -> TextInputs:
    """Texts from the shortest to the longest; two at least, if there are as many."""
    count, length = texts.input_ids.shape
    by_length = np.argsort(texts.attention_mask.sum(axis=1), kind="stable")
    rows = by_length[np.linspace(0, count - 1, min(count, max(2, _MOST_TOKENS // length))).round().astype(int)]
    return TextInputs(texts.input_ids[rows], np.full(len(rows), walk_type, np.int32), texts.attention_mask[rows])
