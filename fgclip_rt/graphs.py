"""Typed calls of a bundle's graphs.

The inputs of a graph are a struct whose fields bear the tensors' names. A bundle's graph takes the fields that its
manifest lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from .arrays import Array, ByteArray, FloatArray, IntArray
from .backends import Backend, Finished, Result
from .bundle import Bundle
from .errors import ArgumentError
from .interface import (
    DENSE_FEATURES,
    IMAGE_EMBEDS,
    IMAGE_FEATURES,
    MASK_EMBEDS,
    MASK_FEATURES,
    REGION_EMBEDS,
    REGION_FEATURES,
    TEXT_EMBEDS,
    TEXT_FEATURES,
)
from .manifest import GraphFile
from .preparation import Patches, side_by_side
from .text import Tokens

Graph: TypeAlias = Literal["vision", "dense", "text", "region", "mask"]

#: For each graph, its output of length one and the reference's own. Dense features come only as the reference's own.
_OUTPUTS: dict[Graph, tuple[str, str]] = {
    "vision": (IMAGE_EMBEDS, IMAGE_FEATURES),
    "dense": (DENSE_FEATURES, DENSE_FEATURES),
    "text": (TEXT_EMBEDS, TEXT_FEATURES),
    "region": (REGION_EMBEDS, REGION_FEATURES),
    "mask": (MASK_EMBEDS, MASK_FEATURES),
}

#: For each optional graph, what a model lacks without it.
_WITHOUT = {
    "dense": "no dense features, and so neither maps nor regions",
    "region": "no features of regions",
    "mask": "no features of masks",
}


class ImageInputs(msgspec.Struct, frozen=True):
    """Prepared images side by side, for ``vision`` and ``dense``.

    Attributes:
        patches: uint8 [B, N, P·P·3], padded with zeros to the longest image.
        spatial_shapes: int32 [B, 2], rows and columns of each grid.
    """

    patches: ByteArray
    spatial_shapes: IntArray

    @classmethod
    def of(cls, batch: Sequence[Patches]) -> ImageInputs:
        """The inputs of one prepared image or more, of any grids."""
        return cls(side_by_side(batch), np.array([patches.grid for patches in batch], np.int32))


class TextInputs(msgspec.Struct, frozen=True):
    """Tokenised texts, for ``text``.

    Attributes:
        input_ids: int32 [B, L].
        walk_type: int32 [B], the index of each text's walk type in the manifest.
        attention_mask: int32 [B, L], one on real tokens.
    """

    input_ids: IntArray
    walk_type: IntArray
    attention_mask: IntArray

    @classmethod
    def of(cls, tokens: Tokens, walk_type: int) -> TextInputs:
        """The inputs of texts that share the walk type of this index."""
        return cls(tokens.input_ids, np.full(len(tokens.input_ids), walk_type, np.int32), tokens.attention_mask)


class RegionInputs(msgspec.Struct, frozen=True):
    """Boxes over dense features, for ``region``.

    Attributes:
        dense_features: float32 [B, N, D], as ``dense`` returns them.
        spatial_shapes: int32 [B, 2], rows and columns of each grid.
        boxes: float32 [R, 4], x1, y1, x2, y2 in units of the grid, as :func:`fgclip_rt.boxes.grid_boxes` gives them.
        box_images: int32 [R], the index in the batch of each box's image.
    """

    dense_features: FloatArray
    spatial_shapes: IntArray
    boxes: FloatArray
    box_images: IntArray

    @classmethod
    def of(cls, dense: FloatArray, patches: Patches, boxes: FloatArray) -> RegionInputs:
        """The inputs of ``boxes`` [r, 4], on the grid of one prepared image with dense features [1, N, D]."""
        return cls(dense, np.array([patches.grid], np.int32), boxes, np.zeros(len(boxes), np.int32))


class MaskInputs(msgspec.Struct, frozen=True):
    """Masks over dense features, for ``mask``.

    Attributes:
        dense_features: float32 [B, N, D], as ``dense`` returns them.
        masks: float32 [R, N], the weight of each patch.
        mask_images: int32 [R], the index in the batch of each mask's image.
    """

    dense_features: FloatArray
    masks: FloatArray
    mask_images: IntArray

    @classmethod
    def of(cls, dense: FloatArray, weights: FloatArray) -> MaskInputs:
        """The inputs of weights [m, N] for one image, whose dense features are [1, N, D]."""
        return cls(dense, weights, np.zeros(len(weights), np.int32))


Inputs: TypeAlias = ImageInputs | TextInputs | RegionInputs | MaskInputs


def feed(inputs: Inputs, graph: GraphFile) -> dict[str, Array]:
    """The arrays that ``graph`` takes from ``inputs``, by the names of its tensors."""
    return {spec.name: getattr(inputs, spec.name) for spec in graph.inputs}


class Output(msgspec.Struct, frozen=True):
    """One output of a graph that may still be running."""

    pending: Result

    @property
    def is_ready(self) -> bool:
        """Whether the output is known to be there; False if :meth:`result` may wait."""
        return isinstance(self.pending, Finished)

    def result(self) -> FloatArray:
        """The output; waits until it is ready.

        Raises:
            DeviceError: the device failed.
        """
        (output,) = self.pending.result()
        return output


class Graphs:
    """The graphs of one bundle in one precision, each a method. Safe to use from several threads.

    A call returns at once if the backend is asynchronous; :meth:`Output.result` waits for the outcome. Every call
    raises ArgumentError if the model has no such graph, BundleError if the graph is not the one that the manifest
    describes, and DeviceError if memory runs out or the precision cannot run on the device.

    Attributes:
        dim: width D of every vector.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Join a bundle and the backend that runs its graphs."""
        self._name = bundle.manifest.model.name
        self.dim = bundle.manifest.embedding_size
        self._backend = backend
        # A graph takes the same inputs in every precision.
        self._files = {graph: next(iter(files.values())) for graph, files in bundle.manifest.graphs.items()}

    def has(self, graph: str) -> bool:
        """Whether the model has a graph. Only ``vision`` and ``text`` are in every model."""
        return graph in self._files

    def check_has(self, graph: str) -> None:
        """Refuse a graph that the model lacks.

        Raises:
            ArgumentError: the model lacks the graph; the message names the missing features.
        """
        if not self.has(graph):
            without = _WITHOUT.get(graph, f"no {graph} graph")
            raise ArgumentError(f"{self._name} has {without}; use a model that has them.", code="graph_missing")

    def vision(self, images: ImageInputs, *, normalize: bool = True) -> Output:
        """Vectors of images, float32 [B, D]: of length one, or the reference's own features."""
        return self.run("vision", images, normalize=normalize)

    def dense(self, images: ImageInputs) -> Output:
        """The reference's dense features, float32 [B, N, D]; rows past an image's grid mean nothing."""
        return self.run("dense", images)

    def text(self, texts: TextInputs, *, normalize: bool = True) -> Output:
        """Vectors of texts, float32 [B, D]: of length one, or the reference's own features."""
        return self.run("text", texts, normalize=normalize)

    def whole_and_dense(self, images: ImageInputs) -> tuple[FloatArray, FloatArray]:
        """The reference's features of images [B, D] and of their patches [B, N, D], from one run of ``dense``.

        Waits until they are ready.
        """
        self.check_has("dense")
        inputs = feed(images, self._files["dense"])
        whole, dense = self._backend.submit("dense", inputs, [IMAGE_FEATURES, DENSE_FEATURES]).result()
        return whole, dense

    def region(self, regions: RegionInputs, *, normalize: bool = True) -> Output:
        """Vectors of boxes, float32 [R, D]: of length one, or the reference's own features."""
        return self.run("region", regions, normalize=normalize)

    def mask(self, masks: MaskInputs, *, normalize: bool = True) -> Output:
        """Vectors of masks, float32 [R, D]: of length one, or the reference's own features."""
        return self.run("mask", masks, normalize=normalize)

    def run(self, graph: Graph, inputs: Inputs, *, normalize: bool = True) -> Output:
        """Run a graph by its name, with the inputs that its method takes."""
        self.check_has(graph)
        embeds, features = _OUTPUTS[graph]
        output = embeds if normalize else features
        return Output(self._backend.submit(graph, feed(inputs, self._files[graph]), [output]))
