"""The model object: images, regions and texts to vectors, and vectors to scores."""

from __future__ import annotations

import os
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
from .manifest import Manifest
from .preparation import Patches, preparation
from .recent import Recent
from .text import Tokenizer, as_texts

_T = TypeVar("_T")

OnError: TypeAlias = Literal["raise", "skip"]

#: Batches that are begun before the first of them is waited for. A backend that works by itself runs one while the next
#: is prepared.
_BATCHES_AHEAD = 2

#: Texts whose vectors are kept: a few megabytes of them.
_RECENT_TEXTS = 1024


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

    Raises:
        BundleError: the bundle is incomplete, altered, or from a newer version.
        ArgumentError: device, precision, threads or backend cannot be used.
        DeviceError: the device is not there.
        EngineError: engines were asked for and none fits, or one is damaged.
    """
    return open_model(Bundle.open(Path(bundle), check_hashes=check_hashes), device, precision, threads, backend)


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


@dataclass(frozen=True)
class Embedded:
    """Vectors of those images that could be read.

    Attributes:
        vectors: float32 [k, D].
        rows: by row of ``vectors``, the image's index in the call; ascending.
        failures: the images that could not be read, and why.
    """

    vectors: FloatArray
    rows: tuple[int, ...]
    failures: tuple[Failure, ...]


class Model:
    """One bundle, ready to run. Safe to use from several threads.

    Attributes:
        manifest: the bundle's manifest.
        bundle: the opened bundle.
        precision: the precision that runs.
        backend: runs the graphs; its string says which device and why.
        graphs: the bundle's graphs, each a call.
        preparation: images to patches.
        tokenizer: texts to tokens.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Join an opened bundle and a backend for it; :func:`load` chooses the latter.

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

        A list or generator is consumed as it is needed: only the images of unfinished batches are in memory. A
        vector does not depend on which other images are in the call.

        Args:
            images: paths, bytes, Pillow images or uint8 arrays [H, W, 3].
            max_num_patches: patches that every image is resized to fill; None leaves it to the model, and those that
                take images of one size have no other.
            batch_size: images per run of the graph; None chooses by the number of patches.
            normalize: to length one; False gives the reference's own features.
            on_error: ``raise`` stops at the first image that cannot be read; ``skip`` leaves such images out and says
                which they are.
            exif_transpose: turn images upright by their EXIF orientation. The released code does not.

        Returns:
            float32 [n, D], in the order of ``images``; with ``skip`` an :class:`Embedded`.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ArgumentError: an argument is out of range.
        """
        if on_error not in ("raise", "skip"):
            raise ArgumentError(f"on_error is {on_error!r}; pass 'raise' or 'skip'.")
        check_positive("batch_size", batch_size)
        items = self._prepared(images, max_num_patches, exif_transpose, on_error)
        closed = full(lambda bucket: batch_size or self.backend.batch_size("vision", bucket))
        vectors: dict[int, FloatArray] = {}
        failures: list[Failure] = []
        for found in _ahead(_begun(items, closed, lambda inputs: self.graphs.vision(inputs, normalize=normalize))):
            if isinstance(found, Failure):
                failures.append(found)
                continue
            batch, running = found
            vectors.update((item.index, row) for item, row in zip(batch.items, running.result(), strict=True))
        rows = sorted(vectors)
        stacked = self._stack([vectors[index] for index in rows])
        if on_error == "raise":
            return stacked
        return Embedded(stacked, tuple(rows), tuple(sorted(failures, key=lambda failure: failure.index)))

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
        kind = self.tokenizer.walk_type(walk_type)
        size = self.backend.batch_size("text", kind.length)
        rows: dict[int, FloatArray] = {}
        # By text, the rows that wait for its vector.
        waiting: dict[str, list[int]] = {}

        def unknown() -> Iterator[Item[str]]:
            for index, text in enumerate(as_texts(texts)):
                prepared = self.tokenizer.prepare(text, index)
                known = self._recent_texts.get((prepared, walk_type, normalize))
                if known is not None:
                    rows[index] = known
                elif prepared in waiting:
                    waiting[prepared].append(index)
                else:
                    waiting[prepared] = [index]
                    yield Item(index, walk_type, kind.length, prepared)

        def begun() -> Iterator[tuple[Batch[str], Output]]:
            for batch in batches(unknown(), full(lambda _: size)):
                assert isinstance(batch, Batch)
                inputs = TextInputs.of(self.tokenizer.encode(batch.values, walk_type), kind.index)
                yield batch, self.graphs.text(inputs, normalize=normalize)

        for batch, running in _ahead(begun()):
            for item, vector in zip(batch.items, running.result(), strict=True):
                # A copy, so that one text does not keep its whole batch alive.
                self._recent_texts.put((item.value, walk_type, normalize), vector.copy())
                rows.update((index, vector) for index in waiting.pop(item.value))
        return self._stack([rows[index] for index in range(len(rows))])

    def truncated(self, texts: str | Iterable[str], walk_type: str = "short") -> list[int]:
        """Indices of the texts that are longer than the walk type's length and would lose their end."""
        indices: list[int] = []
        start = 0
        remaining = as_texts(texts)
        while batch := list(islice(remaining, 1024)):
            flags = self.tokenizer(batch, walk_type, first=start).truncated
            indices.extend(start + int(i) for i in np.flatnonzero(flags))
            start += len(batch)
        return indices

    def dense(self, image: ImageSource, max_num_patches: int | None = None) -> DenseImage:
        """One image whose tower runs once, for its boxes, its masks and its maps.

        Args:
            image: as for :meth:`embed_images`.
            max_num_patches: patches to resize to, up to 16,384 for fine maps; None takes the image's bucket. Time
                grows with the square of their number.

        Raises:
            ImageError: the image cannot be read.
            ArgumentError: the model has no dense features, or no such number of patches.
        """
        self.graphs.check_has("dense")
        patches = self.preparation(load_image(image), max_num_patches)
        return DenseImage(self.graphs, patches, self.embed_texts)

    def dense_features(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        normalize: bool = True,
    ) -> list[FloatArray]:
        """One vector per patch of each image, comparable with texts of walk type ``box``.

        Args:
            images: as for :meth:`embed_images`.
            max_num_patches: as for :meth:`dense`.
            normalize: to length one; False gives the reference's own features.

        Returns:
            A list of float32 [h, w, D], one per image, (h, w) being its grid of patches.

        Raises:
            ArgumentError: the model has no dense features.
        """
        self.graphs.check_has("dense")
        items = self._prepared(images, max_num_patches)
        closed = full(lambda bucket: self.backend.batch_size("dense", bucket))
        maps: dict[int, FloatArray] = {}
        for found in _ahead(_begun(items, closed, self.graphs.dense)):
            assert not isinstance(found, Failure)
            batch, running = found
            for item, features in zip(batch.items, running.result(), strict=True):
                height, width = item.value.grid
                # A copy, so that one image's map does not keep its whole batch alive.
                kept = features[: height * width].reshape(height, width, -1).copy()
                maps[item.index] = scores.l2_normalize(kept) if normalize else kept
        return [maps[index] for index in range(len(maps))]

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
        """Probabilities of the logits: by sigmoid each pair for itself, by softmax over the texts of an image.

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
        """Images read and resized by threads, as they are needed, in order."""

        def prepare(image: _Kept) -> Item[Patches] | Failure:
            try:
                patches = self.preparation(image.read(exif_transpose), max_num_patches)
            except ImageError as error:
                if on_error == "raise":
                    raise
                return Failure(image.index, error)
            return Item(image.index, patches.bucket, len(patches.pixels), patches)

        kept = (_Kept.of(index, source, exif_transpose) for index, source in enumerate(as_sources(images)))
        return map_ahead(prepare, kept)

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
class _Kept:
    """An image that can wait for a thread, or why it cannot be read.

    Files are read by the thread. Pixels in memory are copied at once, for their owner may close them or write to them
    meanwhile.
    """

    index: int
    source: str | os.PathLike[str] | bytes | Image.Image | ImageError
    name: str

    @classmethod
    def of(cls, index: int, source: ImageSource, exif_transpose: bool) -> _Kept:
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


def _begun(
    items: Iterable[Item[Patches] | Failure],
    closed: Callable[[Batch[Patches]], bool],
    run: Callable[[ImageInputs], Output],
) -> Iterator[tuple[Batch[Patches], Output] | Failure]:
    """Batches of images, each with its output on the way."""
    for batch in batches(items, closed):
        yield batch if isinstance(batch, Failure) else (batch, run(ImageInputs.of(batch.values)))


def _ahead(begun: Iterator[_T]) -> Iterator[_T]:
    """The items, each when :data:`_BATCHES_AHEAD` later ones have been begun."""
    waiting: deque[_T] = deque()
    for item in begun:
        waiting.append(item)
        if len(waiting) > _BATCHES_AHEAD:
            yield waiting.popleft()
    yield from waiting
