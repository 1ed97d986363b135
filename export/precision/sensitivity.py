"""Loss of the results from each layer alone in another type, by which layers are chosen to go back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fgclip_rt.arrays import FloatArray
from fgclip_rt.bundle import Bundle
from fgclip_rt.manifest import FP32
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe, ProbeImage

from .emulation import emulate
from .graph_backend import GraphBackend
from .lower import lower

#: Largest number of patches of an image that is run, and of all of them, unless the model's images all have more. More
#: patches rank the layers alike and take longer.
_MOST_PATCHES, _MOST_TOGETHER = 256, 320


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
        self._images, self._walk_types = _chosen(probe.images), probe.walk_types
        self._exact: dict[str, FloatArray] = {}
        self._costs: dict[tuple[str, str, ir.DataType], float] = {}

    def cost(self, graph: str, layer: str, dtype: ir.DataType) -> float:
        """One minus the mean cosine between the vectors of ``graph`` with and without ``layer`` in ``dtype``.

        Args:
            graph: ``vision``, ``dense`` or ``text``.
            layer: one of its layers.
            dtype: the type of that layer; all others are in float32.

        Returns:
            The loss; infinity if a vector is not finite.
        """
        key = graph, layer, dtype
        if key not in self._costs:
            self._costs[key] = self._measure(graph, layer, dtype)
        return self._costs[key]

    def measured_in(self, layer: str, dtype: ir.DataType) -> str | None:
        """A graph in which the loss from a layer in ``dtype`` is known; None if there is none."""
        return next((graph for graph, name, known in self._costs if (name, known) == (layer, dtype)), None)

    def _measure(self, graph: str, layer: str, dtype: ir.DataType) -> float:
        if graph not in self._exact:
            self._exact[graph] = self._run(graph, self._graphs[graph])
        exact = self._exact[graph]
        actual = self._run(graph, emulate(lower(self._graphs[graph], {layer: dtype}, self._ranges)))
        if not np.isfinite(actual).all():
            return float("inf")
        lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(exact, axis=1)
        return float(1 - np.mean((actual * exact).sum(axis=1) / np.maximum(lengths, 1e-30)))

    def _run(self, graph: str, model: ir.Model) -> FloatArray:
        return np.concatenate(
            list(self._vectors(graph, Model(self._bundle, GraphBackend(self._bundle, FP32, {graph: model}))))
        )

    def _vectors(self, graph: str, model: Model) -> Iterable[FloatArray]:
        if graph == "text":
            for walk_type, texts in self._walk_types.items():
                yield model.embed_texts(texts.texts, walk_type, normalize=False)
            return
        for image in self._images:
            if graph == "vision":
                yield model.embed_images(image.rgb, normalize=False)
            else:
                (dense,) = model.dense_features(image.rgb, normalize=False)
                yield dense.reshape(-1, model.dim)


def _chosen(images: Sequence[ProbeImage]) -> list[ProbeImage]:
    """The largest images that are small enough, as many as are together; the smallest image if none is."""
    by_size = sorted(images, key=lambda image: -len(image.patches))
    chosen: list[ProbeImage] = []
    for image in by_size:
        together = len(image.patches) + sum(len(other.patches) for other in chosen)
        if len(image.patches) <= _MOST_PATCHES and together <= _MOST_TOGETHER:
            chosen.append(image)
    return chosen or by_size[-1:]
