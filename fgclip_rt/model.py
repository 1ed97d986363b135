"""The model object: images, regions and texts to vectors, and vectors to scores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .backends import Backend
from .backends.onnxruntime import OnnxRuntimeBackend
from .boxes import check_boxes
from .bundle import Bundle
from .errors import ArgumentError, check_positive
from .images import ImageSource, NaflexPreparation, Patches, as_sources, load_image
from .manifest import Manifest
from .text import Tokenizer, as_texts

_T = TypeVar("_T")
FloatArray = np.ndarray[Any, np.dtype[np.float32]]

#: Tokens or patches that a batch holds unless its size is given: enough to keep the cores busy, and few enough that
#: activations stay small. A bucket of more patches runs one image at a time.
_TOKENS_PER_BATCH = 2048


def load(
    bundle: str | os.PathLike[str],
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    *,
    check_hashes: bool = True,
) -> Model:
    """Open a bundle and make its model ready.

    Graphs are loaded when they are first used, so a service that embeds only texts never loads the vision tower.

    Args:
        bundle: folder made by ``fgclip-rt export``.
        device: ``auto``, ``cpu`` or ``cuda``. What is asked for and missing is an error; ``auto`` says in
            ``model.backend`` what it chose and why.
        precision: one of the bundle's; None takes its first.
        threads: CPU threads of one operator; None leaves it to onnxruntime.
        check_hashes: compare every file with its recorded SHA-256 (about a second per 1.5 GB).

    Raises:
        BundleError: the bundle is incomplete, altered, or from a newer version.
        ArgumentError: device, precision or threads cannot be used.
        DeviceError: the device is not there.
    """
    return open_model(Bundle.open(Path(bundle), check_hashes=check_hashes), device, precision, threads)


def open_model(bundle: Bundle, device: str = "auto", precision: str | None = None, threads: int | None = None) -> Model:
    """Make the model of a bundle that is open already ready; the arguments are those of :func:`load`.

    Raises:
        ArgumentError: device, precision or threads cannot be used.
        DeviceError: the device is not there.
    """
    available = bundle.manifest.precisions
    if precision is not None and precision not in available:
        raise ArgumentError(f"this bundle has no precision {precision!r}; choose from {', '.join(available)}.")
    return Model(bundle, OnnxRuntimeBackend(bundle, precision or available[0], device, threads))


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
        self.preparation = NaflexPreparation(self.manifest.image)
        self.tokenizer = Tokenizer(bundle.read_text(self.manifest.text.tokenizer), self.manifest.text)

    def __repr__(self) -> str:
        return f"<fgclip_rt.Model {self.manifest.model.name} {self.precision}, {self.backend}>"

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
            max_num_patches: patches that every image is resized to fill; None gives each its own bucket.
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
        for batch in self._image_batches(images, max_num_patches, batch_size):
            vectors = self.run_vision("vision", [patches for _, patches in batch], output)
            rows.update((index, vector) for (index, _), vector in zip(batch, vectors, strict=True))
        return self._stack([rows[index] for index in range(len(rows))])

    def embed_texts(self, texts: str | Iterable[str], walk_type: str = "short", normalize: bool = True) -> FloatArray:
        """One vector per text.

        Args:
            texts: English or Chinese; longer ones than the walk type's length lose their end (:meth:`truncated`).
            walk_type: ``short`` for captions, ``box`` for the names of regions, ``long`` for long captions.
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [n, D].

        Raises:
            TextError: an entry is not valid text.
            ArgumentError: the walk type is unknown.
        """
        kind = self.tokenizer.walk_type(walk_type)
        output = "text_embeds" if normalize else "text_features"
        vectors: list[FloatArray] = []
        for batch in _batches(as_texts(texts), max(1, _TOKENS_PER_BATCH // kind.length)):
            tokens = self.tokenizer(batch, walk_type, first=len(vectors))
            inputs = {"input_ids": tokens.input_ids, "walk_type": np.array(kind.index, np.int32)}
            if self.manifest.text.attention_mask:
                inputs["attention_mask"] = tokens.attention_mask
            vectors.extend(self.backend.run("text", inputs, [output])[0])
        return self._stack(vectors)

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
        """
        maps: dict[int, FloatArray] = {}
        for batch in self._image_batches(images, max_num_patches, None):
            features = self.run_vision("dense", [patches for _, patches in batch], "dense_features")
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
        """
        patches = self.preparation(load_image(image), max_num_patches)
        # Bad boxes are refused before the graph runs, which takes long.
        checked = check_boxes(boxes, patches.image_size)
        if not len(checked):
            return self._stack([])
        dense = self.run_vision("dense", [patches], "dense_features")
        return self.pool_regions(dense, patches, checked, normalize)

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

    def _image_batches(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None,
        batch_size: int | None,
    ) -> Iterator[list[tuple[int, Patches]]]:
        """Prepare images as they come and yield them with their indices, full batches of one bucket first."""
        check_positive("batch_size", batch_size)
        queues: dict[int, list[tuple[int, Patches]]] = {}
        for index, source in enumerate(as_sources(images)):
            patches = self.preparation(load_image(source, name=_image_name(source, index)), max_num_patches)
            queue = queues.setdefault(patches.bucket, [])
            queue.append((index, patches))
            if len(queue) >= (batch_size or max(1, _TOKENS_PER_BATCH // patches.bucket)):
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
        length = max(len(patches.pixels) for patches in batch)
        pixels = np.zeros((len(batch), length, batch[0].pixels.shape[1]), np.uint8)
        for row, patches in zip(pixels, batch, strict=True):
            row[: len(patches.pixels)] = patches.pixels
        shapes = np.array([patches.grid for patches in batch], np.int32)
        return self.backend.run(graph, {"patches": pixels, "spatial_shapes": shapes}, [output])[0]

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
        return self.backend.run("region", inputs, [output])[0]

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


def _image_name(source: ImageSource, index: int) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"image {index}"
