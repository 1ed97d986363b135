"""``make bench-search``: an index, measured on this machine; ``benchmarks/search.md`` from ``results/search/``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from string import Template
from typing import Literal

import msgspec

import fgclip_rt
from fgclip_rt.errors import BenchmarkError
from fgclip_rt.machine import this_machine, usable_cores, versions
from fgclip_rt.manifest import Strict

from ..pipeline import make_photos
from ..searching import (
    Approximate,
    Checked,
    Exact,
    Indexing,
    Started,
    make_collection,
    measure_approximate,
    measure_check,
    measure_exact,
    measure_indexing,
    measure_start,
)
from ..serving import quantile
from .readme import table

_PAGE = Template((Path(__file__).parent / "search.md").read_text("utf-8"))

#: The results, below the folder of the page.
RESULTS = Path("results", "search", "fg-clip2-pocket.json")

_MODEL = "fg-clip2-pocket"

_PACKAGES = ("onnxruntime", "numpy", "usearch", "pillow")


class Figures(Strict, frozen=True):
    """All figures.

    Attributes:
        model: name of the model that embedded photos.
        cpu: the machine's CPU.
        cores: number of cores that the processes may use.
        load: processes that ran, or waited for a core, in the mean of the minute before.
        versions: versions of the packages that took part.
        indexing: the rate of making an index.
        checked: an update without changes.
        exact: searches of a large collection.
        approximate: searches with a graph.
        started: the start of a server with the large collection.
    """

    model: str
    cpu: str
    cores: int
    load: float
    versions: dict[str, str]
    indexing: Indexing
    checked: Checked
    exact: Exact
    approximate: Approximate
    started: Started
    format: Literal["fgclip-rt-bench-search"] = "fgclip-rt-bench-search"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write results and page."""
    parser = argparse.ArgumentParser(prog="make bench-search", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of search.md and results/search/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--files", type=int, default=10_000, help="files of the folder that is checked")
    parser.add_argument("--rows", type=int, default=1_000_000, help="images of the large collection")
    parser.add_argument("--graph-rows", type=int, default=1_000_000, help="images of the collection with a graph")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--searches", type=int, default=100)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fgclip-rt-bench-") as temporary:
        figures = measure(Path(temporary), options)
    path = options.folder / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))
    write(options.folder)


def measure(folder: Path, options: argparse.Namespace) -> Figures:
    """Measure everything, with files in ``folder``."""
    load = os.getloadavg()[0]
    model = fgclip_rt.load(_MODEL, device="cpu")
    (folder / "photos").mkdir()
    _say("indexing")
    indexing = measure_indexing(model, _MODEL, make_photos(folder / "photos", options.photos), options.rounds)
    _say("check")
    checked = measure_check(model, _MODEL, folder / "unchanged", options.files, options.rounds)
    _say("exact searches")
    large = folder / "large.index"
    make_collection(large, model, _MODEL, options.rows, options.dim)
    exact = measure_exact(large, options.searches)
    _say("starts of a server")
    started = measure_start(model.bundle.path, large, options.rows, options.rounds)
    _say("searches with a graph")
    if options.graph_rows != options.rows:
        large = folder / "graph.index"
        make_collection(large, model, _MODEL, options.graph_rows, options.dim)
    approximate = measure_approximate(large, options.searches)
    return Figures(
        _MODEL,
        this_machine().cpu,
        usable_cores(),
        load,
        versions(*_PACKAGES),
        indexing,
        checked,
        exact,
        approximate,
        started,
    )


def write(folder: Path) -> None:
    """Write the page from the results below ``folder``.

    Raises:
        BenchmarkError: the file there holds no results.
    """
    path = folder / RESULTS
    try:
        figures = msgspec.json.decode(path.read_bytes(), type=Figures)
    except (OSError, msgspec.DecodeError) as error:
        raise BenchmarkError(f"{path} holds no results of a search ({error}); measure again.") from None
    (folder / "search.md").write_text(text(figures), encoding="utf-8")


def text(figures: Figures) -> str:
    """The page in Markdown."""
    return _PAGE.substitute(figures="\n".join(_lines(figures)))


def _lines(figures: Figures) -> Iterator[str]:
    exact, approximate = figures.exact, figures.approximate
    yield "## Figures\n"
    yield f"{figures.cpu}, {figures.cores} cores, with other work on them (a load of {figures.load:.1f} before);"
    yield ", ".join(f"{package} {version}" for package, version in figures.versions.items()) + ".\n"
    yield from table(("what", "target", "measured"), _outcomes(figures))
    yield f"\n### {exact.rows:,} × {exact.dim}, every image compared\n"
    size = 2 * exact.rows * exact.dim
    yield from table(
        ("way", "median", "p99", "bytes a second"),
        [
            _row("`ImageIndex.search`", exact.searches, size),
            _row("NumPy's product", exact.plain, size),
            _row("reading alone", exact.reads, size),
        ],
    )
    yield f"\n### {approximate.rows:,} × {exact.dim}, with a graph\n"
    yield from table(
        ("way", "median", "p99"),
        [
            _row("with the graph", approximate.searches)[:3],
            _row("every image compared, in the same turns", approximate.exact)[:3],
        ],
    )
    rate = approximate.rows / approximate.built
    yield f"\nThe graph was made and measured in {approximate.built:,.0f} s, {rate:,.0f} images a second."
    graph, vectors = approximate.size / approximate.rows, 2 * exact.dim
    line = exact.size / exact.rows - vectors
    yield f"An image takes {graph:,.0f} bytes in it, {vectors:,} as a vector, and {line:,.0f} in the table.\n"


def _outcomes(figures: Figures) -> Iterator[tuple[str, str, str]]:
    indexing, checked, exact = figures.indexing, figures.checked, figures.exact
    share = median(indexing.embedded) / median(indexing.indexed)
    rate = indexing.images / median(indexing.indexed)
    yield f"indexing, of the rate of `embed_images` ({figures.model})", "≥ 0.95", f"{share:.2f} ({rate:.1f} images/s)"
    yield f"check of {checked.files:,} unchanged files", "< 5 s", f"{median(checked.seconds):.1f} s"
    yield (
        f"exact search of {exact.rows:,} × {exact.dim}, median and p99",
        "",
        f"{_ms(exact.searches, 0.5)}, {_ms(exact.searches, 0.99)}",
    )
    yield "its share of the memory's bandwidth", "", f"{median(exact.reads) / median(exact.searches):.2f}"
    yield "its time beside NumPy's product", "< 1", f"{median(exact.searches) / median(exact.plain):.2f}"
    yield "opening that index, and its first search", "", f"{exact.first:.1f} s"
    started = figures.started
    yield (
        f"server ready with an index of {started.rows:,}, and without",
        "",
        f"{median(started.with_index):.2f} s, {median(started.without):.2f} s",
    )
    yield "size of that index on the disk", "", f"{exact.size / 1e9:.2f} GB"
    approximate = figures.approximate
    yield (
        f"recall at 10 of a graph of {approximate.rows:,}: queries like images, like texts, as stated",
        "",
        f"{approximate.images:.3f}, {approximate.texts:.3f}, {approximate.stated:.3f}",
    )


def _row(name: str, seconds: Sequence[float], size: int = 0) -> tuple[str, str, str, str]:
    return name, _ms(seconds, 0.5), _ms(seconds, 0.99), f"{size / median(seconds) / 1e9:.1f} GB"


def _ms(seconds: Sequence[float], share: float) -> str:
    value = 1000 * quantile(seconds, share)
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _say(stage: str) -> None:
    print(stage, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
