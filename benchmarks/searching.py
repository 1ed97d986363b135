"""Figures of an index: how fast it is made, checked and searched, beside what a user would write instead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from time import perf_counter

import numpy as np

from fgclip_rt.arrays import Array, FloatArray
from fgclip_rt.errors import BenchmarkError
from fgclip_rt.index import About, ImageIndex, update
from fgclip_rt.index.approximate import RECALL_AT, TEXTS
from fgclip_rt.index.files import Entry
from fgclip_rt.index.writer import NewContent, Writer, digest
from fgclip_rt.machine import usable_cores
from fgclip_rt.manifest import Strict
from fgclip_rt.model import Model
from fgclip_rt.scores import l2_normalize
from fgclip_rt.turns import take_turns, timed

from .serving import running

#: Images that a search is asked for.
_FOUND = 12

#: Rows that are made, and that the plain product converts, at once.
_BLOCK = 65_536

#: Numbers that the vectors of a collection are made from: groups of alike images, with details of their own.
_GROUPS, _FACTORS = 2_000, 64


class Indexing(Strict, frozen=True):
    """Seconds that turns took to index photos, and to embed the same ones."""

    images: int
    indexed: tuple[float, ...]
    embedded: tuple[float, ...]


class Checked(Strict, frozen=True):
    """Seconds in which the command found that none of the files had changed."""

    files: int
    seconds: tuple[float, ...]


class Exact(Strict, frozen=True):
    """Exact searches.

    Attributes:
        rows: number of images.
        dim: width of their vectors.
        first: seconds of opening the index and of its first search.
        searches: seconds of each search after that.
        plain: seconds of NumPy's product of the same rows, converted block by block.
        reads: seconds in which all cores read the rows once, and add them up.
        size: bytes of the index's files.
    """

    rows: int
    dim: int
    first: float
    searches: tuple[float, ...]
    plain: tuple[float, ...]
    reads: tuple[float, ...]
    size: int


class Approximate(Strict, frozen=True):
    """Searches with a graph.

    Attributes:
        rows: number of images.
        built: seconds in which the graph was made.
        size: its bytes.
        stated: recall that the index states.
        images: recall at ten with other images as queries.
        texts: recall at ten with queries that lie as far from the images as texts do.
        searches: seconds of each search.
        exact: seconds of each exact search of the same index, in the same turns.
    """

    rows: int
    built: float
    size: int
    stated: float
    images: float
    texts: float
    searches: tuple[float, ...]
    exact: tuple[float, ...]


class Started(Strict, frozen=True):
    """Seconds until a server was ready, with an index and without."""

    rows: int
    with_index: tuple[float, ...]
    without: tuple[float, ...]


def measure_indexing(model: Model, name: str, photos: Sequence[Path], rounds: int) -> Indexing:
    """Index photos and embed them, in turns."""
    folder = photos[0].parent
    output = folder.with_name("indexed")

    def index() -> float:
        shutil.rmtree(output, ignore_errors=True)
        return timed(lambda: update(model, folder, output, bundle=name))

    turns = {"indexed": index, "embedded": lambda: timed(lambda: model.embed_images(photos))}
    measured = take_turns(turns, rounds, warm_up=1)
    shutil.rmtree(output)
    return Indexing(len(photos), tuple(measured["indexed"]), tuple(measured["embedded"]))


def measure_check(model: Model, name: str, folder: Path, count: int, rounds: int) -> Checked:
    """Have the command check a folder of files that have not changed.

    Raises:
        BenchmarkError: the command failed, or read a file again.
    """
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(b"\xff\xd8%d" % number)
    entries = [_entry(path, row) for row, path in enumerate(sorted(folder.iterdir()))]
    output = folder.with_name("checked")
    make_index(output, _about(model, name, folder, model.dim), entries, vectors=make_vectors(count, model.dim))
    command = [sys.executable, "-P", "-m", "fgclip_rt", "index", name, str(folder), "--output", str(output), "--json"]

    def check() -> float:
        begun = perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = perf_counter() - begun
        if f'"unchanged": {count}' not in done.stdout:
            raise BenchmarkError(f"the check has failed ({(done.stderr or done.stdout)[-300:]}); mend that first.")
        return seconds

    return Checked(count, tuple(take_turns({"": check}, rounds, warm_up=1)[""]))


def measure_exact(path: Path, searches: int) -> Exact:
    """Search the index at ``path``, and read its rows in other ways, in turns."""
    begun = perf_counter()
    with ImageIndex(path) as index:
        about = index.about
        queries = cycle(make_vectors(searches, about.dim, seed=1))
        index.search(next(queries)[None], _FOUND)
        first = perf_counter() - begun
        _, rows = index.vectors()
        turns = {
            "search": lambda: timed(lambda: index.search(next(queries)[None], _FOUND, compare_all=True)),
            "plain": lambda: timed(lambda: _plain(rows, next(queries))),
            "read": lambda: timed(lambda: _read(rows)),
        }
        # The plain product takes seconds, and its time hardly varies.
        few = take_turns(turns, max(3, searches // 10), warm_up=1)
        many = take_turns({"search": turns["search"]}, searches - len(few["search"]))
        size = sum(file.stat().st_size for file in path.iterdir() if not file.name.startswith("graph-"))
        return Exact(
            len(rows),
            about.dim,
            first,
            tuple(few["search"] + many["search"]),
            tuple(few["plain"]),
            tuple(few["read"]),
            size,
        )


def measure_approximate(path: Path, searches: int) -> Approximate:
    """Make the graph of the index at ``path``, and search with it."""
    with ImageIndex(path) as index:
        about = index.about
    texts = make_vectors(len(TEXTS), about.dim, seed=2, texts=True)
    begun = perf_counter()
    with Writer(path, about, anew=False) as writer:
        writer.renew_graph(texts)
    built = perf_counter() - begun
    with ImageIndex(path) as index:
        graph = index.about.graph
        assert graph is not None
        kinds = {
            "images": make_vectors(searches, about.dim, seed=3),
            "texts": make_vectors(searches, about.dim, seed=4, texts=True),
        }
        index.search(texts[:1])
        seconds: dict[bool, list[float]] = {False: [], True: []}
        recall = {}
        for kind, queries in kinds.items():
            shares = []
            for query in queries:
                found = {}
                for compare_all in (False, True):
                    begun = perf_counter()
                    (hits,) = index.search(query[None], RECALL_AT, compare_all=compare_all)
                    seconds[compare_all].append(perf_counter() - begun)
                    found[compare_all] = {hit.row for hit in hits}
                shares.append(len(found[False] & found[True]) / len(found[True]))
            recall[kind] = float(np.mean(shares))
        return Approximate(
            graph.rows,
            built,
            graph.size,
            graph.recall,
            recall["images"],
            recall["texts"],
            tuple(seconds[False]),
            tuple(seconds[True]),
        )


def measure_start(bundle: Path, path: Path, rows: int, rounds: int) -> Started:
    """Start a server with the index at ``path`` and without one, in turns."""

    def start(*options: str) -> float:
        begun = perf_counter()
        with running(bundle, *options):
            return perf_counter() - begun

    measured = take_turns({True: lambda: start("--index", str(path)), False: start}, rounds, warm_up=1)
    return Started(rows, tuple(measured[True]), tuple(measured[False]))


def make_collection(path: Path, model: Model, name: str, rows: int, dim: int) -> None:
    """Make an index of ``rows`` images that are not there, with vectors of width ``dim``.

    It says that it is the model's, so that a server starts with it.
    """
    about = _about(model, name, path.with_name("nowhere"), dim)
    entries = (Entry(b"%03d/%07d.jpg" % (row // 10_000, row), 1, 1, row) for row in range(rows))
    make_index(path, about, entries, vectors=make_vectors(rows, dim))


def make_index(path: Path, about: About, entries: Iterator[Entry] | Sequence[Entry], vectors: Array) -> None:
    """Make an index of entries whose vectors are there; those of a row in the order of the rows."""
    with Writer(path, about, anew=False) as writer:
        for first in range(0, len(vectors), _BLOCK):
            block = vectors[first : first + _BLOCK]
            contents = [NewContent(digest(b"%d" % (first + row)), 640, 480, 128) for row in range(len(block))]
            writer.add(contents, block.astype(np.float32))
        writer.finish(entries, about, approximate=False)


def make_vectors(count: int, dim: int, seed: int = 0, *, texts: bool = False) -> Array:
    """Vectors of length one, [count, dim], which are grouped as those of photos are.

    All share a direction, as the vectors of images do, and texts share another one. The cosine of two images is 0.2 in
    the mean, and that of an image with a text less than zero. Those of seed 0, a whole collection, are float16, and
    queries float32.

    Args:
        count: number of vectors.
        dim: width.
        seed: other ones than those of another seed, from the same groups.
        texts: make such as lie as far from the others as texts lie from images.
    """
    same = np.random.default_rng(0)
    mix = same.standard_normal((_FACTORS, dim), np.float32) / np.sqrt(np.float32(_FACTORS))
    shared = np.float32(0.7) * same.standard_normal(dim, np.float32)
    groups = same.standard_normal((_GROUPS, _FACTORS), np.float32)
    own = np.random.default_rng(seed + 1)
    vectors = np.empty((count, dim), np.float32 if seed else np.float16)
    for first in range(0, count, _BLOCK):
        some = min(_BLOCK, count - first)
        factors = groups[own.integers(0, _GROUPS, some)]
        factors = factors + np.float32(0.7) * own.standard_normal((some, _FACTORS), np.float32)
        detail = np.float32(0.3) * own.standard_normal((some, dim), np.float32)
        vectors[first : first + some] = l2_normalize(factors @ mix + detail + (-shared if texts else shared))
    return vectors


def _plain(rows: Array, query: FloatArray) -> Array:
    """The nearest rows as a user would find them with NumPy, converting no more than memory holds."""
    cosines = np.concatenate(
        [rows[first : first + _BLOCK].astype(np.float32) @ query for first in range(0, len(rows), _BLOCK)]
    )
    nearest: Array = np.argpartition(-cosines, _FOUND)[:_FOUND]
    return nearest


def _read(rows: Array) -> int:
    """Read all rows once on all cores: the time below which no exact search can be."""
    numbers = np.asarray(rows).reshape(-1).view(np.int64)
    with ThreadPoolExecutor(usable_cores()) as threads:
        return sum(int(part) for part in threads.map(np.add.reduce, np.array_split(numbers, 16 * usable_cores())))


def _about(model: Model, name: str, folder: Path, dim: int) -> About:
    return About(
        bundle=name,
        manifest_sha256=model.bundle.manifest_sha256,
        space_sha256=model.space_sha256,
        model=model.manifest.model.name,
        precision=model.precision,
        dim=dim,
        max_num_patches=None,
        exif_transpose=None,
        root=os.path.realpath(folder),
    )


def _entry(path: Path, row: int) -> Entry:
    state = path.stat()
    return Entry(os.fsencode(path.name), state.st_size, state.st_mtime_ns, row)
