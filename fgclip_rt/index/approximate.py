"""An approximate search: a graph over the rows chooses some, and only their cosines are computed.

The graph is that of hierarchical navigable small worlds (Malkov and Yashunin, arXiv:1603.09320), made by usearch. Its
rows have eight bits a number: it only chooses, and is half as large as the vectors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, FloatArray
from ..errors import OutputError
from ..machine import usable_cores
from ..outputs import cannot_write
from ..progress import BeginStage, silent
from . import exact
from .files import GraphFile, damaged

#: Names of everyday things. As queries they lie as far from images as other texts do, and images do not.
TEXTS = (
    *("a dog", "a cat", "a red car", "a bicycle", "a child", "an old man", "a woman with glasses", "a tall building"),
    *("a tree", "a white flower", "a mountain", "the sea", "a boat", "a bridge", "a street at night", "a window"),
    *("a wooden table", "a cup of coffee", "a plate of food", "a book", "a screen", "a red star", "a blue circle"),
    *("an aeroplane", "a train", "a bird", "a horse", "a sunset", "snow", "a map", "a page of text", "a hand"),
)

#: The number of nearest rows of which recall is a share.
RECALL_AT = 10

#: Queries of each kind that recall is measured with.
_QUERIES = len(TEXTS)

#: Rows that the graph chooses for each that is sought, and at least. With eight bits a number, the ten nearest of 40
#: are as good as those of 16 bits; more cost little beside the first.
_CHOSEN, _LEAST = 4, 128

#: Rows that are added between two steps of progress.
_ADDED = 1024


def extend(path: Path, vectors: Array, old: Path | None, begin: BeginStage = silent) -> None:
    """Write a graph of all rows.

    Args:
        path: its file.
        vectors: float16 [n, D], of length one.
        old: the file of a graph of the first rows, which is read and not changed; None if there is none.
        begin: begins a progress bar.

    Raises:
        IndexFileError: the old graph is damaged.
        OutputError: writing failed.
    """
    from usearch.index import Index

    graph = (
        Index(ndim=vectors.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=128)
        if old is None
        else _restore(old, view=False)
    )
    blocks = range(len(graph), len(vectors), _ADDED)
    done = begin("graph", len(blocks))
    for first in blocks:
        rows = np.ascontiguousarray(vectors[first : first + _ADDED])
        # Threads that add the very first rows do not see each other's, and leave some without a path to them.
        graph.add(np.arange(first, first + len(rows)), rows, threads=usable_cores() if first else 1)
        done()
    try:
        graph.save(str(path))
        # The library says nothing of a disk that is full at the very end.
        if path.stat().st_size != graph.serialized_length:
            raise OutputError(f"{path} cannot be written as a whole; free some space.", code="disk_full")
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, error) from None


class Graph:
    """A graph on the disk, mapped. Safe to use from several threads."""

    def __init__(self, folder: Path, about: GraphFile) -> None:
        """Open the graph of the index in ``folder``.

        Raises:
            IndexFileError: it is missing or damaged.
        """
        path = folder / about.file
        # A mapped file that is shorter than its head says ends the process when the rest is read.
        if not path.is_file() or path.stat().st_size != about.size:
            raise damaged(path, f"it has not {about.size:,} bytes")
        self._graph = _restore(path, view=True)
        self._rows = about.rows

    def choose(self, query: FloatArray, count: int, total: int) -> Array:
        """Rows that are probably nearest to a query, int64 and ascending, more than ``count`` of them if there are.

        Rows that came after the graph are all chosen.

        Args:
            query: float32 [D], of length one.
            count: number of rows that are sought.
            total: number of rows of the index.
        """
        found = self._graph.search(query, min(self._rows, max(_LEAST, _CHOSEN * count))).keys
        return np.concatenate([np.sort(found.astype(np.int64)), np.arange(self._rows, total)])


def measure_recall(graph: Graph, vectors: Array, texts: FloatArray, begin: BeginStage = silent) -> float:
    """Share of the ten nearest rows that a graph chooses: the less of that for texts, and that for rows themselves.

    Args:
        graph: the graph.
        vectors: float16 [n, D], all rows of the graph.
        texts: float32 [m, D], vectors of texts.
        begin: begins a progress bar.
    """
    own = np.linspace(0, len(vectors) - 1, min(_QUERIES, len(vectors)), dtype=np.int64)
    done = begin("recall", len(texts) + len(own))

    def recall(query: FloatArray) -> float:
        nearest = exact.largest(exact.cosines(vectors, query[None])[:, 0], RECALL_AT)
        found = np.isin(nearest, graph.choose(query, RECALL_AT, len(vectors)))
        done()
        return float(found.mean())

    of_texts = [recall(text) for text in texts]
    of_rows = [recall(vectors[row].astype(np.float32)) for row in own]
    return float(min(np.mean(of_texts), np.mean(of_rows)))


def _restore(path: Path, *, view: bool) -> Any:
    from usearch.index import Index

    try:
        return Index.restore(str(path), view=view)
    except (ValueError, RuntimeError) as error:
        raise damaged(path, error) from None
