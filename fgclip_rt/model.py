"""The model object: images, regions and texts to vectors, and vectors to scores."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from .ahead import map_ahead
from .backends import Array, Backend, Result
from .boxes import check_boxes
from .bundle import Bundle
from .choice import choose_backend
from .errors import ArgumentError, check_positive
from .images import ImageSource, as_sources, load_image
from .manifest import Manifest
from .masks import mask_weights
from .preparation import Patches, preparation, side_by_side
from .recent import Recent
from .text import Tokenizer, as_texts

_T = TypeVar("_T")
FloatArray = np.ndarray[Any, np.dtype[np.float32]]

#: Batches that are begun before the first of them is waited for. A backend that works by itself runs one while the next
#: is prepared.
_BATCHES_AHEAD = 2

#: Texts whose vectors are kept: a few megabytes of them.
_RECENT_TEXTS = 1024

#: What a model is without that has no graph of a name.
_WITHOUT = {
    "dense": "no dense features, and so neither maps nor regions",
    "region": "no features of regions",
    "mask": "no features of masks",
}


class RandomWeightsWarning(UserWarning):
    """A model was loaded whose weights are random, so that its numbers mean nothing."""


def load(
    bundle: str | os.PathLike[str],
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    *,
    backend: str | None = None,
    check_hashes: bool = True,
) -> Model:
    """Open a bundle and make its model ready.

    Graphs are loaded when they are first used, so a service that embeds only texts never loads the vision tower.

    Args:
        bundle: folder made by ``fgclip-rt export``.
        device: ``auto``, ``cpu`` or ``cuda``. What is asked for and missing is an error; ``auto`` says in
            ``model.backend`` what it chose and why.
        precision: one of the bundle's; None takes its first.
        threads: CPU threads of one operator; None takes one for each core that we may use, in a container too.
        backend: ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``; the latter two run engines made by
            ``fgclip-rt build``, and nothing else. None takes engines on a GPU that they fit, and onnxruntime for what
            they do not take; ``model.backend`` says which and why.
        check_hashes: compare every file with its recorded SHA-256 (about a second per 1.5 GB).

    Warns:
        RandomWeightsWarning: the bundle's weights are random.

    Raises:
        BundleError: the bundle is incomplete, altered, or from a newer version.
        ArgumentError: device, precision, threads or backend cannot be used.
        DeviceError: the device is not there.
        EngineError: engines were asked for and none fits, or one is damaged.
    """
    model = open_model(Bundle.open(Path(bundle), check_hashes=check_hashes), device, precision, threads, backend)
    if model.has_random_weights:
        warnings.warn(
            f"{os.fspath(bundle)} has random weights: its numbers mean nothing and serve benchmarks only.",
            RandomWeightsWarning,
            stacklevel=2,
        )
    return model


def open_model(
    bundle: Bundle,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    backend: str | None = None,
) -> Model:
    """Make the model of a bundle that is open already ready; arguments and errors are those of :func:`load`."""
    if precision is None:
        precision = bundle.manifest.precisions[0]
    bundle.check_precision(precision)
    return Model(bundle, choose_backend(bundle, precision, device, threads, backend))


class Model:
    """One bundle, ready to run. Safe to use from several threads.

    Attributes:
        manifest: the bundle's manifest.
        precision: the precision that runs.
        backend: what runs it; its string says which device and why.
        preparation: images to patches.
        tokenizer: texts to tokens.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Join an opened bundle and what runs its graphs; :func:`load` chooses the latter."""
        self.manifest: Manifest = bundle.manifest
        self.bundle = bundle
        self.backend = backend
        self.precision = backend.precision
        self.preparation = preparation(self.manifest.image)
        self.tokenizer = Tokenizer(bundle.read_text(self.manifest.text.tokenizer), self.manifest.text)
        self._recent_texts: Recent[tuple[str, str, str], FloatArray] = Recent(_RECENT_TEXTS)

    def __repr__(self) -> str:
        random = ", RANDOM WEIGHTS" if self.has_random_weights else ""
        return f"<fgclip_rt.Model {self.manifest.model.name} {self.precision}, {self.backend}{random}>"

    @property
    def has_random_weights(self) -> bool:
        """Whether the bundle serves benchmarks only, because its weights were drawn at random."""
        return self.manifest.model.weights == "random"

    def has(self, graph: str) -> bool:
        """Whether the model has a graph: ``vision`` and ``text`` always; ``dense``, ``region`` and ``mask`` not all."""
        return graph in self.manifest.graphs

    @property
    def dim(self) -> int:
        """Width D of every vector."""
        return self.manifest.embedding_size

    @property
    def logit_scale(self) -> float:
        """The learned scale, a logarithm as in the reference: logits use its exponential."""
        return self.manifest.score.logit_scale

    @property
    def logit_bias(self) -> float:
        """The learned bias of the logits."""
        return self.manifest.score.logit_bias

    def embed_images(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
    ) -> FloatArray:
        """One vector per image.

        A list or generator is consumed as it is needed: only the images of unfinished batches are in memory. A
        vector does not depend on which other images are in the call.

        Args:
            images: paths, bytes, Pillow images or uint8 arrays [H, W, 3].
            max_num_patches: patches that every image is resized to fill; None leaves it to the model, and those that
                take images of one size have no other.
            batch_size: images per run of the graph; None chooses by the number of patches.
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [n, D], in the order of ``images``.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ArgumentError: an argument is out of range.
        """
        output = "image_embeds" if normalize else "image_features"
        rows: dict[int, FloatArray] = {}
        for batch, vectors in self._run_images("vision", images, max_num_patches, batch_size, output):
            rows.update((index, vector) for (index, _), vector in zip(batch, vectors, strict=True))
        return self._stack([rows[index] for index in range(len(rows))])

    def embed_texts(self, texts: str | Iterable[str], walk_type: str = "short", normalize: bool = True) -> FloatArray:
        """One vector per text.

        The vectors of the last 1,024 texts are kept, for many services ask for the same ones again and again.

        Args:
            texts: English or Chinese; longer ones than the walk type's length lose their end (:meth:`truncated`).
            walk_type: ``short`` for captions, ``box`` for the names of regions, ``long`` for long captions; not every
                model has all of them.
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [n, D].

        Raises:
            TextError: an entry is not valid text.
            ArgumentError: the walk type is unknown.
        """
        batch_size = self.backend.batch_size("text", self.tokenizer.walk_type(walk_type).length)
        output = "text_embeds" if normalize else "text_features"
        rows: dict[int, FloatArray] = {}

        def begin() -> Iterator[tuple[dict[str, list[int]], Result]]:
            new: dict[str, list[int]] = {}
            for index, text in enumerate(as_texts(texts)):
                prepared = self.tokenizer.prepare(text, index)
                known = self._recent_texts.get((prepared, walk_type, output))
                if known is None:
                    new.setdefault(prepared, []).append(index)
                else:
                    rows[index] = known
                if len(new) >= batch_size:
                    yield new, self._submit_texts(list(new), walk_type, output)
                    new = {}
            if new:
                yield new, self._submit_texts(list(new), walk_type, output)

        for batch, running in _ahead(begin()):
            for (prepared, indices), vector in zip(batch.items(), running.result()[0], strict=True):
                # A copy, so that one text does not keep its whole batch alive.
                self._recent_texts.put((prepared, walk_type, output), vector.copy())
                rows.update((index, vector) for index in indices)
        return self._stack([rows[index] for index in range(len(rows))])

    def truncated(self, texts: str | Iterable[str], walk_type: str = "short") -> list[int]:
        """Indices of the texts that are longer than the walk type's length and would lose their end."""
        indices: list[int] = []
        start = 0
        for batch in _batches(as_texts(texts), 1024):
            flags = self.tokenizer(batch, walk_type, first=start).truncated
            indices.extend(start + int(i) for i in np.flatnonzero(flags))
            start += len(batch)
        return indices

    def dense_features(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        normalize: bool = True,
    ) -> list[FloatArray]:
        """One vector per patch of each image, comparable with texts of walk type ``box``.

        Args:
            images: as for :meth:`embed_images`.
            max_num_patches: patches to resize to, up to 16,384 for fine maps; None takes the image's bucket.
                Time grows with the square of their number.
            normalize: to length one; False gives the reference's own features.

        Returns:
            A list of float32 [h, w, D], one per image, (h, w) being its grid of patches.

        Raises:
            ArgumentError: the model has no dense features.
        """
        maps: dict[int, FloatArray] = {}
        for batch, features in self._run_images("dense", images, max_num_patches, None, "dense_features"):
            for (index, patches), feature in zip(batch, features, strict=True):
                height, width = patches.grid
                # A copy, so that one image's map does not keep its whole batch alive.
                kept = feature[: height * width].reshape(height, width, -1).copy()
                maps[index] = l2_normalize(kept) if normalize else kept
        return [maps[index] for index in range(len(maps))]

    def embed_regions(
        self,
        image: ImageSource,
        boxes: ArrayLike,
        max_num_patches: int | None = None,
        normalize: bool = True,
    ) -> FloatArray:
        """One vector per box of an image, comparable with texts of walk type ``box``.

        Args:
            image: one image.
            boxes: [r, 4], each x1, y1, x2, y2 in pixels of the original image. A box may reach over the border.
            max_num_patches: as for :meth:`dense_features`.
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [r, D].

        Raises:
            BoxError: a box is empty, reversed, outside the image or not finite.
            ArgumentError: the model has no features of regions.
        """
        self._check_has("region")
        patches = self.preparation(load_image(image), max_num_patches)
        # Bad boxes are refused before the graph runs, which takes long.
        checked = check_boxes(boxes, patches.image_size)
        if not len(checked):
            return self._stack([])
        dense = self.run_vision("dense", [patches], "dense_features")
        return self.pool_regions(dense, patches, checked, normalize)

    def embed_masks(
        self,
        image: ImageSource,
        masks: ArrayLike,
        max_num_patches: int | None = None,
        normalize: bool = True,
    ) -> FloatArray:
        """One vector per mask of an image, comparable with texts of walk type ``box``.

        It is the mean of the dense features that the mask weighs. A mask of the image's size gives each patch the share
        of it that the mask covers; one of the size of the grid of patches is taken as it is.

        Args:
            image: one image.
            masks: [m, H, W], bool or numbers from 0 to 1, of the image's size; or [m, h, w], of its grid's.
            max_num_patches: as for :meth:`dense_features`.
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [m, D].

        Raises:
            MaskError: a mask has another size, holds other numbers or is zero everywhere.
            ArgumentError: the model has no features of masks.
        """
        self._check_has("mask")
        patches = self.preparation(load_image(image), max_num_patches)
        # Bad masks are refused before the graph runs, which takes long.
        weights = mask_weights(masks, patches.image_size, patches.grid)
        if not len(weights):
            return self._stack([])
        dense = self.run_vision("dense", [patches], "dense_features")
        return self.pool_masks(dense, weights, normalize)

    def logits(self, image_embeds: ArrayLike, text_embeds: ArrayLike) -> FloatArray:
        """exp(logit_scale) · cosine + logit_bias.

        Args:
            image_embeds: [n, D]; vectors that are not of length one are normalised.
            text_embeds: [m, D].

        Returns:
            float32 [n, m].
        """
        cosine = l2_normalize(self._vectors(image_embeds)) @ l2_normalize(self._vectors(text_embeds)).T
        logits: FloatArray = (cosine * np.exp(self.logit_scale) + self.logit_bias).astype(np.float32)
        return logits

    def probabilities(self, image_embeds: ArrayLike, text_embeds: ArrayLike) -> FloatArray:
        """Probabilities of the logits: by sigmoid each pair for itself, by softmax over the texts of an image.

        Returns:
            float32 [n, m].
        """
        logits = self.logits(image_embeds, text_embeds)
        probabilities: FloatArray
        if self.manifest.score.activation == "softmax":
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
            probabilities = weights / weights.sum(axis=-1, keepdims=True)
        else:
            # exp of a negative number only, so that neither side of zero overflows.
            decay = np.exp(-np.abs(logits))
            probabilities = np.where(logits >= 0, np.float32(1), decay) / (1 + decay)
        return probabilities

    def _run_images(
        self,
        graph: str,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None,
        batch_size: int | None,
        output: str,
    ) -> Iterator[tuple[list[tuple[int, Patches]], FloatArray]]:
        """Every batch of images, with their indices, and what ``graph`` makes of it."""

        self._check_has(graph)

        def begin() -> Iterator[tuple[list[tuple[int, Patches]], Result]]:
            for batch in self._image_batches(graph, images, max_num_patches, batch_size):
                yield batch, self._submit_vision(graph, [patches for _, patches in batch], output)

        for batch, running in _ahead(begin()):
            yield batch, running.result()[0]

    def _image_batches(
        self,
        graph: str,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None,
        batch_size: int | None,
    ) -> Iterator[list[tuple[int, Patches]]]:
        """Prepare images as they come and yield them with their indices, full batches of one bucket first."""
        check_positive("batch_size", batch_size)

        def prepare(named: tuple[ImageSource, str]) -> Patches:
            source, name = named
            image = source if isinstance(source, Image.Image) else load_image(source, name)
            return self.preparation(image, max_num_patches)

        queues: dict[int, list[tuple[int, Patches]]] = {}
        for index, patches in enumerate(map_ahead(prepare, _kept(as_sources(images)))):
            queue = queues.setdefault(patches.bucket, [])
            queue.append((index, patches))
            if len(queue) >= (batch_size or self.backend.batch_size(graph, patches.bucket)):
                yield queues.pop(patches.bucket)
        yield from queues.values()

    def run_vision(self, graph: str, batch: list[Patches], output: str) -> FloatArray:
        """Run a vision graph on prepared images of any grids, padded to the longest of them.

        Args:
            graph: ``vision`` or ``dense``.
            batch: one image or more.
            output: name of the output, one of the graph's.

        Returns:
            float32 [B, D], or [B, N, D] for ``dense_features``; rows past an image's grid mean nothing.
        """
        return self._submit_vision(graph, batch, output).result()[0]

    def _submit_vision(self, graph: str, batch: list[Patches], output: str) -> Result:
        shapes = np.array([patches.grid for patches in batch], np.int32)
        return self._submit(graph, {"patches": side_by_side(batch), "spatial_shapes": shapes}, output)

    def run_texts(self, texts: Sequence[str], walk_type: str, output: str) -> FloatArray:
        """Run the text graph on texts in one batch, whether or not their vectors are known.

        Args:
            texts: one text or more.
            walk_type: as for :meth:`embed_texts`.
            output: name of the output, one of the graph's.

        Returns:
            float32 [n, D].

        Raises:
            ArgumentError: the walk type is unknown.
            TextError: an entry is not valid text.
        """
        prepared = [self.tokenizer.prepare(text, index) for index, text in enumerate(texts)]
        return self._submit_texts(prepared, walk_type, output).result()[0]

    def _submit_texts(self, prepared: Sequence[str], walk_type: str, output: str) -> Result:
        tokens = self.tokenizer.encode(prepared, walk_type)
        inputs = {
            "input_ids": tokens.input_ids,
            "walk_type": np.array(self.tokenizer.walk_type(walk_type).index, np.int32),
            "attention_mask": tokens.attention_mask,
        }
        return self._submit("text", inputs, output)

    def pool_regions(self, dense: FloatArray, patches: Patches, boxes: ArrayLike, normalize: bool = True) -> FloatArray:
        """One vector per box of an image whose dense features are there already.

        Args:
            dense: float32 [1, N, D], what :meth:`run_vision` gives for ``dense_features`` of ``patches`` alone.
            patches: the prepared image.
            boxes: as for :meth:`embed_regions`.
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [r, D].

        Raises:
            BoxError: a box is empty, reversed, outside the image or not finite.
        """
        checked = check_boxes(boxes, patches.image_size)
        inputs = {
            "dense_features": dense,
            "spatial_shapes": np.array([patches.grid], np.int32),
            "image_sizes": np.array([patches.image_size], np.int32),
            "boxes": checked,
            "box_images": np.zeros(len(checked), np.int32),
        }
        output = "region_embeds" if normalize else "region_features"
        return self._submit("region", inputs, output).result()[0]

    def pool_masks(self, dense: FloatArray, weights: FloatArray, normalize: bool = True) -> FloatArray:
        """One vector per mask of an image whose dense features are there already.

        Args:
            dense: float32 [1, N, D], what :meth:`run_vision` gives for ``dense_features`` of the image alone.
            weights: float32 [m, N], of each patch (:func:`fgclip_rt.masks.mask_weights`).
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [m, D].
        """
        inputs = {"dense_features": dense, "masks": weights, "mask_images": np.zeros(len(weights), np.int32)}
        return self._submit("mask", inputs, "mask_embeds" if normalize else "mask_features").result()[0]

    def _submit(self, graph: str, inputs: Mapping[str, Array], output: str) -> Result:
        """Run a graph on those of ``inputs`` that it takes."""
        self._check_has(graph)
        # They are the same in every precision.
        taken = next(iter(self.manifest.graphs[graph].values())).inputs
        return self.backend.submit(graph, {spec.name: inputs[spec.name] for spec in taken}, [output])

    def _check_has(self, graph: str) -> None:
        if not self.has(graph):
            without = _WITHOUT.get(graph, f"no {graph} graph")
            raise ArgumentError(f"{self.manifest.model.name} has {without}; use a model that has them.")

    def _vectors(self, values: ArrayLike) -> FloatArray:
        try:
            array = np.atleast_2d(np.asarray(values, dtype=np.float32))
        except (TypeError, ValueError):
            raise ArgumentError(f"vectors are not numbers; pass what the model returned, [n, {self.dim}].") from None
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise ArgumentError(f"vectors have the shape {list(array.shape)}; this model's are [n, {self.dim}].")
        return array

    def _stack(self, vectors: list[FloatArray]) -> FloatArray:
        return np.stack(vectors) if vectors else np.zeros((0, self.dim), np.float32)


def l2_normalize(vectors: FloatArray) -> FloatArray:
    """Vectors of length one along the last axis; a zero vector stays zero."""
    normalized: FloatArray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-12))
    return normalized


def _batches(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while batch := list(islice(items, size)):
        yield batch


def _ahead(begun: Iterator[_T]) -> Iterator[_T]:
    """The items, each when :data:`_BATCHES_AHEAD` later ones have been begun."""
    waiting: deque[_T] = deque()
    for item in begun:
        waiting.append(item)
        if len(waiting) > _BATCHES_AHEAD:
            yield waiting.popleft()
    yield from waiting


def _kept(sources: Iterable[ImageSource]) -> Iterator[tuple[ImageSource, str]]:
    """Sources that can wait for a thread, and their names: what is not a file is copied, for its owner may close it or
    write to it meanwhile.
    """
    for index, source in enumerate(sources):
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"image {index}"
        waits = isinstance(source, (str, os.PathLike, bytes))
        yield source if waits else load_image(source, name), name
