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


#: Candidates that a query is searched among.
GALLERY = 100


@dataclass(frozen=True)
class Figure:
    """One share of right choices.

    Attributes:
        measure: what was chosen.
        language: of the captions.
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
    """How many queries [n, D] are nearest to the candidate of their own row, among those of their :data:`GALLERY`."""
    right = 0
    for start in range(0, len(queries), GALLERY):
        rows = slice(start, start + GALLERY)
        nearest = np.argmax(queries[rows] @ candidates[rows].T, axis=1)
        right += int((nearest == np.arange(len(nearest))).sum())
    return right


def count_named(regions: FloatArray, names: FloatArray, own: Sequence[int]) -> int:
    """How many regions [r, D] are nearest to their own of the names [k, D]; ``own`` [r] are the names' rows."""
    return int(((regions @ names.T).argmax(axis=1) == np.asarray(own)).sum())


def prefers(images: FloatArray, true: FloatArray, false: FloatArray) -> BoolArray:
    """Whether each image is nearer to its true caption than to its false one: bool [n] of vectors [n, D]."""
    preferred: BoolArray = (images * true).sum(axis=1) > (images * false).sum(axis=1)
    return preferred


def holds(box: tuple[float, float, float, float], point: tuple[float, float]) -> bool:
    """Whether a box, xyxy, holds a point."""
    left, top, right, bottom = box
    return left <= point[0] <= right and top <= point[1] <= bottom
