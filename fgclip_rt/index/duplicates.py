"""Images of an index that are nearly the same."""

from __future__ import annotations

import numpy as np

from ..answers import Duplicate, Duplicates
from ..arrays import Array
from ..names import spell_path
from ..progress import BeginStage, silent
from . import exact
from .search import ImageIndex

#: Rows that are compared with all others at once.
_BLOCK = 256


def find_duplicates(index: ImageIndex, threshold: float, folder: str = "", begin: BeginStage = silent) -> Duplicates:
    """Images of an index that are nearly the same, and those with the same content.

    Args:
        index: the index.
        threshold: the least cosine of two images that belong together.
        folder: as for :meth:`ImageIndex.search`.
        begin: begins a progress bar.
    """
    rows, vectors = index.vectors(folder)
    alike = linked(len(rows), near_pairs(vectors, threshold, begin))
    grouped = {member for members, _ in alike for member in members}
    # Copies share a row, so a row may be a group by itself.
    alike += [([number], 1.0) for number in range(len(rows)) if number not in grouped]
    found = [
        Duplicate([image for member in members for image in index.images(int(rows[member]), folder)], cosine)
        for members, cosine in alike
    ]
    return Duplicates(
        index=spell_path(index.path),
        root=spell_path(index.about.root),
        searched=len(rows),
        threshold=threshold,
        groups=sorted((group for group in found if len(group.images) > 1), key=lambda group: -len(group.images)),
    )


def near_pairs(rows: Array, threshold: float, begin: BeginStage = silent) -> list[tuple[int, int, float]]:
    """Pairs i < j of rows, float16 [n, D], whose cosine is at least ``threshold``, with it.

    Time grows with the square of n: 100,000 rows of 768 take minutes on two cores.

    Args:
        rows: the rows.
        threshold: the least cosine.
        begin: begins a progress bar.
    """
    done = begin("images", -(-len(rows) // _BLOCK))
    pairs = []
    for start in range(0, len(rows), _BLOCK):
        queries = rows[start : start + _BLOCK].astype(np.float32)
        # A pair is found from its first row, so rows before the block need no look.
        found = exact.cosines(rows[start:], queries)
        for other, first in np.argwhere(found >= threshold).tolist():
            if first < other:
                pairs.append((start + first, start + other, float(found[other, first])))
        done()
    return pairs


def linked(count: int, pairs: list[tuple[int, int, float]]) -> list[tuple[list[int], float]]:
    """Rows that hang together by pairs, each group with the least cosine of the pairs that join it.

    Pairs join in the order of their cosines, so that the least is that of the weakest link that is needed.
    """
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    weakest: dict[int, float] = {}
    for first, second, cosine in sorted(pairs, key=lambda pair: -pair[2]):
        one, other = root(first), root(second)
        if one != other:
            parent[max(one, other)] = min(one, other)
            weakest[min(one, other)] = cosine
    members: dict[int, list[int]] = {}
    for row in {row for first, second, _ in pairs for row in (first, second)}:
        members.setdefault(root(row), []).append(row)
    return [(sorted(rows), weakest[key]) for key, rows in sorted(members.items())]
