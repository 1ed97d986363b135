"""Figures of a model on the data of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..arrays import BoolArray, FloatArray, IntArray
from ..errors import ArgumentError, BenchmarkError
from ..model import Model
from .data import Captions, LabelledImages, Protocol, Regions
from .embedding import embed_images, embed_regions, embed_texts
from .keeping import Keeping, kept
from .measures import class_mean, class_mean_interval, interval, ranks

#: Cutoffs of a user's own pairs.
PAIR_CUTOFFS = (1, 5, 10)

#: Rank of a region that cannot be sampled: beyond every cutoff.
_NEVER = np.iinfo(np.int32).max


class Rate(Struct, frozen=True):
    """A share of right choices.

    Attributes:
        name: such as ``text to image R@5``.
        rights: bool [total], whether each choice is right.
        low: lower end of the share's 95 % interval.
        high: upper end of it.
        labels: int32 [total], the true class of each choice, as a row of the data's texts; None if there are none.
        class_mean: the mean of the classes' shares, if that is the figure; else None.
    """

    name: str
    rights: BoolArray
    low: float
    high: float
    labels: IntArray | None = None
    class_mean: float | None = None

    @property
    def right(self) -> int:
        """Number of right choices."""
        return int(self.rights.sum())

    @property
    def total(self) -> int:
        """Number of choices."""
        return len(self.rights)

    @property
    def share(self) -> float:
        """The figure, from 0 to 1: right choices, or the mean of this share over classes."""
        return self.right / self.total if self.class_mean is None else self.class_mean


def measure_captions(
    model: Model,
    captions: Captions,
    walk_type: str,
    cutoffs: Sequence[int],
    protocol: Protocol = "official",
    done: Callable[[], None] = lambda: None,
    *,
    done_text: Callable[[], None] = lambda: None,
    keeping: Keeping | None = None,
) -> list[Rate]:
    """Find each image's captions and each caption's image (R@k); an image is found by any of its captions.

    Args:
        model: any model.
        captions: images and captions.
        walk_type: kind of the captions.
        cutoffs: each k.
        protocol: ``strict`` counts a tie as wrong, ``official`` as right.
        done: called after each image.
        done_text: called after each caption; captions come before images.
        keeping: keeps the vectors; None keeps them in a temporary folder.

    Raises:
        ArgumentError: the model has no such kind of text.
        BenchmarkError: an image has no caption, or there are no images.
        ImageError: an image cannot be read.
    """
    if not captions.images:
        raise BenchmarkError("the data hold no images; check the benchmark's files.")
    lonely = set(range(len(captions.images))).difference(captions.owners)
    if lonely:
        raise BenchmarkError(f"{captions.images[min(lonely)]} has no caption; check the benchmark's files.")
    with _kept(keeping) as vectors:
        texts = embed_texts(model, captions.texts, walk_type, vectors, done_text)
        images = embed_images(model, captions.images, vectors, done)
    own, owners = np.arange(len(images), dtype=np.int32), np.array(captions.owners, np.int32)
    strict = protocol == "strict"
    return [
        *_rates("image to text R@", cutoffs, ranks(images, texts, own, owners, strict=strict), own),
        *_rates("text to image R@", cutoffs, ranks(texts, images, owners, own, strict=strict), owners),
    ]


def measure_images(
    model: Model,
    data: LabelledImages,
    texts: FloatArray,
    cutoffs: Sequence[int],
    protocol: Protocol = "official",
    done: Callable[[], None] = lambda: None,
    *,
    keeping: Keeping | None = None,
    max_num_patches: int | None = None,
) -> list[Rate]:
    """Name each image by the nearest of all classes (top-k).

    Args:
        model: any model.
        data: images and their classes.
        texts: a vector of length one for each class, float32 [k, D].
        cutoffs: each k.
        protocol: ``strict`` counts a tie as wrong, ``official`` as right.
        done: called after each image.
        keeping: keeps the vectors; None keeps them in a temporary folder.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`.

    Raises:
        BenchmarkError: there are no images.
        ImageError: an image cannot be read.
    """
    if not data.images:
        raise BenchmarkError("the data hold no images; check the benchmark's files.")
    with _kept(keeping) as vectors:
        images = embed_images(model, data.images, vectors, done, max_num_patches)
    labels = np.array(data.labels, np.int32)
    every = np.arange(len(data.texts), dtype=np.int32)
    found = ranks(images, texts, labels, every, strict=protocol == "strict")
    return _rates("image top-", cutoffs, found, np.arange(len(images), dtype=np.int32), labels)


def measure_regions(
    model: Model,
    data: Regions,
    cutoffs: Sequence[int],
    protocol: Protocol = "official",
    *,
    texts: FloatArray | None = None,
    skips_boxes: bool = False,
    by_mask: bool = False,
    mean_over_classes: bool = False,
    done: Callable[[], None] = lambda: None,
    keeping: Keeping | None = None,
) -> list[Rate]:
    """Name each box by the nearest of its candidates, in texts of walk type ``box`` (top-k).

    Args:
        model: a model that has features of regions, or of masks.
        data: boxes and candidates. Each image runs once.
        cutoffs: each k.
        protocol: ``strict`` counts a tie as wrong and leaves boxes of crowds out, ``official`` counts a tie as right.
        texts: vectors of length one of the data's texts, float32 [m, D]; None embeds them.
        skips_boxes: a box that cannot be sampled is left out (``official``) or wrong (``strict``), instead of an error.
        by_mask: whether the segments of the boxes are pooled instead, as :func:`.embedding.embed_regions` does.
        mean_over_classes: whether each figure is the mean over classes, for things and for stuff too.
        done: called after each box.
        keeping: keeps the vectors; None keeps them in a temporary folder.

    Raises:
        ArgumentError: the model has no features of regions or masks, or no texts of this kind.
        BenchmarkError: there are no boxes, or none could be sampled.
        BoxError: a box cannot be sampled.
        ImageError: an image cannot be read.
    """
    model.graphs.check_has("mask" if by_mask else "region")
    strict = protocol == "strict"
    if strict:
        data = replace(data, regions=tuple(region for region in data.regions if not region.crowd))
    if not data.regions:
        raise BenchmarkError("the data hold no boxes; check the benchmark's files.")
    with _kept(keeping) as vectors:
        if texts is None:
            texts = embed_texts(model, data.texts, "box", vectors)
        regions = embed_regions(model, data, protocol, vectors, done, by_mask=by_mask, skips=skips_boxes)
    sampled = ~np.isnan(regions[:, 0])
    if not sampled.any():
        raise BenchmarkError("no box of the data can be sampled; check the benchmark's files.")
    labels = np.array([region.candidates[0] for region in data.regions], np.int32)
    images = {image: number for number, image in enumerate(dict.fromkeys(region.image for region in data.regions))}
    groups = np.array([images[region.image] for region in data.regions], np.int32)
    found = np.full(len(regions), _NEVER, np.int32)
    if data.classes:
        every = np.arange(len(data.texts), dtype=np.int32)
        found[sampled] = ranks(regions[sampled], texts, labels[sampled], every, strict=strict)
    else:
        for row in np.flatnonzero(sampled):
            found[row] = _rank(regions[row], texts[list(data.regions[row].candidates)], strict=strict)
    counted = np.ones(len(found), bool) if strict else sampled
    found, labels, groups = found[counted], labels[counted], groups[counted]
    if mean_over_classes:
        return _mean_rates(data, cutoffs, found, labels, groups, half=not strict)
    return _rates("region top-", cutoffs, found, groups, labels if data.classes else None)


def check_limit(limit: int | None) -> None:
    """Make sure that a limit is positive.

    Raises:
        ArgumentError: it is not.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"--limit is {limit}; give a positive number of images or boxes.")


@contextmanager
def _kept(keeping: Keeping | None) -> Iterator[Keeping]:
    if keeping is not None:
        yield keeping
        return
    with kept() as temporary:
        yield temporary


def _rank(vector: FloatArray, candidates: FloatArray, *, strict: bool) -> int:
    """Number of false candidates, of [k, D], before the first and true one."""
    cosines = candidates @ vector
    before: BoolArray = cosines[1:] >= cosines[0] if strict else cosines[1:] > cosines[0]
    return int(before.sum())


def _rates(
    name: str, cutoffs: Sequence[int], found: IntArray, groups: IntArray, labels: IntArray | None = None
) -> list[Rate]:
    rates = []
    for cutoff in cutoffs:
        rights = found < cutoff
        rates.append(Rate(f"{name}{cutoff}", rights, *interval(rights, groups), labels))
    return rates


def _mean_rates(
    data: Regions, cutoffs: Sequence[int], found: IntArray, labels: IntArray, groups: IntArray, *, half: bool
) -> list[Rate]:
    """The means over all classes, and over the classes of each kind."""
    parts = {"region": np.ones(len(found), bool)}
    kinds = np.array(data.kinds or ())
    for kind in dict.fromkeys(data.kinds or ()):
        parts[kind] = kinds[labels] == kind
    rates = []
    for name, part in parts.items():
        for cutoff in cutoffs if part.any() else ():
            rights, own = found[part] < cutoff, labels[part]
            ends = class_mean_interval(rights, own, groups[part])
            mean = class_mean(rights, own, half=half)
            rates.append(Rate(f"{name} top-{cutoff}, mean over classes", rights, *ends, own, mean))
    return rates
