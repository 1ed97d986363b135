"""The model object: images, regions and texts to vectors, and vectors to scores."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from . import scores
from .ahead import map_ahead
from .arrays import FloatArray
from .backends import Backend
from .batching import Batch, Failure, Item, batches, full
from .bundle import Bundle
from .choice import choose_backend
from .dense import DenseImage
from .errors import ArgumentError, ImageError, check_positive
from .graphs import Graphs, ImageInputs, Output, TextInputs
from .images import ImageSource, as_sources, load_image
from .manifest import Manifest, WalkTypeSpec
from .preparation import Patches, preparation
from .recent import Recent
from .text import Tokenizer, as_texts

_T = TypeVar("_T")

OnError: TypeAlias = Literal["raise", "skip"]

#: Number of later batches that are submitted before the result of a batch is waited for. An asynchronous backend runs
#: one batch while the next is prepared.
_BATCHES_AHEAD = 2

#: Number of texts whose vectors are kept; 3 MB at 768 dimensions.
_RECENT_TEXTS = 1024


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
        device: ``auto``, ``cpu`` or ``cuda``. A device that is asked for and missing is an error. With ``auto``,
            ``model.backend`` says which device was chosen and why.
        precision: one of the bundle's; None takes its first.
        threads: CPU threads of one operator; None takes one for each core that this process, or its container,
            may use.
        backend: ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``; the last two run only engines made by
            ``fgclip-rt build``. None takes the engines that fit the GPU, and onnxruntime for everything else;
            ``model.backend`` says which was chosen and why.
        check_hashes: compare every file with its recorded SHA-256 (about a second per 1.5 GB).

    Warns:
        RandomWeightsWarning: the bundle's weights are random.

    Raises:
        BundleError: the bundle is incomplete, altered, or from a newer version.
        ArgumentError: device, precision, threads or backend cannot be used.
        DeviceError: the device is missing.
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
    """Make the model of an opened bundle ready; arguments and errors are those of :func:`load`."""
    if precision is None:
        precision = bundle.manifest.precisions[0]
    bundle.check_precision(precision)
    return Model(bundle, choose_backend(bundle, precision, device, threads, backend))


@dataclass(frozen=True)
class Embedded:
    """Vectors of the images that could be read.

    Attributes:
        vectors: float32 [k, D].
        rows: for each row of ``vectors``, the image's index in the call; ascending.
        failures: the images that could not be read, with their errors.
    """

    vectors: FloatArray
    rows: tuple[int, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class EmbeddedMaps:
    """Dense features of the images that could be read.

    Attributes:
        maps: float32 [h, w, D] of each.
        rows: for each of ``maps``, the image's index in the call; ascending.
        failures: the images that could not be read, with their errors.
    """

    maps: list[FloatArray]
    rows: tuple[int, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class EmbeddedBatch:
    """Vectors of inputs that ran together.

    Attributes:
        indices: for each row of ``vectors``, the input's index in the call.
        vectors: float32 [b, D].
    """

    indices: tuple[int, ...]
    vectors: FloatArray


class Model:
    """One bundle, ready to run. Safe to use from several threads.

    Attributes:
        manifest: the bundle's manifest.
        bundle: the opened bundle.
        precision: the precision that runs.
        backend: runs the graphs; its string says which device and why.
        graphs: the bundle's graphs, each a method.
        preparation: turns images into patches.
        tokenizer: turns texts into tokens.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Join an opened bundle and a backend for it; :func:`load` chooses the backend.

        Raises:
            BundleError: the bundle's graphs have another interface than this version's.
        """
        self.manifest: Manifest = bundle.manifest
        self.bundle = bundle
        self.backend = backend
        self.precision = backend.precision
        self.graphs = Graphs(bundle, backend)
        self.preparation = preparation(self.manifest.image)
        self.tokenizer = Tokenizer(bundle.read_text(self.manifest.text.tokenizer), self.manifest.text)
        self._recent_texts: Recent[tuple[str, str, bool], FloatArray] = Recent(_RECENT_TEXTS)

    def __repr__(self) -> str:
        random = ", RANDOM WEIGHTS" if self.has_random_weights else ""
        return f"<fgclip_rt.Model {self.manifest.model.name} {self.precision}, {self.backend}{random}>"

    @property
    def has_random_weights(self) -> bool:
        """Whether the bundle serves benchmarks only, because its weights were drawn at random."""
        return self.manifest.model.weights == "random"

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

    @overload
    def embed_images(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        *,
        on_error: Literal["raise"] = "raise",
        exif_transpose: bool = False,
    ) -> FloatArray: ...

    @overload
    def embed_images(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        *,
        on_error: Literal["skip"],
        exif_transpose: bool = False,
    ) -> Embedded: ...

    def embed_images(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
        exif_transpose: bool = False,
    ) -> FloatArray | Embedded:
        """One vector per image.

        A list or generator is consumed as needed: only the images of unfinished batches are in memory. A vector does
        not depend on the other images of the call.

        Args:
            images: paths, bytes, Pillow images or uint8 arrays [H, W, 3].
            max_num_patches: number of patches that every image is resized to fill; None lets the model choose. Models
                that take images of one size accept only that size's number.
            batch_size: images per run of the graph; None chooses by the number of patches.
            normalize: to length one; False gives the reference's own features.
            on_error: ``raise`` stops at the first image that cannot be read; ``skip`` leaves such images out and
                lists them.
            exif_transpose: turn images upright by their EXIF orientation. The released code does not.

        Returns:
            float32 [n, D], in the order of ``images``; with ``skip`` an :class:`Embedded`.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ArgumentError: an argument is out of range.
        """
        vectors: dict[int, FloatArray] = {}
        failures: list[Failure] = []
        for entry in self.iter_images(
            images, max_num_patches, batch_size, normalize, on_error=on_error, exif_transpose=exif_transpose
        ):
            if isinstance(entry, Failure):
                failures.append(entry)
            else:
                vectors.update(zip(entry.indices, entry.vectors, strict=True))
        rows = sorted(vectors)
        stacked = self._stack([vectors[index] for index in rows])
        if on_error == "raise":
            return stacked
        return Embedded(stacked, tuple(rows), tuple(sorted(failures, key=lambda failure: failure.index)))

    def iter_images(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
        exif_transpose: bool = False,
    ) -> Iterator[EmbeddedBatch | Failure]:
        """As :meth:`embed_images`, batch by batch as they are done, so that neither images nor vectors pile up.

        Images of one bucket come in their order, but other buckets' images may come between them. With ``skip``, an
        image that cannot be read comes as a :class:`Failure`, which has its index and its error.
        """
        _check_on_error(on_error)
        check_positive("batch_size", batch_size)
        items = self._prepared(images, max_num_patches, exif_transpose, on_error)
        closed = full(lambda bucket: batch_size or self.backend.batch_size("vision", bucket))
        return map(
            _finished, _ahead(_submit(items, closed, lambda inputs: self.graphs.vision(inputs, normalize=normalize)))
        )

    def embed_texts(self, texts: str | Iterable[str], walk_type: str = "short", normalize: bool = True) -> FloatArray:
        """One vector per text.

        The vectors of the last 1,024 texts are kept, because many services send the same texts again.

        Args:
            texts: English or Chinese; a text that exceeds the walk type's length loses its end (:meth:`truncated`).
            walk_type: ``short`` for captions, ``box`` for the names of regions, ``long`` for long captions; not every
                model has all of them.
            normalize: to length one; False gives the reference's own features.

        Returns:
            float32 [n, D].

        Raises:
            TextError: an entry is not valid text.
            ArgumentError: the walk type is unknown.
        """
        vectors: dict[int, FloatArray] = {}
        for batch in self.iter_texts(texts, walk_type, normalize):
            vectors.update(zip(batch.indices, batch.vectors, strict=True))
        return self._stack([vectors[index] for index in range(len(vectors))])

    def iter_texts(
        self, texts: str | Iterable[str], walk_type: str = "short", normalize: bool = True
    ) -> Iterator[EmbeddedBatch]:
        """As :meth:`embed_texts`, batch by batch as they are done. Equal texts come together, whatever their order."""
        return self._text_batches(texts, walk_type, self.tokenizer.walk_type(walk_type), normalize)

    def truncated(self, texts: str | Iterable[str], walk_type: str = "short") -> list[int]:
        """Indices of the texts that exceed the walk type's length and would lose their end."""
        indices: list[int] = []
        start = 0
        remaining = as_texts(texts)
        while batch := list(islice(remaining, 1024)):
            flags = self.tokenizer(batch, walk_type, first=start).truncated
            indices.extend(start + int(i) for i in np.flatnonzero(flags))
            start += len(batch)
        return indices

    def dense(self, image: ImageSource, max_num_patches: int | None = None) -> DenseImage:
        """An image whose tower runs once for all of its boxes, masks and maps.

        Args:
            image: as for :meth:`embed_images`.
            max_num_patches: number of patches to resize to, up to 16,384 for fine maps; None takes the image's
                bucket. Time grows with the square of the number.

        Raises:
            ImageError: the image cannot be read.
            ArgumentError: the model has no dense features, or does not take this number of patches.
        """
        self.graphs.check_has("dense")
        patches = self.preparation(load_image(image), max_num_patches)
        return DenseImage(self.graphs, patches, self.embed_texts)

    @overload
    def dense_features(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        normalize: bool = True,
        *,
        on_error: Literal["raise"] = "raise",
    ) -> list[FloatArray]: ...

    @overload
    def dense_features(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        normalize: bool = True,
        *,
        on_error: Literal["skip"],
    ) -> EmbeddedMaps: ...

    def dense_features(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
    ) -> list[FloatArray] | EmbeddedMaps:
        """One vector per patch of each image, comparable with texts of walk type ``box``.

        Args:
            images: as for :meth:`embed_images`.
            max_num_patches: as for :meth:`dense`.
            normalize: to length one; False gives the reference's own features.
            on_error: as for :meth:`embed_images`.

        Returns:
            A list of float32 [h, w, D], one per image, (h, w) being its grid of patches; with ``skip`` an
            :class:`EmbeddedMaps`.

        Raises:
            ArgumentError: the model has no dense features.
        """
        _check_on_error(on_error)
        self.graphs.check_has("dense")
        items = self._prepared(images, max_num_patches, on_error=on_error)
        closed = full(lambda bucket: self.backend.batch_size("dense", bucket))
        maps: dict[int, FloatArray] = {}
        failures: list[Failure] = []
        for entry in _ahead(_submit(items, closed, self.graphs.dense)):
            if isinstance(entry, Failure):
                failures.append(entry)
                continue
            batch, output = entry
            for item, features in zip(batch.items, output.result(), strict=True):
                height, width = item.value.grid
                # A copy, so that one image's map does not keep its whole batch alive.
                kept = features[: height * width].reshape(height, width, -1).copy()
                maps[item.index] = scores.l2_normalize(kept) if normalize else kept
        rows = sorted(maps)
        ordered = [maps[index] for index in rows]
        if on_error == "raise":
            return ordered
        return EmbeddedMaps(ordered, tuple(rows), tuple(failures))

    def embed_regions(
        self,
        image: ImageSource,
        boxes: ArrayLike,
        max_num_patches: int | None = None,
        normalize: bool = True,
    ) -> FloatArray:
        """One vector per box of an image: :meth:`dense` and :meth:`DenseImage.regions` in one call.

        Returns:
            float32 [r, D].
        """
        self.graphs.check_has("region")
        return self.dense(image, max_num_patches).regions(boxes, normalize)

    def embed_masks(
        self,
        image: ImageSource,
        masks: ArrayLike,
        max_num_patches: int | None = None,
        normalize: bool = True,
    ) -> FloatArray:
        """One vector per mask of an image: :meth:`dense` and :meth:`DenseImage.masks` in one call.

        Returns:
            float32 [m, D].
        """
        self.graphs.check_has("mask")
        return self.dense(image, max_num_patches).masks(masks, normalize)

    def logits(self, image_embeds: ArrayLike, text_embeds: ArrayLike) -> FloatArray:
        """exp(logit_scale) · cosine + logit_bias.

        Args:
            image_embeds: [n, D]; vectors that are not of length one are normalised.
            text_embeds: [m, D].

        Returns:
            float32 [n, m].
        """
        return scores.logits(self._vectors(image_embeds), self._vectors(text_embeds), self.manifest.score)

    def probabilities(self, image_embeds: ArrayLike, text_embeds: ArrayLike) -> FloatArray:
        """Probabilities of the logits: a sigmoid of each pair, or a softmax over the texts of each image.

        Returns:
            float32 [n, m].
        """
        return scores.probabilities(self.logits(image_embeds, text_embeds), self.manifest.score)

    def _prepared(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None,
        exif_transpose: bool = False,
        on_error: OnError = "raise",
    ) -> Iterator[Item[Patches] | Failure]:
        """Read and resize images in threads, as needed and in order."""

        def prepare(image: _QueuedImage) -> Item[Patches] | Failure:
            try:
                patches = self.preparation(image.read(exif_transpose), max_num_patches)
            except ImageError as error:
                if on_error == "raise":
                    raise
                return Failure(image.index, error)
            return Item(image.index, patches.bucket, len(patches.pixels), patches)

        queued = (_QueuedImage.of(index, source, exif_transpose) for index, source in enumerate(as_sources(images)))
        return map_ahead(prepare, queued)

    def _text_batches(
        self, texts: str | Iterable[str], walk_type: str, kind: WalkTypeSpec, normalize: bool
    ) -> Iterator[EmbeddedBatch]:
        size = self.backend.batch_size("text", kind.length)
        # Since the last batch, the vectors that were kept from earlier calls, by row.
        rows: dict[int, FloatArray] = {}
        # By text, the rows that wait for its vector.
        waiting: dict[str, list[int]] = {}

        def uncached() -> Iterator[Item[str]]:
            for index, text in enumerate(as_texts(texts)):
                prepared = self.tokenizer.prepare(text, index)
                vector = self._recent_texts.get((prepared, walk_type, normalize))
                if vector is not None:
                    rows[index] = vector
                elif prepared in waiting:
                    waiting[prepared].append(index)
                else:
                    waiting[prepared] = [index]
                    yield Item(index, walk_type, kind.length, prepared)

        def submitted() -> Iterator[tuple[Batch[str], Output]]:
            for batch in batches(uncached(), full(lambda _: size)):
                assert isinstance(batch, Batch)
                inputs = TextInputs.of(self.tokenizer.encode(batch.values, walk_type), kind.index)
                yield batch, self.graphs.text(inputs, normalize=normalize)

        for batch, output in _ahead(submitted()):
            for item, vector in zip(batch.items, output.result(), strict=True):
                # A copy, so that one text does not keep its whole batch alive.
                self._recent_texts.put((item.value, walk_type, normalize), vector.copy())
                rows.update((index, vector) for index in waiting.pop(item.value))
            yield EmbeddedBatch(tuple(rows), self._stack(list(rows.values())))
            rows.clear()
        if rows:
            yield EmbeddedBatch(tuple(rows), self._stack(list(rows.values())))

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


@dataclass(frozen=True)
class _QueuedImage:
    """An image that waits for a thread, or the error that it cannot be read.

    The thread reads files. Pixels in memory are copied at once, because their owner may close or overwrite them
    meanwhile.
    """

    index: int
    source: str | os.PathLike[str] | bytes | Image.Image | ImageError
    name: str

    @classmethod
    def of(cls, index: int, source: ImageSource, exif_transpose: bool) -> _QueuedImage:
        if isinstance(source, (str, os.PathLike)):
            return cls(index, source, os.fspath(source))
        name = f"image {index}"
        if isinstance(source, bytes):
            return cls(index, source, name)
        try:
            return cls(index, load_image(source, name, exif_transpose=exif_transpose), name)
        except ImageError as error:
            return cls(index, error, name)

    def read(self, exif_transpose: bool) -> Image.Image:
        if isinstance(self.source, ImageError):
            raise self.source
        if isinstance(self.source, Image.Image):
            return self.source
        return load_image(self.source, self.name, exif_transpose=exif_transpose)


def _submit(
    items: Iterable[Item[Patches] | Failure],
    closed: Callable[[Batch[Patches]], bool],
    run: Callable[[ImageInputs], Output],
) -> Iterator[tuple[Batch[Patches], Output] | Failure]:
    """Submit batches of images, and yield each with its pending output."""
    for batch in batches(items, closed):
        yield batch if isinstance(batch, Failure) else (batch, run(ImageInputs.of(batch.values)))


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ArgumentError(f"on_error is {on_error!r}; pass 'raise' or 'skip'.")


def _finished(entry: tuple[Batch[Patches], Output] | Failure) -> EmbeddedBatch | Failure:
    """Wait for the output of a batch."""
    if isinstance(entry, Failure):
        return entry
    batch, output = entry
    return EmbeddedBatch(tuple(item.index for item in batch.items), output.result())


def _ahead(submitted: Iterator[_T]) -> Iterator[_T]:
    """Yield each item once :data:`_BATCHES_AHEAD` later ones have been submitted."""
    waiting: deque[_T] = deque()
    for item in submitted:
        waiting.append(item)
        if len(waiting) > _BATCHES_AHEAD:
            yield waiting.popleft()
    yield from waiting
