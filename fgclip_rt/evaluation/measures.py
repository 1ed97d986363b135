"""Measures of right choices, over the vectors of any data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from ..model import FloatArray

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


def retrieved(queries: FloatArray, candidates: FloatArray) -> int:
    """How many queries are nearest to the candidate of their own row, among those of their hundred."""
    right = 0
    for start in range(0, len(queries), GALLERY):
        rows = slice(start, start + GALLERY)
        right += int((np.argmax(queries[rows] @ candidates[rows].T, axis=1) == np.arange(GALLERY)).sum())
    return right


def holds(box: tuple[float, float, float, float], point: tuple[float, float]) -> bool:
    left, top, right, bottom = box
    return left <= point[0] <= right and top <= point[1] <= bottom
