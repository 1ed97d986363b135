"""Images of an index and the vectors that it keeps of them, to be compared with new ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..arrays import FloatArray
from ..evaluation.spaces import sampled
from .search import ImageIndex


def sample(index: ImageIndex, limit: int) -> Iterator[tuple[Path | None, FloatArray]]:
    """Images that are evenly spread over an index, and the vectors of these, float32 [D].

    Args:
        index: the index.
        limit: most images.

    Yields:
        The file, or None if it is gone or has another content now; and the vector.
    """
    rows, vectors = index.vectors()
    places = sampled(len(rows), limit)
    # A copy, because an update may replace the file that they are mapped from.
    for row, vector in zip(rows[places].tolist(), vectors[places].astype(np.float32), strict=True):
        yield index.unchanged(row), vector
