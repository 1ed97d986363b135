"""Images of an output and the vectors that it keeps of them, to be compared with new ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..arrays import FloatArray
from ..errors import FgclipError, ShardError
from ..evaluation.spaces import sampled
from .inputs import find_shards
from .job import Job, Marker
from .layouts import read_rows
from .records import read_records
from .storage import Store

#: Shards that are read at most. A tar has to be read up to the last of the images that are wanted.
_SHARDS = 10


def sample(store: Store, limit: int) -> Iterator[tuple[bytes | None, FloatArray]]:
    """Images that are evenly spread over some shards of an output, and the vectors of these, float32 [D].

    Args:
        store: the output. The inputs must lie where they lay.
        limit: most images.

    Yields:
        The bytes of the file, or None if it is gone or cannot be read; and the vector.

    Raises:
        ShardError: the output has no vectors, or an input cannot be opened.
    """
    job = store.job()
    markers = [marker for _, marker in sorted(store.markers().items()) if marker.rows]
    if not markers:
        raise ShardError(f"{store.root} has no vectors; wait until a shard is done.", code="shard_unreadable")
    chosen = [markers[place] for place in sampled(len(markers), min(_SHARDS, limit))]
    for marker in chosen:
        yield from _sample(store, job, marker, limit // len(chosen))


def _sample(store: Store, job: Job, marker: Marker, limit: int) -> Iterator[tuple[bytes | None, FloatArray]]:
    wanted = _vectors(store, job, marker, limit)
    (shard,) = find_shards([marker.source], sys.maxsize)
    for record in read_records(shard, job.columns):
        vector = None if record.id is None else wanted.pop(record.id, None)
        if vector is None:
            continue
        try:
            yield record.read(), vector
        except FgclipError:
            yield None, vector
        if not wanted:
            return
    for vector in wanted.values():
        yield None, vector


def _vectors(store: Store, job: Job, marker: Marker, limit: int) -> dict[str, FloatArray]:
    """The vectors of some rows of a shard, by the ids of the items."""
    places = set(sampled(marker.rows, limit).tolist())
    found: dict[str, FloatArray] = {}
    first = 0
    with TemporaryDirectory(prefix="fgclip-rt-") as folder:
        for rows in read_rows(store, job, marker.shard, Path(folder)):
            for place in sorted(places.intersection(range(first, first + len(rows.ids)))):
                found[rows.ids[place - first]] = np.asarray(rows.vectors[place - first], np.float32)
            first += len(rows.ids)
    return found
