"""Measures of right choices, over the vectors of any data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from ..arrays import BoolArray, FloatArray, IntArray

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

#: Queries whose cosines with all candidates are in memory together.
_BLOCK = 1024

#: Samples of a bootstrap, and the shares of them below an interval's ends.
_SAMPLES, _ENDS = 1000, (0.025, 0.975)


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
        p_value: how often equally good models would differ so much or more, by McNemar's exact test
            (https://doi.org/10.1007/BF02295996): each flip goes either way like a coin.
    """

    lost: int
    gained: int
    p_value: float


def flips(first: Sequence[bool] | BoolArray, second: Sequence[bool] | BoolArray) -> Flips:
    """Compare whether two models' choices on the same inputs were right."""
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    lost, gained = int((one & ~other).sum()), int((other & ~one).sum())
    return Flips(lost, gained, _mcnemar(lost, gained))


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


def ranks(
    queries: FloatArray, candidates: FloatArray, query_groups: IntArray, candidate_groups: IntArray, *, strict: bool
) -> IntArray:
    """Number of false candidates before the best true one, int32 [n], for queries [n, D] and candidates [m, D].

    Args:
        queries: vectors of length one.
        candidates: vectors of length one.
        query_groups: int32 [n], group of each query.
        candidate_groups: int32 [m]; the candidates of a query's group are true. Each group has one.
        strict: a false candidate with the true one's cosine comes before it; else after it.
    """
    found = np.empty(len(queries), np.int32)
    for start in range(0, len(queries), _BLOCK):
        rows = slice(start, start + _BLOCK)
        cosines = queries[rows] @ candidates.T
        true = query_groups[rows, None] == candidate_groups
        best = np.where(true, cosines, -np.inf).max(axis=1, keepdims=True)
        before = cosines >= best if strict else cosines > best
        found[rows] = (before & ~true).sum(axis=1)
    return found


def interval(right: BoolArray, groups: IntArray) -> tuple[float, float]:
    """Ends of the 95 % interval of a share, by a percentile bootstrap over groups (Efron and Tibshirani, 1993).

    Args:
        right: bool [n], at least one.
        groups: int32 [n]; choices of one group are drawn together, because they are not independent.
    """
    _, members = np.unique(groups, return_inverse=True)
    counts, rights = np.bincount(members), np.bincount(members, right)
    random = np.random.default_rng(0)
    shares = np.empty(_SAMPLES)
    for sample in range(_SAMPLES):
        drawn = random.integers(len(counts), size=len(counts))
        shares[sample] = rights[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(shares, _ENDS).tolist()
    return low, high


def class_mean(right: BoolArray, labels: IntArray, *, half: bool = False) -> float:
    """The mean over classes of their shares of right choices; classes without a choice do not count.

    Args:
        right: bool [n], at least one.
        labels: int32 [n], the class of each.
        half: whether each class's share is rounded to half precision, as FineCLIP's script does.
    """
    _, members = np.unique(labels, return_inverse=True)
    shares = np.bincount(members, right) / np.bincount(members)
    return float((shares.astype(np.float16).astype(np.float64) if half else shares).mean())


def class_mean_interval(right: BoolArray, labels: IntArray, groups: IntArray) -> tuple[float, float]:
    """As :func:`interval`, for :func:`class_mean`; a sample's classes are those that it holds."""
    _, classes = np.unique(labels, return_inverse=True)
    _, members = np.unique(groups, return_inverse=True)
    counts = np.zeros((members.max() + 1, classes.max() + 1))
    rights = counts.copy()
    np.add.at(counts, (members, classes), 1)
    np.add.at(rights, (members, classes), right)
    random = np.random.default_rng(0)
    means = np.empty(_SAMPLES)
    for sample in range(_SAMPLES):
        drawn = np.bincount(random.integers(len(counts), size=len(counts)), minlength=len(counts))
        of, right_of = drawn @ counts, drawn @ rights
        means[sample] = (right_of[of > 0] / of[of > 0]).mean()
    low, high = np.quantile(means, _ENDS).tolist()
    return low, high


def _mcnemar(lost: int, gained: int) -> float:
    """The two-sided p-value."""
    flips, fewer = lost + gained, min(lost, gained)
    ways = total = 1
    for k in range(fewer):
        ways = ways * (flips - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / (1 << flips))
