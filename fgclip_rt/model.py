"""The model object: images, regions and texts to vectors, and vectors to scores."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from . import scores
from .arrays import FloatArray
from .backends import Backend
from .batching import Batch, Failure, Item, batches, full
from .boxes import BoxFormat
from .bundle import Bundle
from .choice import choose_backend
from .dense import DenseImage
from .errors import ArgumentError, BundleError, SpecialTokenWarning, TextError, check_positive
from .graphs import Graphs, ImageInputs, Output, TextInputs
from .images import ImageSource, load_image
from .manifest import ImageSpec, Manifest, WalkTypeSpec
from .preparation import Patches, Preparation
from .preparation import preparation as preparation_by
from .reading import ImageReader
from .recent import Recent
from .space import fingerprint
from .text import Encoded, Tokenizer, as_texts, special_tokens_found

_T = TypeVar("_T")
_V = TypeVar("_V")

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
    preparation: str = "python",
) -> Model:
    """Open a bundle and make its model ready.

    Graphs are loaded when they are first used, so a service that embeds only texts never loads the vision tower.

    Args:
        bundle: folder made by ``fgclip-rt export``; or ``fg-clip2-pocket``, which comes with the package.
        device: ``auto``, ``cpu`` or ``cuda``. A device that is asked for and missing is an error. With ``auto``,
            ``model.backend`` says which device was chosen and why.
        precision: one of the bundle's; None takes its first.
        threads: CPU threads of one operator; None takes one for each core that this process, or its container,
            may use.
        backend: ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``; the last two run only engines made by
            ``fgclip-rt build``. None takes the engines that fit the GPU, and onnxruntime for everything else;
            ``model.backend`` says which was chosen and why.
        check_hashes: compare every file with its recorded SHA-256 (about a second per 1.5 GB).
        preparation: ``python`` has Pillow resize images, and ``native`` the C library, to the same bytes in a
            fraction of the time.

    Warns:
        RandomWeightsWarning: the bundle's weights are random.

    Raises:
        BundleError: the bundle is incomplete, altered, or from a newer version.
        ArgumentError: device, precision, threads or backend cannot be used.
        DeviceError: the device is missing.
        EngineError: engines were asked for and none fits, or one is damaged.
        NativeError: the C library is asked for and missing.
    """
    opened = Bundle.open(Path(bundle), check_hashes=check_hashes)
    model = open_model(opened, device, precision, threads, backend, check_hashes=check_hashes, preparation=preparation)
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
    *,
    check_hashes: bool = True,
    preparation: str = "python",
) -> Model:
    """Make the model of an opened bundle ready; arguments and errors are those of :func:`load`."""
    if precision is None:
        precision = bundle.manifest.precisions[0]
    bundle.check_precision(precision)
    path = os.path.abspath(bundle.path)  # noqa: PTH100 (resolve would follow links, which may change)
    options = Options(path, device, precision, threads, backend, check_hashes, preparation)
    prepare = _choose_preparation(bundle.manifest.image, preparation)
    return Model(bundle, choose_backend(bundle, precision, device, threads, backend), options, prepare)


def _choose_preparation(spec: ImageSpec, name: str) -> Preparation:
    """The preparation of this name: in Python, or by the C library.

    Raises:
        ArgumentError: there is none of this name.
        NativeError: the C library is asked for and missing.
    """
    if name == "python":
        return preparation_by(spec)
    if name == "native":
        from .native.library import find_library
        from .native.patches import native_patches

        return preparation_by(spec, native_patches(find_library()))
    raise ArgumentError(f"preparation {name!r} is unknown; choose python or native.")


class EmbeddedText(msgspec.Struct, frozen=True):
    """The vector of a text.

    Attributes:
        vector: float32 [D], read-only, of length one unless that was not asked for.
        tokens: number of its tokens, special ones included.
        truncated: whether it was too long and lost its end.
        special: the first special token that it spells, such as ``<eos>``; None if it spells none.
    """

    vector: FloatArray
    tokens: int
    truncated: bool
    special: str | None

    @classmethod
    def of(cls, row: FloatArray, encoded: Encoded) -> EmbeddedText:
        """A text's row of the graph's output. It is copied, so that one text does not keep its whole batch alive."""
        vector = row.copy()
        vector.flags.writeable = False  # all who ask for the text get it
        return cls(vector, len(encoded.ids), encoded.truncated, encoded.special)


class Options(msgspec.Struct, frozen=True):
    """Where a model was loaded from and how, so that another process can load it again; the path is absolute."""

    path: str
    device: str
    precision: str
    threads: int | None
    backend: str | None
    check_hashes: bool
    preparation: str


@dataclass(frozen=True)
class Embedded(Generic[_V]):
    """Vectors of the images or texts that could be read.

    Attributes:
        vectors: float32 [k, D]; of :meth:`Model.dense_features` a list of k arrays float32 [h, w, D].
        rows: for each of ``vectors``, the index of its image or text in the call; ascending.
        failures: the images or texts that could not be read, with their errors.
        unrotated: indices in the call of the images that carry an EXIF orientation and were not turned by it.
    """

    vectors: _V
    rows: tuple[int, ...]
    failures: tuple[Failure, ...]
    unrotated: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, vectors: _V, rows: Iterable[int], failures: Iterable[Failure], unrotated: Iterable[int] = ()
    ) -> Embedded[_V]:
        """Join the outcome of a call, in the order of its inputs."""
        in_order = sorted(failures, key=lambda failure: failure.index)
        return cls(vectors, tuple(rows), tuple(in_order), tuple(sorted(unrotated)))


@dataclass(frozen=True)
class EmbeddedBatch:
    """Vectors of images or texts that ran together.

    Attributes:
        indices: for each row of ``vectors``, the index of its image or text in the call.
        vectors: float32 [b, D].
        unrotated: indices in the call of the images that carry an EXIF orientation and were not turned by it.
    """

    indices: tuple[int, ...]
    vectors: FloatArray
    unrotated: tuple[int, ...] = ()


class Model:
    """One bundle, ready to run. Safe to use from several threads.

    Attributes:
        manifest: the bundle's manifest.
        bundle: the opened bundle.
        precision: the precision that runs.
        backend: runs the graphs; its string says which device and why.
        graphs: the bundle's graphs, each a method.
        tokenizer: turns texts into tokens.
        recent_texts: the vectors of the last texts, by prepared text, walk type, and whether they have length one.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        options: Options | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        """Join an opened bundle and a backend for it; :func:`load` chooses the backend.

        Args:
            bundle: an opened bundle.
            backend: runs its graphs.
            options: load the model again in a process that it is pickled to; None makes a model that cannot be pickled.
            preparation: turns decoded images into patches; None does so in Python.

        Raises:
            BundleError: the bundle's tokenizer cannot be used.
        """
        self.manifest: Manifest = bundle.manifest
        self.bundle = bundle
        self.backend = backend
        self.precision = backend.precision
        self.graphs = Graphs(bundle, backend)
        self._reader = ImageReader(preparation or preparation_by(self.manifest.image))
        self.tokenizer = Tokenizer(bundle.read_text(self.manifest.text.tokenizer), self.manifest.text)
        self.recent_texts: Recent[tuple[str, str, bool], EmbeddedText] = Recent(_RECENT_TEXTS)
        self._options = options

    def __repr__(self) -> str:
        random = ", RANDOM WEIGHTS" if self.has_random_weights else ""
        return f"<fgclip_rt.Model {self.manifest.model.name} {self.precision}, {self.backend}{random}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the bundle's path and digest and the options; unpickling loads the bundle again.

        Raises:
            TypeError: the model was not made by :func:`load`.
        """
        if self._options is None:
            raise TypeError("a Model that was not made by fgclip_rt.load cannot be pickled; load it from its bundle.")
        return _load_again, (self._options, self.bundle.manifest_sha256)

    @property
    def preparation(self) -> Preparation:
        """Turns decoded images into patches."""
        return self._reader.preparation

    @property
    def has_random_weights(self) -> bool:
        """Whether the bundle serves benchmarks only, because its weights were drawn at random."""
        return self.manifest.model.weights == "random"

    @cached_property
    def space_sha256(self) -> str:
        """Fingerprint of the space of its vectors: models with the same one may share an index.

        Another precision has the same one, unless it was calibrated.

        Raises:
            BundleError: the bundle's probe is damaged.
        """
        return fingerprint(self.bundle, self.precision)

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
        exif_transpose: bool | None = None,
        details: Literal[False] = False,
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
        exif_transpose: bool | None = None,
        details: bool = False,
    ) -> Embedded[FloatArray]: ...

    @overload
    def embed_images(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
        exif_transpose: bool | None = None,
        details: Literal[True],
    ) -> Embedded[FloatArray]: ...

    def embed_images(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
        exif_transpose: bool | None = None,
        details: bool = False,
    ) -> FloatArray | Embedded[FloatArray]:
        """One vector per image.

        A list or generator is consumed as needed. Of unfinished batches only the patches are in memory. Files are
        decoded side by side while they have at most 134 million pixels together, over all calls of the process; a
        larger one is decoded alone. A vector does not depend on the other images of the call.

        Args:
            images: paths, bytes, open files or uploads, Pillow images, or uint8 arrays [H, W, 3].
            max_num_patches: number of patches that every image is resized to fill; None lets the model choose. Models
                that take images of one size accept only that size's number.
            batch_size: images per run of the graph; None chooses by the number of patches.
            normalize: to length one; False gives the reference's own features.
            on_error: ``raise`` stops at the first image that cannot be read; ``skip`` leaves such images out and
                lists them.
            exif_transpose: turn images upright by their EXIF orientation. None does as the model's reference does
                (``manifest.image.exif_transpose``) with files, and never turns a Pillow image.
            details: return an :class:`Embedded` with ``raise`` too.

        Returns:
            float32 [n, D], in the order of ``images``; with ``skip`` or ``details`` an :class:`Embedded`.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ArgumentError: an argument is out of range.
        """
        vectors: dict[int, FloatArray] = {}
        failures: list[Failure] = []
        unrotated: list[int] = []
        for entry in self.iter_images(
            images, max_num_patches, batch_size, normalize, on_error=on_error, exif_transpose=exif_transpose
        ):
            if isinstance(entry, Failure):
                failures.append(entry)
                continue
            vectors.update(zip(entry.indices, entry.vectors, strict=True))
            unrotated.extend(entry.unrotated)
        rows = sorted(vectors)
        stacked = self._stack([vectors[index] for index in rows])
        if on_error == "raise" and not details:
            return stacked
        return Embedded.of(stacked, rows, failures, unrotated)

    def iter_images(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
        exif_transpose: bool | None = None,
    ) -> Iterator[EmbeddedBatch | Failure]:
        """As :meth:`embed_images`, batch by batch as they are done, so that neither images nor vectors pile up.

        Images of one bucket come in their order, but other buckets' images may come between them. With ``skip``, an
        image that cannot be read comes as a :class:`Failure`, which has its index and its error.
        """
        _check_on_error(on_error)
        items = self._reader.prepare_ahead(images, max_num_patches, exif_transpose, skip=on_error == "skip")
        return self.iter_patches(items, batch_size, normalize)

    def iter_patches(
        self, items: Iterable[Item[Patches] | Failure], batch_size: int | None = None, normalize: bool = True
    ) -> Iterator[EmbeddedBatch | Failure]:
        """As :meth:`iter_images`, for images that the caller prepares, as :meth:`prepare` does, as they are needed.

        Args:
            items: images, each with its index and its bucket as the key; a failure is passed on.
            batch_size: as for :meth:`embed_images`.
            normalize: likewise.

        Raises:
            ArgumentError: the batch size is out of range.
        """
        check_positive("batch_size", batch_size)
        closed = full(lambda bucket: batch_size or self.backend.batch_size("vision", bucket))
        return map(
            _finished, _ahead(_submit(items, closed, lambda inputs: self.graphs.vision(inputs, normalize=normalize)))
        )

    @overload
    def embed_texts(
        self,
        texts: str | Iterable[str],
        walk_type: str = "short",
        normalize: bool = True,
        *,
        on_error: Literal["raise"] = "raise",
    ) -> FloatArray: ...

    @overload
    def embed_texts(
        self,
        texts: str | Iterable[str],
        walk_type: str = "short",
        normalize: bool = True,
        *,
        on_error: Literal["skip"],
    ) -> Embedded[FloatArray]: ...

    def embed_texts(
        self,
        texts: str | Iterable[str],
        walk_type: str = "short",
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
    ) -> FloatArray | Embedded[FloatArray]:
        """One vector per text.

        The vectors of the last 1,024 texts are kept, because many services send the same texts again.

        Args:
            texts: English or Chinese; a text that exceeds the walk type's length loses its end (:meth:`truncated`).
            walk_type: ``short`` for captions, ``box`` for the names of regions, ``long`` for long captions; not every
                model has all of them.
            normalize: to length one; False gives the reference's own features.
            on_error: ``raise`` stops at the first text that is refused; ``skip`` leaves such texts out and lists them.

        Returns:
            float32 [n, D], in the order of ``texts``; with ``skip`` an :class:`Embedded`.

        Warns:
            SpecialTokenWarning: a text spells a special token of the tokenizer, such as ``<eos>``.

        Raises:
            TextError: an entry is not valid text, or its tokens are not known in bounded time.
            ArgumentError: an argument is unknown.
        """
        vectors: dict[int, EmbeddedText] = {}
        failures: list[Failure] = []
        for entry in self._text_batches(texts, walk_type, normalize, on_error):
            if isinstance(entry, Failure):
                failures.append(entry)
            else:
                vectors.update(entry)
        rows = sorted(vectors)
        _warn_special({index: vectors[index] for index in rows}, stacklevel=3)
        stacked = self._stack([vectors[index].vector for index in rows])
        return stacked if on_error == "raise" else Embedded.of(stacked, rows, failures)

    def iter_texts(
        self,
        texts: str | Iterable[str],
        walk_type: str = "short",
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
    ) -> Iterator[EmbeddedBatch | Failure]:
        """As :meth:`embed_texts`, batch by batch as they are done. Equal texts come together, whatever their order.

        With ``skip``, a text that is refused comes as a :class:`Failure`. Special tokens are warned of once.
        """
        # Here, not in the generator, so that a wrong argument is refused before the first vector is asked for.
        batches_of_texts = self._text_batches(texts, walk_type, normalize, on_error)

        def finished() -> Iterator[EmbeddedBatch | Failure]:
            warned = False
            for entry in batches_of_texts:
                if isinstance(entry, Failure):
                    yield entry
                    continue
                warned = warned or _warn_special(entry, stacklevel=3)
                yield EmbeddedBatch(tuple(entry), self._stack([each.vector for each in entry.values()]))

        return finished()

    def truncated(self, texts: str | Iterable[str], walk_type: str = "short") -> list[int]:
        """Indices of the texts that exceed the walk type's length and would lose their end."""
        encoded = self.tokenizer.encode_each(as_texts(texts), walk_type)
        return [index for index, text in enumerate(encoded) if text.truncated]

    def load_image(self, image: ImageSource, exif_transpose: bool | None = None) -> Image.Image:
        """Read an image as 8-bit RGB, as :meth:`embed_images` and :meth:`dense` read it.

        Args:
            image: as for :meth:`embed_images`.
            exif_transpose: likewise.

        Raises:
            ImageError: the image cannot be read.
        """
        return load_image(image, exif_transpose=self._reader.turns(image, exif_transpose))

    def dense(
        self, image: ImageSource, max_num_patches: int | None = None, *, exif_transpose: bool | None = None
    ) -> DenseImage:
        """An image whose tower runs once for all of its boxes, masks and maps.

        Args:
            image: as for :meth:`embed_images`.
            max_num_patches: number of patches to resize to, up to 16,384 for fine maps; None takes the image's
                bucket. Time grows with the square of the number.
            exif_transpose: as for :meth:`embed_images`. Boxes and masks are those of the image after it.

        Raises:
            ImageError: the image cannot be read.
            ArgumentError: the model has no dense features, or does not take this number of patches.
        """
        self.graphs.check_has("dense")
        return self.dense_image(self.prepare(image, max_num_patches, exif_transpose=exif_transpose))

    def prepare(
        self,
        image: ImageSource,
        max_num_patches: int | None = None,
        name: str | None = None,
        *,
        exif_transpose: bool | None = None,
    ) -> Patches:
        """Read an image and resize it to patches, as :meth:`embed_images` does.

        Args:
            image: as for :meth:`embed_images`.
            max_num_patches: likewise.
            name: its name in messages; None for its path.
            exif_transpose: as for :meth:`embed_images`.

        Raises:
            ImageError: the image cannot be read or resized.
            ArgumentError: the model does not take this number of patches.
        """
        return self._reader.prepare(image, max_num_patches, name, exif_transpose)

    def dense_image(self, patches: Patches, features: FloatArray | None = None) -> DenseImage:
        """A prepared image, for its boxes, masks and maps.

        Args:
            patches: as :meth:`prepare` returns them.
            features: the reference's dense features, float32 [h·w, D], if the tower has run already.

        Raises:
            ArgumentError: the model has no dense features.
        """
        self.graphs.check_has("dense")
        return DenseImage(self.graphs, patches, self.embed_texts, self.manifest.box_shares, features)

    @overload
    def dense_features(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        normalize: bool = True,
        *,
        on_error: Literal["raise"] = "raise",
        exif_transpose: bool | None = None,
    ) -> list[FloatArray]: ...

    @overload
    def dense_features(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        normalize: bool = True,
        *,
        on_error: Literal["skip"],
        exif_transpose: bool | None = None,
    ) -> Embedded[list[FloatArray]]: ...

    def dense_features(
        self,
        images: ImageSource | Iterable[ImageSource],
        max_num_patches: int | None = None,
        normalize: bool = True,
        *,
        on_error: OnError = "raise",
        exif_transpose: bool | None = None,
    ) -> list[FloatArray] | Embedded[list[FloatArray]]:
        """One vector per patch of each image, comparable with texts of walk type ``box``.

        Args:
            images: as for :meth:`embed_images`.
            max_num_patches: as for :meth:`dense`.
            normalize: to length one; False gives the reference's own features.
            on_error: as for :meth:`embed_images`.
            exif_transpose: likewise.

        Returns:
            A list of float32 [h, w, D], one per image, (h, w) being its grid of patches; with ``skip`` an
            :class:`Embedded` of it.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ArgumentError: the model has no dense features.
        """
        _check_on_error(on_error)
        self.graphs.check_has("dense")
        items = self._reader.prepare_ahead(images, max_num_patches, exif_transpose, skip=on_error == "skip")
        closed = full(lambda bucket: self.backend.batch_size("dense", bucket))
        maps: dict[int, FloatArray] = {}
        failures: list[Failure] = []
        unrotated: list[int] = []
        for entry in _ahead(_submit(items, closed, self.graphs.dense)):
            if isinstance(entry, Failure):
                failures.append(entry)
                continue
            batch, output = entry
            for item, features in zip(batch.items, output.result(), strict=True):
                if item.value.orientation != 1:
                    unrotated.append(item.index)
                height, width = item.value.grid
                # A copy, so that one image's map does not keep its whole batch alive.
                kept = features[: height * width].reshape(height, width, -1).copy()
                maps[item.index] = scores.l2_normalize(kept) if normalize else kept
        rows = sorted(maps)
        ordered = [maps[index] for index in rows]
        return ordered if on_error == "raise" else Embedded.of(ordered, rows, failures, unrotated)

    def embed_regions(
        self,
        image: ImageSource,
        boxes: ArrayLike,
        max_num_patches: int | None = None,
        normalize: bool = True,
        *,
        box_format: BoxFormat = "xyxy",
        exif_transpose: bool | None = None,
    ) -> FloatArray:
        """One vector per box of an image: :meth:`dense` and :meth:`DenseImage.regions` in one call.

        Returns:
            float32 [r, D].
        """
        self.graphs.check_has("region")
        dense = self.dense(image, max_num_patches, exif_transpose=exif_transpose)
        return dense.regions(boxes, normalize, box_format=box_format)

    def embed_masks(
        self,
        image: ImageSource,
        masks: ArrayLike,
        max_num_patches: int | None = None,
        normalize: bool = True,
        *,
        exif_transpose: bool | None = None,
    ) -> FloatArray:
        """One vector per mask of an image: :meth:`dense` and :meth:`DenseImage.masks` in one call.

        Returns:
            float32 [m, D].
        """
        self.graphs.check_has("mask")
        return self.dense(image, max_num_patches, exif_transpose=exif_transpose).masks(masks, normalize)

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

    def _text_batches(
        self, texts: str | Iterable[str], walk_type: str, normalize: bool, on_error: OnError
    ) -> Iterator[dict[int, EmbeddedText] | Failure]:
        """The vectors of texts by their index, batch by batch; a text that is refused comes as a failure."""
        _check_on_error(on_error)
        kind = self.tokenizer.walk_type(walk_type)
        return self._run_texts(texts, walk_type, kind, normalize, skip=on_error == "skip")

    def _run_texts(
        self, texts: str | Iterable[str], walk_type: str, kind: WalkTypeSpec, normalize: bool, *, skip: bool
    ) -> Iterator[dict[int, EmbeddedText] | Failure]:
        size = self.backend.batch_size("text", kind.length)
        # Since the last batch, the vectors that were kept from earlier calls, by row.
        rows: dict[int, EmbeddedText] = {}
        # By text, the rows that wait for its vector.
        waiting: dict[str, list[int]] = {}

        def queue(index: int, text: str) -> Item[_QueuedText] | None:
            prepared = self.tokenizer.prepare(text, walk_type, index)
            known = self.recent_texts.get((prepared, walk_type, normalize))
            if known is not None:
                rows[index] = known
                return None
            if prepared in waiting:
                waiting[prepared].append(index)
                return None
            queued = _QueuedText(prepared, self.tokenizer.encode(prepared, walk_type, index))
            waiting[prepared] = [index]
            return Item(index, walk_type, kind.length, queued)

        def uncached() -> Iterator[Item[_QueuedText] | Failure]:
            for index, text in enumerate(as_texts(texts)):
                try:
                    item = queue(index, text)
                except TextError as error:
                    if not skip:
                        raise
                    yield Failure(index, error)
                    continue
                if item is not None:
                    yield item

        def submitted() -> Iterator[tuple[Batch[_QueuedText], Output] | Failure]:
            for batch in batches(uncached(), full(lambda _: size)):
                if isinstance(batch, Failure):
                    yield batch
                    continue
                tokens = self.tokenizer.pad([queued.encoded for queued in batch.values], walk_type)
                yield batch, self.graphs.text(TextInputs.of(tokens, kind.index), normalize=normalize)

        for entry in _ahead(submitted()):
            if isinstance(entry, Failure):
                yield entry
                continue
            batch, output = entry
            for queued, vector in zip(batch.values, output.result(), strict=True):
                embedded = EmbeddedText.of(vector, queued.encoded)
                self.recent_texts.put((queued.prepared, walk_type, normalize), embedded)
                rows.update((index, embedded) for index in waiting.pop(queued.prepared))
            yield rows
            rows = {}
        if rows:
            yield rows

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


class _QueuedText(msgspec.Struct, frozen=True):
    """A text that waits for its batch."""

    prepared: str
    encoded: Encoded


def _load_again(options: Options, manifest_sha256: str) -> Model:
    """Load the bundle of a pickled model.

    Raises:
        BundleError: the bundle at the path is another one, or incomplete, or altered.
    """
    bundle = Bundle.open(Path(options.path), check_hashes=options.check_hashes)
    if bundle.manifest_sha256 != manifest_sha256:
        raise BundleError(
            f"{options.path} was replaced since the model was pickled; load the model from it and pickle it again.",
            code="bundle_replaced",
        )
    return open_model(
        bundle,
        options.device,
        options.precision,
        options.threads,
        options.backend,
        check_hashes=options.check_hashes,
        preparation=options.preparation,
    )


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ArgumentError(f"on_error is {on_error!r}; pass 'raise' or 'skip'.")


def _warn_special(texts: Mapping[int, EmbeddedText], stacklevel: int) -> bool:
    """Warn of the texts, by index, that spell a special token; whether there are any."""
    special = {index: text.special for index, text in texts.items() if text.special is not None}
    if special:
        warnings.warn(special_tokens_found(special), SpecialTokenWarning, stacklevel=stacklevel)
    return bool(special)


def _finished(entry: tuple[Batch[Patches], Output] | Failure) -> EmbeddedBatch | Failure:
    """Wait for the output of a batch."""
    if isinstance(entry, Failure):
        return entry
    batch, output = entry
    return EmbeddedBatch(
        tuple(item.index for item in batch.items),
        output.result(),
        tuple(item.index for item in batch.items if item.value.orientation != 1),
    )


def _submit(
    items: Iterable[Item[Patches] | Failure],
    closed: Callable[[Batch[Patches]], bool],
    run: Callable[[ImageInputs], Output],
) -> Iterator[tuple[Batch[Patches], Output] | Failure]:
    """Submit batches of images, and yield each with its pending output."""
    for batch in batches(items, closed):
        yield batch if isinstance(batch, Failure) else (batch, run(ImageInputs.of(batch.values)))


def _ahead(submitted: Iterator[_T]) -> Iterator[_T]:
    """Yield each item once :data:`_BATCHES_AHEAD` later ones have been submitted."""
    waiting: deque[_T] = deque()
    for item in submitted:
        waiting.append(item)
        if len(waiting) > _BATCHES_AHEAD:
            yield waiting.popleft()
    yield from waiting
