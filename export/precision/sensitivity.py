"""Loss of the results from each layer alone in another type, by which layers are chosen to go back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from fgclip_rt.arrays import FloatArray
from fgclip_rt.bundle import Bundle
from fgclip_rt.manifest import FP32
from fgclip_rt.model import Model
from fgclip_rt.probe import Probe

from .emulation import emulate
from .graph_backend import GraphBackend
from .lower import lower

#: Largest number of patches of an image that is run: larger images tell little more and take longer.
_MOST_PATCHES = 256


class Sensitivity:
    """Runs a graph with one layer in another type, and compares it with itself in float32."""

    def __init__(self, bundle: Bundle, graphs: Mapping[str, ir.Model], probe: Probe) -> None:
        """Prepare to run graphs.

        Args:
            bundle: the bundle with float32 whose folder holds the graphs' weights.
            graphs: float32 graphs, by name.
            probe: the probe whose texts and smaller images are run.
        """
        self._bundle, self._graphs = bundle, graphs
        images = tuple(image for image in probe.images if len(image.patches) <= _MOST_PATCHES)
        self._probe = Probe(images, probe.walk_types, probe.logits)
        self._exact: dict[str, FloatArray] = {}

    def cost(self, graph: str, layer: str, dtype: ir.DataType, ranges: Mapping[str, float]) -> float:
        """One minus the mean cosine between the vectors of ``graph`` with and without ``layer`` in ``dtype``.

        Args:
            graph: ``vision``, ``dense`` or ``text``.
            layer: one of its layers.
            dtype: the type of that layer; all others are in float32.
            ranges: as for :func:`fgclip_rt.export.precision.lower.lower`.

        Returns:
            The loss; infinity if a vector is not finite.
        """
        if graph not in self._exact:
            self._exact[graph] = self._run(graph, self._graphs[graph])
        exact = self._exact[graph]
        actual = self._run(graph, emulate(lower(self._graphs[graph], {layer: dtype}, ranges)))
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
            for walk_type, texts in self._probe.walk_types.items():
                yield model.embed_texts(texts.texts, walk_type, normalize=False)
        for image in self._probe.images:
            if graph == "vision":
                yield model.embed_images(image.rgb, normalize=False)
            elif graph == "dense":
                (dense,) = model.dense_features(image.rgb, normalize=False)
                yield dense.reshape(-1, model.dim)
