"""Searching an index: which images are nearest to a vector, and where in them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from ..answers import Hit, Searched, Skipped
from ..arrays import Array, FloatArray
from ..bundle import Bundle, sha256
from ..dense import DenseImage
from ..errors import ArgumentError, ImageError, IndexFileError
from ..images import ImageSource
from ..model import Model
from ..names import spell_path, unspell_path
from ..packages import missing_packages
from ..scores import box_around_largest, similarity_maps
from ..space import Origin
from . import exact
from .approximate import Graph
from .files import About, IndexFiles, check_origin

#: Images whose patches are looked at by default, for each that is to be found.
LOOKED_AT = 4


class _State(msgspec.Struct, frozen=True):
    """An index when it was last looked at.

    Attributes:
        generation: that of its description.
        vectors: its rows, float16 [n, D].
        rows: numbers of those that have an image, int64 and ascending.
        graph: chooses rows for approximate searches; None if there is no graph, or usearch is not installed.
    """

    generation: int
    vectors: Array
    rows: Array
    graph: Graph | None

    def choose(self, query: FloatArray, count: int) -> Array:
        """Rows with an image that the graph chooses for a query, ascending; all if there are fewer than ``count``."""
        assert self.graph is not None
        chosen = self.graph.choose(query, count, len(self.vectors))
        places = np.minimum(np.searchsorted(self.rows, chosen), len(self.rows) - 1)
        shown = chosen[self.rows[places] == chosen]
        return shown if len(shown) >= min(count, len(self.rows)) else self.rows


class ImageIndex:
    """An index of a folder's images, open for searches. Safe to use from several threads.

    Searches see each update of the index once it has ended.
    """

    def __init__(self, path: Path) -> None:
        """Open the index at ``path``.

        Raises:
            IndexFileError: there is none, it is damaged, or it has a newer format.
        """
        self.path = path
        self._files = IndexFiles.open(path)
        self._lock = threading.Lock()
        self._state: _State | None = None

    def __enter__(self) -> ImageIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its files."""
        self._files.close()

    @property
    def about(self) -> About:
        """The index, as it describes itself."""
        return self._files.about

    def counts(self) -> tuple[int, int]:
        """Number of images that can be searched, and of those that cannot be read."""
        with self._looking():
            return self._files.counts()

    def check_bundle(self, bundle: Bundle) -> None:
        """Refuse a bundle whose vectors, in the precision of the index, are of another space.

        Raises:
            IndexFileError: the index is of another space; the message names both.
            BundleError: the bundle's probe is damaged.
        """
        origin = self.about.origin
        check_origin(self.path, origin, Origin.of(bundle, origin.precision), bundle.path)

    def check_model(self, model: Model) -> None:
        """Refuse a model whose vectors are of another space, or of another precision.

        Raises:
            IndexFileError: it is another one; the message names both.
        """
        self.check_bundle(model.bundle)
        if model.precision != self.about.precision:
            raise IndexFileError(
                f"{self.path} was made in {self.about.precision}, and the model runs in {model.precision}; choose the "
                f"precision {self.about.precision}, or index anew with --overwrite.",
                code="index_mismatch",
            )

    def search(
        self, queries: FloatArray, count: int = 12, folder: str = "", *, compare_all: bool = False
    ) -> list[list[Hit]]:
        """The images nearest to each query.

        Args:
            queries: float32 [m, D], of length one.
            count: number of images for each.
            folder: a folder below the indexed one, with slashes, as hits spell it; empty for all.
            compare_all: compare every image, even if a graph could choose some.

        Returns:
            For each query its hits, nearest first; of equal ones, the one that was indexed first comes first. Copies of
            an image are one hit.

        Raises:
            ArgumentError: ``count`` is not positive, or the queries have another width.
            IndexFileError: the index is damaged, or holds no image there.
        """
        if count < 1:
            raise ArgumentError(f"count is {count}; ask for one image or more.")
        if queries.ndim != 2 or queries.shape[1] != self.about.dim:
            raise ArgumentError(f"queries have the shape {list(queries.shape)}; this index has [m, {self.about.dim}].")
        below = _below(folder)
        with self._looking() as state:
            rows = state.rows if not below else self._files.rows(below)
            if not len(rows):
                place = f"{self.path} below {folder}" if below else self.path
                raise IndexFileError(f"{place} has no images; index a folder that has some.", code="index_empty")
            if state.graph is not None and not below and not compare_all:
                chosen = [state.choose(query, count) for query in queries]
                pairs = zip(chosen, queries, strict=True)
                found = [exact.cosines(state.vectors, query[None], among)[:, 0] for among, query in pairs]
            else:
                everything = len(rows) == len(state.vectors)
                chosen = [rows] * len(queries)
                found = list(
                    np.ascontiguousarray(exact.cosines(state.vectors, queries, None if everything else rows).T)
                )
            return [
                [self._hit(int(among[place]), float(column[place]), below) for place in exact.largest(column, count)]
                for among, column in zip(chosen, found, strict=True)
            ]

    def recall(self) -> float | None:
        """Share of the ten nearest images that the graph finds; None if searches compare all images."""
        with self._looking() as state:
            about = self._files.about.graph
            return None if state.graph is None or about is None else about.recall

    def searched(self, folder: str = "") -> int:
        """Number of distinct images that are searched."""
        with self._looking() as state:
            return len(self._files.rows(_below(folder))) if folder else len(state.rows)

    def vectors(self, folder: str = "") -> tuple[Array, Array]:
        """Rows int64 [n] that have an image in a folder, and their vectors, float16 [n, D]."""
        with self._looking() as state:
            rows = self._files.rows(_below(folder)) if folder else state.rows
            return rows, state.vectors if len(rows) == len(state.vectors) else state.vectors[rows]

    def unchanged(self, row: int) -> Path | None:
        """A file that still has the content that the vector of a row is of; None if there is none."""
        with self._looking():
            paths, expected = self._files.paths(row), self._files.digest(row)
        for path in paths:
            file = Path(self.about.root, os.fsdecode(path))
            with suppress(OSError):
                if sha256(file) == (expected or b"").hex():
                    return file
        return None

    def images(self, row: int, folder: str = "") -> list[str]:
        """Paths below the indexed folder of all files of a row, as :func:`fgclip_rt.spell_path` spells them."""
        with self._looking():
            paths = self._files.paths(row, _below(folder))
            return [spell_path(os.fsdecode(path)) for path in paths]

    def file(self, hit: Hit) -> Path:
        """The file of a hit, which may be gone by now."""
        return Path(self.about.root, unspell_path(hit.image))

    def hit(self, row: int) -> Hit | None:
        """The image of a row, as if it had been sought by itself; None if the row has none."""
        with self._looking():
            return self._hit(row, 1.0, b"") if self._files.paths(row) else None

    def _hit(self, row: int, cosine: float, folder: bytes) -> Hit:
        paths = self._files.paths(row, folder)
        content = self._files.content(row)
        assert content is not None
        return Hit(
            row=row,
            image=spell_path(os.fsdecode(paths[0])),
            cosine=cosine,
            width=content.width,
            height=content.height,
            copies=len(paths) - 1,
        )

    @contextmanager
    def _looking(self) -> Iterator[_State]:
        """One state of the index, for the time of the block."""
        with self._lock, self._files.reading():
            state = self._state
            if state is None or state.generation != self._files.about.generation:
                about = self._files.about
                # Without the package every image is compared, and the answer says so.
                graph = None
                if about.graph is not None and not missing_packages(("usearch",)):
                    graph = Graph(self.path, about.graph)
                state = _State(about.generation, self._files.vectors(), self._files.rows(), graph)
                self._state = state
            yield state


def _below(folder: str) -> bytes:
    """A folder as the table has it.

    Raises:
        ArgumentError: no file can have this name.
    """
    try:
        return os.fsencode(unspell_path(folder).strip("/"))
    except UnicodeEncodeError:
        raise ArgumentError(f"folder {folder!r} is not valid Unicode; spell it as the hits do.") from None


class Query(msgspec.Struct, frozen=True):
    """Something to look for.

    Attributes:
        whole: compared with whole images, float32 [D], of length one: a text, or an image.
        part: compared with the patches of images, float32 [D]: the text as one of walk type ``box``, or a region of the
            image. None if no part is looked for.
        alike: whether both describe the same thing, so that their cosines count together. A region and its image do
            not: the image only chooses where to look for the region.
    """

    whole: FloatArray
    part: FloatArray | None = None
    alike: bool = True

    @classmethod
    def of_text(cls, model: Model, text: str, *, fine: bool) -> Query:
        """A text; with ``fine`` also as the name of a part of an image.

        Raises:
            ArgumentError: the model has no features of parts.
            TextError: the text cannot be tokenised.
        """
        if not fine:
            return cls(model.embed_texts(text)[0])
        model.graphs.check_has("dense")
        return cls(model.embed_texts(text)[0], model.embed_texts(text, "box")[0])

    @classmethod
    def of_image(
        cls, model: Model, image: ImageSource, box: Sequence[float] | None = None, *, turned: bool | None = None
    ) -> Query:
        """An image, or a part of it by its box, xyxy in pixels; ``turned`` is as ``exif_transpose`` of the model.

        Raises:
            ArgumentError: the model has no features of regions.
            ImageError: the image cannot be read.
            BoxError: the box is no part of it.
        """
        part = None if box is None else model.embed_regions(image, [box], exif_transpose=turned)[0]
        return cls(model.embed_images(image, exif_transpose=turned)[0], part, alike=False)


def find(
    index: ImageIndex,
    model: Model,
    query: Query,
    count: int = 12,
    folder: str = "",
    depth: int | None = None,
    *,
    compare_all: bool = False,
) -> Searched:
    """The images of an index that are nearest to a query.

    If the query has a part, the patches of the nearest images decide among these.

    Args:
        index: the index.
        model: the model that made it.
        query: the query.
        count: number of images.
        folder: as for :meth:`ImageIndex.search`.
        depth: number of images whose patches are looked at; None takes four times ``count``.
        compare_all: as for :meth:`ImageIndex.search`.

    Raises:
        IndexFileError: as for :meth:`ImageIndex.search`.
    """
    if query.part is None:
        (hits,) = index.search(query.whole[None], count, folder, compare_all=compare_all)
        return searched(index, hits, folder, compare_all=compare_all)
    (hits,) = index.search(query.whole[None], depth or LOOKED_AT * count, folder, compare_all=compare_all)
    placed, skipped = [], []
    for hit in hits:
        try:
            dense = model.dense(index.file(hit), index.about.max_num_patches, exif_transpose=index.about.exif_transpose)
        except ImageError as error:
            skipped.append(Skipped(hit.image, error.code, str(error)))
            continue
        placed.append(place(hit, dense, query))
    best = ranked(placed, query)[:count]
    return searched(index, best, folder, fine=True, skipped=skipped, compare_all=compare_all)


def place(hit: Hit, dense: DenseImage, query: Query) -> Hit:
    """A hit with the place in its image that is nearest to the part that a query looks for."""
    assert query.part is not None
    (values,) = similarity_maps(dense.features(), query.part[None])
    height, width = dense.image_size
    box = box_around_largest(values, (width, height))
    return msgspec.structs.replace(hit, finest=float(values.max()), box=list(box))


def ranked(hits: Iterable[Hit], query: Query) -> list[Hit]:
    """Hits with their places, nearest first."""
    return sorted(hits, key=lambda hit: -((hit.finest or 0.0) + query.alike * hit.cosine))


def searched(
    index: ImageIndex,
    hits: Sequence[Hit],
    folder: str,
    *,
    fine: bool = False,
    skipped: Sequence[Skipped] = (),
    compare_all: bool = False,
) -> Searched:
    """The answer of a search."""
    return Searched(
        index=spell_path(index.path),
        root=spell_path(index.about.root),
        searched=index.searched(folder),
        recall=None if folder or compare_all else index.recall(),
        fine=fine,
        hits=list(hits),
        skipped=list(skipped),
    )
