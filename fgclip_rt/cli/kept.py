"""Vectors that are kept: in a file of ``embed``, in an index, or in the output of ``embed-shards``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..arrays import FloatArray
from ..evaluation.spaces import sampled
from ..index import ImageIndex
from ..index.files import TABLE, About
from ..index.sample import sample as sample_index
from ..names import unspell_path
from ..packages import require
from ..space import Origin
from ..vectors import SUFFIXES, read_rows

if TYPE_CHECKING:
    from ..shards.job import Job


class Kept(msgspec.Struct, frozen=True):
    """Vectors that are kept, of images and texts that are evenly spread over all.

    Attributes:
        width: D.
        images: each image, or None if it is gone or has changed, and its vector, float32 [D].
        texts: the texts.
        text_vectors: their vectors, float32 [m, D].
        origin: what made the vectors; None if it is not known.
        halves: whether they are kept as float16.
        max_num_patches: as for :meth:`fgclip_rt.Model.embed_images`; None if it was left out, or is not known.
        exif_transpose: likewise.
    """

    width: int
    images: Iterable[tuple[Any, FloatArray]]
    texts: list[str]
    text_vectors: FloatArray
    origin: Origin | None
    halves: bool = False
    max_num_patches: int | None = None
    exif_transpose: bool | None = None


def keeps_vectors(path: Path) -> bool:
    """Whether vectors are kept at ``path``; it is taken for a bundle otherwise."""
    return path.suffix in SUFFIXES or (path / TABLE).is_file() or _is_output(path)


@contextmanager
def kept_vectors(path: Path, limit: int) -> Iterator[Kept]:
    """Some of the vectors that are kept at ``path``, while the block runs.

    Args:
        path: such that :func:`keeps_vectors` is true.
        limit: most images, and most texts.

    Raises:
        ArgumentError: it is a file that ``embed`` did not write.
        IndexFileError: the index is damaged.
        ShardError: the output is damaged or has no vectors, or one of its inputs cannot be opened.
        MissingDependencyError: pyarrow is needed and not installed.
    """
    if path.suffix in SUFFIXES:
        yield _of_file(path, limit)
    elif (path / TABLE).is_file():
        with ImageIndex(path) as index:
            yield _of_index(index, limit)
    else:
        yield _of_shards(path, limit)


def _is_output(path: Path) -> bool:
    # The room of shards needs pyarrow, which bundles and indexes do without.
    return (path / "job.json").is_file()


def _of_file(path: Path, limit: int) -> Kept:
    rows = read_rows(path)
    images, texts = (
        [places[place] for place in sampled(len(places), limit)]
        for places in ([row for row, each in enumerate(rows.kinds) if each == kind] for kind in ("image", "text"))
    )
    return Kept(
        width=rows.shape[1],
        images=((unspell_path(rows.inputs[row]), rows.vectors[row]) for row in images),
        texts=[rows.inputs[row] for row in texts],
        text_vectors=rows.vectors[texts],
        origin=rows.origin,
    )


def _of_index(index: ImageIndex, limit: int) -> Kept:
    return _of_images(index.about, sample_index(index, limit), halves=True)


def _of_shards(path: Path, limit: int) -> Kept:
    require("parquet", ["pyarrow"], "reading the vectors of shards needs {}, which is not installed")
    from ..shards import open_store
    from ..shards.sample import sample

    store = open_store(str(path))
    job = store.job()
    return _of_images(job, sample(store, limit), halves=job.dtype == "float16")


def _of_images(made: About | Job, images: Iterable[tuple[Any, FloatArray]], *, halves: bool) -> Kept:
    """Images only, whose vectors were made with the settings that are on record."""
    return Kept(
        width=made.dim,
        images=images,
        texts=[],
        text_vectors=np.empty((0, made.dim), np.float32),
        origin=made.origin,
        halves=halves,
        max_num_patches=made.max_num_patches,
        exif_transpose=made.exif_transpose,
    )
