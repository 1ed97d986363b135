"""Loss of the results from each layer alone in another type, by which layers are chosen to go back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

from .graph_backend import GraphBackend
from .switches import CHOSEN, NONE, switched

#: Layers of one switched graph, which holds two forms of each weight.
_SWITCHED = 24

#: Largest number of patches of an image that is run, and of all of them, unless the model's images all have more; and
#: of the tokens of a walk type's texts, unless two have more. More of them rank the layers alike and take longer.
_MOST_PATCHES, _MOST_TOGETHER = 256, 320


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
        missing: dict[tuple[str, ir.DataType], dict[str, Loss]] = {}
        for loss in losses:
            if loss in self._costs:
                done()
            else:
                missing.setdefault((loss.graph, loss.dtype), {})[loss.layer] = loss
        for (graph, dtype), by_layer in missing.items():
            for start in range(0, len(by_layer), _SWITCHED):
                layers = list(by_layer)[start : start + _SWITCHED]
                for layer, cost in zip(layers, self._measure(graph, layers, dtype), strict=True):
                    self._costs[by_layer[layer]] = cost
                    done()
        return [self._costs[loss] for loss in losses]

    def measured_in(self, layer: str, dtype: ir.DataType) -> str | None:
        """A graph in which the loss from a layer in ``dtype`` is known; None if there is none."""
        return next((known.graph for known in self._costs if known[1:] == (layer, dtype)), None)

    def _measure(self, graph: str, layers: Sequence[str], dtype: ir.DataType) -> Iterator[float]:
        backend = _Switched(self._bundle, graph, switched(self._graphs[graph], layers, dtype, self._ranges))
        if graph not in self._exact:
            self._exact[graph] = self._vectors(graph, backend)
        exact = self._exact[graph]
        for backend.chosen in range(len(layers)):
            actual = self._vectors(graph, backend)
            if np.isfinite(actual).all():
                lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(exact, axis=1)
                yield float(1 - np.mean((actual * exact).sum(axis=1) / np.maximum(lengths, 1e-30)))
            else:
                yield float("inf")

    def _vectors(self, graph: str, backend: Backend) -> Array:
        """Vectors float64 [n, D] of the chosen images, of their patches, or of the texts."""
        graphs = Graphs(self._bundle, backend)
        outputs = [graphs.run(cast("Graph", graph), inputs, normalize=False).result() for inputs in self._inputs[graph]]
        # Losses of one layer in 16 bits are below what a cosine in float32 can tell.
        return np.concatenate([vectors.reshape(-1, graphs.dim) for vectors in outputs]).astype(np.float64)


class _Switched(GraphBackend):
    """Runs one switched graph.

    Attributes:
        chosen: place of the layer that is in its other type.
    """

    def __init__(self, bundle: Bundle, graph: str, model: ir.Model) -> None:
        super().__init__(bundle, FP32, {graph: model})
        self.chosen = NONE

    def submit(self, graph: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Result:
        """As :meth:`GraphBackend.submit`."""
        return super().submit(graph, {**inputs, CHOSEN: np.asarray(self.chosen)}, outputs)


def _chosen(images: Sequence[ProbeImage]) -> list[ProbeImage]:
    """The largest images that are small enough, as many as are together; the smallest image if none is."""
    by_size = sorted(images, key=lambda image: -len(image.patches))
    chosen: list[ProbeImage] = []
    for image in by_size:
        together = len(image.patches) + sum(len(other.patches) for other in chosen)
        if len(image.patches) <= _MOST_PATCHES and together <= _MOST_TOGETHER:
            chosen.append(image)
    return chosen or by_size[-1:]


def _some_texts(texts: ProbeTexts, walk_type: int) -> TextInputs:
    """Texts from the shortest to the longest; two at least, if there are as many."""
    count, length = texts.input_ids.shape
    by_length = np.argsort(texts.attention_mask.sum(axis=1), kind="stable")
    rows = by_length[np.linspace(0, count - 1, min(count, max(2, _MOST_TOGETHER // length))).round().astype(int)]
    return TextInputs(texts.input_ids[rows], np.full(len(rows), walk_type, np.int32), texts.attention_mask[rows])
