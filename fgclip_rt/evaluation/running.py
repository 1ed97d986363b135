"""Figures of a model on the data of a benchmark."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from ..arrays import BoolArray, FloatArray, IntArray
from ..batching import Failure
from ..boxes import BoxUnitsWarning
from ..errors import ArgumentError, BenchmarkError, BoxError
from ..model import Model
from .data import Captions, Protocol, Region, Regions
from .measures import interval, ranks

#: Rank of a region that cannot be sampled: beyond every cutoff.
_NEVER = np.iinfo(np.int32).max


class Rate(Struct, frozen=True):
    """A share of right choices.

    Attributes:
        name: such as ``text to image R@5``.
        rights: bool [total], whether each choice is right.
        low: lower end of the share's 95 % interval.
        high: upper end of it.
    """

    name: str
    rights: BoolArray
    low: float
    high: float

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
        """Right choices, from 0 to 1."""
        return self.right / self.total


def measure_captions(
    model: Model,
    captions: Captions,
    walk_type: str,
    cutoffs: Sequence[int],
    protocol: Protocol = "official",
    done: Callable[[], None] = lambda: None,
) -> list[Rate]:
    """Find each image's captions and each caption's image (R@k); an image is found by any of its captions.

    Args:
        model: any model.
        captions: images and captions.
        walk_type: kind of the captions.
        cutoffs: each k.
        protocol: ``strict`` counts a tie as wrong, ``official`` as right.
        done: called after each image.

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
    texts = model.embed_texts(captions.texts, walk_type)
    images = np.empty((len(captions.images), model.dim), np.float32)
    for batch in model.iter_images(captions.images):
        # With on_error="raise" no failure comes.
        assert not isinstance(batch, Failure)
        images[list(batch.indices)] = batch.vectors
        for _ in batch.indices:
            done()
    own, owners = np.arange(len(images), dtype=np.int32), np.array(captions.owners, np.int32)
    strict = protocol == "strict"
    return [
        *_rates("image to text R@", cutoffs, ranks(images, texts, own, owners, strict=strict), own),
        *_rates("text to image R@", cutoffs, ranks(texts, images, owners, own, strict=strict), owners),
    ]


def measure_regions(
    model: Model,
    data: Regions,
    cutoffs: Sequence[int],
    protocol: Protocol = "official",
    *,
    skips_boxes: bool = False,
    done: Callable[[], None] = lambda: None,
) -> list[Rate]:
    """Name each box by the nearest of its candidates, in texts of walk type ``box`` (top-k).

    Args:
        model: a model that has features of regions.
        data: boxes and candidates. Each image runs once.
        cutoffs: each k.
        protocol: ``strict`` counts a tie as wrong, ``official`` as right.
        skips_boxes: a box that cannot be sampled is left out (``official``) or wrong (``strict``), instead of an error.
        done: called after each box.

    Raises:
        ArgumentError: the model has no features of regions, or no texts of this kind.
        BenchmarkError: there are no boxes, or none could be sampled.
        BoxError: a box cannot be sampled.
        ImageError: an image cannot be read.
    """
    model.graphs.check_has("region")
    if not data.regions:
        raise BenchmarkError("the data hold no boxes; check the benchmark's files.")
    texts = model.embed_texts(data.texts, "box")
    by_image: dict[str, list[Region]] = {}
    for region in data.regions:
        by_image.setdefault(str(region.image), []).append(region)
    found: list[int] = []
    groups: list[int] = []
    for group, (image, regions) in enumerate(by_image.items()):
        dense = model.dense(image)
        for region in regions:
            try:
                with warnings.catch_warnings():
                    # A benchmark's boxes are in pixels, however small they are.
                    warnings.simplefilter("ignore", BoxUnitsWarning)
                    vector = dense.regions([region.box], box_format=data.box_format)[0]
            except BoxError:
                if not skips_boxes:
                    raise
                if protocol == "strict":
                    found.append(_NEVER)
                    groups.append(group)
            else:
                found.append(_rank(vector, texts[list(region.candidates)], strict=protocol == "strict"))
                groups.append(group)
            done()
    if not found:
        raise BenchmarkError("no box of the data can be sampled; check the benchmark's files.")
    return _rates("region top-", cutoffs, np.array(found, np.int32), np.array(groups, np.int32))


def check_limit(limit: int | None) -> None:
    """Make sure that a limit is positive.

    Raises:
        ArgumentError: it is not.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"--limit is {limit}; give a positive number of images or boxes.")


def _rank(vector: FloatArray, candidates: FloatArray, *, strict: bool) -> int:
    """Number of false candidates, of [k, D], before the first and true one."""
    cosines = candidates @ vector
    before: BoolArray = cosines[1:] >= cosines[0] if strict else cosines[1:] > cosines[0]
    return int(before.sum())


def _rates(name: str, cutoffs: Sequence[int], found: IntArray, groups: IntArray) -> list[Rate]:
    rates = []
    for cutoff in cutoffs:
        rights = found < cutoff
        rates.append(Rate(f"{name}{cutoff}", rights, *interval(rights, groups)))
    return rates
