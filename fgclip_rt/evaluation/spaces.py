"""Whether two sets of vectors of the same inputs lie in one space, and what an index that holds both would lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..arrays import FloatArray, IntArray

Verdict: TypeAlias = Literal["identical", "interchangeable", "re-index"]

#: The largest difference between numbers of vectors of length one that other kernels or cores make.
_ROUNDING = 1e-5

#: The cosine that nearly all inputs must keep. Every precision's floor is higher, and other checkpoints are far lower.
_KEPT = 0.98

#: The share of inputs that may fall below it.
_OUTLIERS = 0.01

#: Numbers of results that users look at.
_DEPTHS = (1, 10, 100)

#: Queries that are ranked at once.
_BLOCK = 1024


@dataclass(frozen=True)
class Comparison:
    """Old and new vectors of the same inputs.

    Attributes:
        verdict: ``identical``, ``interchangeable`` in one index, or ``re-index``.
        least: the smallest cosine between the old and the new vector of an input.
        mean: the mean of these cosines.
        kept: the mean share of the first k results that stay, by k, if an index holds old and new vectors in turns and
            is asked by new queries.
        shift: the largest change of a cosine between a query and an item, from old ones to new ones.
    """

    verdict: Verdict
    least: float
    mean: float
    kept: dict[int, float]
    shift: float


def sampled(count: int, limit: int) -> IntArray:
    """Indices, int32 and ascending, of at most ``limit`` of ``count`` items, evenly spread over them."""
    return np.linspace(0, count - 1, min(count, limit)).astype(np.int32)


def compare_spaces(
    old: FloatArray,
    new: FloatArray,
    queries: tuple[FloatArray, FloatArray] | None = None,
    *,
    halves: bool = False,
) -> Comparison:
    """Compare vectors of length one.

    Args:
        old: the old vectors of the items, [n, D]; at least one.
        new: their new vectors, in the same order.
        queries: the old and the new vectors [m, D] of queries; None lets each item search the others.
        halves: whether the old vectors were kept as float16, so that their numbers may be off by the last bit of these.
    """
    asked, asks = queries if queries is not None else (old, new)
    pairs = [(old, new), (asked, asks)] if queries is not None else [(old, new)]
    cosines = np.concatenate([(before * after).sum(axis=1) for before, after in pairs])
    same = all((np.abs(before - after) <= _rounding(before, halves=halves)).all() for before, after in pairs)
    near = np.quantile(cosines, _OUTLIERS) >= _KEPT
    kept, shift = _searched(old, new, asked, asks, alone=queries is None)
    verdict: Verdict = "identical" if same else "interchangeable" if near else "re-index"
    return Comparison(verdict, float(cosines.min()), float(cosines.mean()), kept, shift)


def _rounding(vectors: FloatArray, *, halves: bool) -> FloatArray | float:
    """The largest difference from each number that is none of the space."""
    return _ROUNDING + np.abs(np.spacing(vectors.astype(np.float16))).astype(np.float32) if halves else _ROUNDING


def _searched(
    old: FloatArray, new: FloatArray, asked: FloatArray, asks: FloatArray, *, alone: bool
) -> tuple[dict[int, float], float]:
    """The shares of results that stay, and the largest change of a cosine; ``alone``, no item finds itself."""
    mixed = old.copy()
    mixed[1::2] = new[1::2]
    depths = [depth for depth in _DEPTHS if depth < len(old) - alone]
    stayed = dict.fromkeys(depths, 0)
    shift = 0.0
    for start in range(0, len(asked), _BLOCK):
        rows = slice(start, start + _BLOCK)
        before, between, after = asked[rows] @ old.T, asks[rows] @ mixed.T, asks[rows] @ new.T
        shift = max(shift, float(np.abs(after - before).max()))
        if alone:
            own = np.arange(len(before))
            before[own, start + own] = between[own, start + own] = -np.inf
        for depth in depths:
            stayed[depth] += _common(_first(before, depth), _first(between, depth))
    return {depth: count / (depth * len(asked)) for depth, count in stayed.items()}, shift


def _first(scores: FloatArray, depth: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The items of the ``depth`` highest scores of each row."""
    return np.argpartition(-scores, depth - 1, axis=1)[:, :depth]


def _common(
    one: np.ndarray[tuple[int, int], np.dtype[np.int64]], other: np.ndarray[tuple[int, int], np.dtype[np.int64]]
) -> int:
    """Number of items that two lists of a row have in common, over all rows."""
    return sum(len(np.intersect1d(*pair, assume_unique=True)) for pair in zip(one, other, strict=True))
