"""Vectors of a benchmark's inputs, each kept on disk once it is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..arrays import BoolArray, FloatArray
from ..batching import Failure
from ..boxes import BoxUnitsWarning
from ..dense import DenseImage
from ..errors import BenchmarkError, BoxError, MaskError, reason
from ..image_files import identify, opened
from ..journal import Journal, Stamp, stamp
from ..manifest import NaflexSpec
from ..masks import mask_weights
from ..model import Model
from ..scores import l2_normalize
from .data import Protocol, Region, Regions, Segment
from .keeping import Keeping
from .templates import fill

#: Texts that are embedded before their vectors are kept.
_TEXTS = 1024


def embed_texts(
    model: Model, texts: Sequence[str], walk_type: str, keeping: Keeping, done: Callable[[], None] = lambda: None
) -> FloatArray:
    """Vectors of texts, float32 [n, D]; ``done`` is called after each.

    Raises:
        ArgumentError: the model has no such kind of text.
    """
    journal = keeping.journal(model, f"texts-{walk_type}", texts, len(texts), walk_type=walk_type)
    missing = journal.missing(0, len(texts))
    _skip(done, len(texts) - len(missing))
    for start in range(0, len(missing), _TEXTS):
        items = missing[start : start + _TEXTS]
        journal.add(items, model.embed_texts([texts[item] for item in items], walk_type), [None] * len(items))
        _skip(done, len(items))
    return _all(journal)


def embed_classes(
    model: Model,
    names: Sequence[str],
    templates: Sequence[str],
    walk_type: str,
    keeping: Keeping,
    done: Callable[[], None] = lambda: None,
    *,
    opening: str = "",
) -> FloatArray:
    """A vector for each class, float32 [k, D]: the mean of the unit vectors of its texts, scaled to length one again.

    Args:
        model: any model.
        names: of the classes.
        templates: of the texts, as :func:`.templates.read_templates` returns them.
        walk_type: kind of the texts.
        keeping: keeps the vectors.
        done: called after each class.
        opening: as for :func:`.templates.fill`.

    Raises:
        ArgumentError: the model has no such kind of text.
    """
    inputs = [*names, "", opening, *templates]
    journal = keeping.journal(model, f"classes-{walk_type}", inputs, len(names), walk_type=walk_type)
    missing = journal.missing(0, len(names))
    _skip(done, len(names) - len(missing))
    for item in missing:
        vectors = model.embed_texts([fill(template, names[item], opening) for template in templates], walk_type)
        journal.add([item], l2_normalize(vectors.mean(axis=0, keepdims=True)), [None])
        done()
    return _all(journal)


def read_class_vectors(file: Path, count: int, width: int) -> FloatArray:
    """Vectors of classes from a ``.npy`` file, scaled to length one, float32 [count, width].

    Raises:
        BenchmarkError: it cannot be read, or holds vectors of another number or width.
    """
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{file} cannot be read as .npy ({reason(error)}); give a file of vectors.") from None
    if vectors.dtype.kind != "f" or vectors.shape != (count, width):
        raise BenchmarkError(
            f"{file} holds {vectors.dtype} {list(vectors.shape)}; the benchmark has {count} classes and the model "
            f"vectors of {width} numbers."
        )
    return l2_normalize(vectors.astype(np.float32))


def embed_images(
    model: Model,
    images: Sequence[Path],
    keeping: Keeping,
    done: Callable[[], None] = lambda: None,
    max_num_patches: int | None = None,
) -> FloatArray:
    """Vectors of images, float32 [n, D]; ``done`` is called after each.

    Args:
        model: any model.
        images: files.
        keeping: keeps the vectors.
        done: called after each image.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.

    Raises:
        ImageError: an image cannot be read.
    """
    names = list(map(str, images))
    journal = keeping.journal(
        model, "images", names, len(names), lambda item: stamp(names[item]), max_num_patches=max_num_patches
    )
    missing = journal.missing(0, len(names))
    _skip(done, len(names) - len(missing))
    stamps: dict[int, Stamp] = {}

    def given() -> Iterator[str]:
        for item in missing:
            stamps[item] = stamp(names[item])
            yield names[item]

    for batch in model.iter_images(given(), max_num_patches):
        # With on_error="raise" no failure comes.
        assert not isinstance(batch, Failure)
        items = [missing[index] for index in batch.indices]
        journal.add(items, batch.vectors, [stamps.pop(item) for item in items])
        _skip(done, len(items))
    return _all(journal)


def embed_regions(
    model: Model,
    data: Regions,
    protocol: Protocol,
    keeping: Keeping,
    done: Callable[[], None] = lambda: None,
    *,
    by_mask: bool = False,
    skips: bool = False,
) -> FloatArray:
    """Vectors of boxes or of their segments, float32 [n, D]. Each image runs once.

    Args:
        model: a model that has features of regions, or of masks.
        data: the boxes.
        protocol: of masks, ``official`` takes every patch that a segment touches as whole, where CLIPSelf's script
            takes those that are above 0 in a bicubic reduction; ``strict`` weights it by the share that is covered.
        keeping: keeps the vectors.
        done: called after each box.
        by_mask: whether segments are pooled instead of boxes.
        skips: whether a box that cannot be sampled gets a vector of NaN instead of an error.

    Raises:
        BoxError: a box cannot be sampled.
        BenchmarkError: a picture of segments lacks one, or is of another size than its image.
        ImageError: an image cannot be read.
    """
    images = [str(region.image) for region in data.regions]
    inputs = [f"{region.image}\n{region.box}\n{region.segment}" for region in data.regions]
    journal = keeping.journal(
        model,
        "masks" if by_mask else "boxes",
        inputs,
        len(inputs),
        lambda item: stamp(images[item]),
        box_format=data.box_format,
        masks=protocol if by_mask else None,
        skips=skips,
    )
    by_image: dict[str, list[int]] = {}
    for item in journal.missing(0, len(images)):
        by_image.setdefault(images[item], []).append(item)
    _skip(done, journal.kept)
    for image, items in by_image.items():
        before = stamp(image)
        dense = model.dense(image)
        segments = _Segments(dense.image_size)
        vectors = np.empty((len(items), model.dim), np.float32)
        for row, item in enumerate(items):
            region = data.regions[item]
            try:
                if by_mask:
                    vectors[row] = _masked(dense, segments.mask(region.segment), protocol)
                else:
                    vectors[row] = _boxed(dense, region, data)
            except (BoxError, MaskError):
                if not skips:
                    raise
                vectors[row] = np.nan
            done()
        journal.add(items, vectors, [before] * len(items))
    return _all(journal)


def fixed_patches(model: Model, patches: int | None) -> int | None:
    """The number of patches that a benchmark resizes every image to, if the model lets it choose; else None."""
    return patches if isinstance(model.manifest.image, NaflexSpec) else None


class _Segments:
    """The segments of one image, whose picture is read once."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        self._image_size = image_size
        self._ids: dict[Path, np.ndarray[tuple[int, int], np.dtype[np.uint32]]] = {}

    def mask(self, segment: Segment | None) -> BoolArray:
        """The pixels of a segment, bool [H, W]."""
        if segment is None:
            raise BenchmarkError("the data have no segments; measure their boxes instead.")
        if segment.file not in self._ids:
            self._ids[segment.file] = segment_ids(segment.file)
        ids = self._ids[segment.file]
        if ids.shape != self._image_size:
            (height, width), (own_height, own_width) = self._image_size, ids.shape
            raise BenchmarkError(
                f"{segment.file} has {own_width}×{own_height} pixels, and its image {width}×{height}; download both."
            )
        mask: BoolArray = ids == segment.id
        if not mask.any():
            raise BenchmarkError(f"{segment.file} has no pixel of its segment {segment.id}; download it again.")
        return mask


def segment_ids(file: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
    """The segment of each pixel of a panoptic picture, [H, W]: red + 256 · green + 65,536 · blue.

    Raises:
        ImageError: the picture cannot be read.
    """
    with opened(file, str(file)) as stream:
        rgb = np.asarray(identify(stream, str(file)).convert("RGB"), np.uint32)
    ids: np.ndarray[tuple[int, int], np.dtype[np.uint32]] = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    return ids


def _boxed(dense: DenseImage, region: Region, data: Regions) -> FloatArray:
    with warnings.catch_warnings():
        # A benchmark's boxes are in pixels, however small they are.
        warnings.simplefilter("ignore", BoxUnitsWarning)
        vector: FloatArray = dense.regions([region.box], box_format=data.box_format)[0]
        return vector


def _masked(dense: DenseImage, mask: BoolArray, protocol: Protocol) -> FloatArray:
    weights = mask_weights(mask[None], dense.image_size, dense.grid).reshape(1, *dense.grid)
    vector: FloatArray = dense.masks(weights > 0 if protocol == "official" else weights)[0]
    return vector


def _all(journal: Journal) -> FloatArray:
    vectors: FloatArray = journal.vectors()[journal.positions]
    return vectors


def _skip(done: Callable[[], None], count: int) -> None:
    """Report ``count`` steps."""
    for _ in range(count):
        done()
