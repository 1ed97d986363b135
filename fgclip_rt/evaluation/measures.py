"""Measures of right choices, over the vectors of any data set."""

from __future__ import annotations

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
        right: number of right choices.
        total: number of choices.
        chance: the share that guessing would get.
    """

    measure: Measure
    language: str
    right: int
    total: int
    chance: float

    @property
    def share(self) -> float:
        """Right choices, from 0 to 1."""
        return self.right / self.total


def count_retrieved(queries: FloatArray, candidates: FloatArray) -> int:
    """Number of queries [n, D] whose nearest of :data:`GALLERY` consecutive candidates is that of their own row."""
    right = 0
    for start in range(0, len(queries), GALLERY):
        rows = slice(start, start + GALLERY)
        nearest = np.argmax(queries[rows] @ candidates[rows].T, axis=1)
        right += int((nearest == np.arange(len(nearest))).sum())
    return right


def count_named(regions: FloatArray, names: FloatArray, own: Sequence[int]) -> int:
    """Number of regions [r, D] whose nearest name, of [k, D], is their own; ``own`` [r] holds the names' rows."""
    return int(((regions @ names.T).argmax(axis=1) == np.asarray(own)).sum())


def prefers(images: FloatArray, true: FloatArray, false: FloatArray) -> BoolArray:
    """Whether each image is nearer to its true caption than to its false one: bool [n] of vectors [n, D]."""
    preferred: BoolArray = (images * true).sum(axis=1) > (images * false).sum(axis=1)
    return preferred


def holds(box: tuple[float, float, float, float], point: tuple[float, float]) -> bool:
    """Whether a box, xyxy, holds a point."""
    left, top, right, bottom = box
    return left <= point[0] <= right and top <= point[1] <= bottom
