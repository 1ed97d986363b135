"""Measures of right choices, over the vectors of any data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from ..arrays import BoolArray, FloatArray

Measure: TypeAlias = Literal[
    "short text to image",
    "image to short text",
    "long text to image",
    "image to long text",
    "region to box caption",
    "true before false caption",
    "dense map inside its box",
]


MEASURES: tuple[Measure, ...] = get_args(Measure)


#: Number of candidates that a query is compared with.
GALLERY = 100


@dataclass(frozen=True)
class Figure:
    """One share of right choices.

    Attributes:
        measure: the kind of choice.
        language: language of the captions.
        choices: whether each choice was right, in an order that the same inputs always have.
        chance: the share that guessing would get.
    """

    measure: Measure
    language: str
    choices: tuple[bool, ...]
    chance: float

    @property
    def right(self) -> int:
        """Number of right choices."""
        return sum(self.choices)

    @property
    def total(self) -> int:
        """Number of choices."""
        return len(self.choices)

    @property
    def share(self) -> float:
        """Right choices, from 0 to 1."""
        return self.right / self.total


@dataclass(frozen=True)
class Flips:
    """Choices that two models make otherwise on the same inputs.

    Attributes:
        lost: number of choices that the first made rightly and the second wrongly.
        gained: the reverse.
        probability: that equally good models would differ so much or more, by McNemar's exact test
            (https://doi.org/10.1007/BF02295996): each flip goes either way like a coin.
    """

    lost: int
    gained: int
    probability: float


def flips(first: Figure, second: Figure) -> Flips:
    """Compare two models by one measure of the same inputs."""
    pairs = list(zip(first.choices, second.choices, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    count, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return Flips(lost, gained, min(1.0, 2 * tail / 2**count))


def retrieved(queries: FloatArray, candidates: FloatArray) -> BoolArray:
    """Whether each query's nearest of :data:`GALLERY` consecutive candidates is that of its own row: bool [n].

    Args:
        queries: float [n, D].
        candidates: float [n, D].
    """
    right = np.zeros(len(queries), bool)
    for start in range(0, len(queries), GALLERY):
        rows = slice(start, start + GALLERY)
        nearest = np.argmax(queries[rows] @ candidates[rows].T, axis=1)
        right[rows] = nearest == np.arange(len(nearest))
    return right


def named(regions: FloatArray, names: FloatArray, own: Sequence[int]) -> BoolArray:
    """Whether each region's nearest name is its own: bool [r] of regions [r, D] and names [k, D].

    ``own`` [r] holds the rows of the regions' names.
    """
    right: BoolArray = (regions @ names.T).argmax(axis=1) == np.asarray(own)
    return right


def prefers(images: FloatArray, true: FloatArray, false: FloatArray) -> BoolArray:
    """Whether each image is nearer to its true caption than to its false one: bool [n] of vectors [n, D]."""
    preferred: BoolArray = (images * true).sum(axis=1) > (images * false).sum(axis=1)
    return preferred


def holds(box: tuple[float, float, float, float], point: tuple[float, float]) -> bool:
    """Whether a box, xyxy, holds a point."""
    left, top, right, bottom = box
    return left <= point[0] <= right and top <= point[1] <= bottom
