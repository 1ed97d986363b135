"""``benchmarks/README.md`` and its pictures, made from ``benchmarks/results/*.json`` and the prose beside this file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from string import Template

from ..report import COLUMNS, cells, limit, milliseconds, problems, verdicts
from ..results import Result, Table, find_tables, read_result
from . import native_figures
from .native_figures import Figures, read_figures
from .targets import outcomes

#: Prose below the figures of the C library.
_NATIVE = (Path(__file__).parent / "native.md").read_text("utf-8")
#: Prose of the page, and of the targets if a result has some.
_PAGE, _TARGETS = (
    Template((Path(__file__).parent / name).read_text("utf-8")) for name in ("template.md", "targets.md")
)


def write(folder: Path) -> None:
    """Write the page and its pictures beside the results in ``folder/results``.

    Raises:
        BenchmarkError: a file there holds no results.
    """
    results = {path.stem: read_result(path) for path in sorted((folder / "results").glob("*.json"))}
    draw(results, folder / "results")
    figures = folder / native_figures.RESULTS
    native = read_figures(figures) if figures.exists() else None
    (folder / "README.md").write_text(text(results, native), encoding="utf-8")


def text(results: dict[str, Result], native: Figures | None) -> str:
    """The page in Markdown; ``native`` are the figures of the C library, None if there are none."""
    lines = [line for name, result in results.items() for line in _section(name, result)]
    if native is not None:
        lines += _native(native)
    return _PAGE.substitute(models="\n".join(lines).removesuffix("\n"))


def draw(results: dict[str, Result], folder: Path) -> None:
    """Write the pictures, which need matplotlib."""
    from . import pictures

    for name, result in results.items():
        for key, title, tables, kind in _pictures(result):
            getattr(pictures, kind)(tables, f"{result.bundle.name}: {title}", folder / f"{name}-{key}.svg")
        if result.pipeline is not None:
            pictures.stages(
                result.pipeline, f"{result.bundle.name}: from files to vectors", folder / f"{name}-files.svg"
            )
        if result.starts:
            pictures.starts(result.starts, "start of a process to its first vector", folder / f"{name}-start.svg")


def _section(name: str, result: Result) -> Iterator[str]:
    bundle, machine = result.bundle, result.machine
    yield f"## {bundle.name}\n"
    yield f"{machine['cpu']}, {machine['cores']} cores ({machine['flags']}), {machine['memory available']} free;"
    yield ", ".join(f"{package} {version}" for package, version in result.versions.items()) + "."
    yield (
        f"Manifest `{bundle.manifest_sha256[:16]}`, {bundle.weights} weights. "
        f"Full figures: [`{name}.json`](results/{name}.json).\n"
    )
    if result.starts and result.pipeline is not None:
        yield from _targets(result)
    for key, title, tables, _ in _pictures(result):
        yield f"### {title[0].upper()}{title[1:]}\n"
        yield f"![{title}](results/{name}-{key}.svg)\n"
        yield from table(COLUMNS, (row for table in tables for row in cells(table, with_threads=key == "cost")))
        yield ""
        rates = sorted(table.rate for table in tables)
        span = f"{rates[0] / 1e9:,.0f} to {rates[-1] / 1e9:,.0f} GFLOP/s" if len(tables) > 1 else limit(tables[0])
        yield f"Products of matrices, {'/'.join(sorted({str(t.threads) for t in tables}))} threads: {span}.\n"
        yield from (f"- {line}\n" for line in (*problems(tables), *verdicts(tables)))
    if result.pipeline is not None:
        yield from _pipeline(name, result)
    if result.starts:
        yield from _starts(name, result)
    yield from _sizes(result)


def _pictures(result: Result) -> Iterator[tuple[str, str, Sequence[Table], str]]:
    """Name, title, tables and kind of each picture that these results have."""
    threads = max(table.threads for table in result.tables)
    usual = [table for table in result.tables if table.threads == threads]
    groups: list[tuple[str, str, Sequence[Table], str]] = [
        (
            "vision",
            "images, one at a time",
            [t for t in find_tables(usual, graph="vision", batch=1) if len(t.rows) > 2],
            "times",
        ),
        ("vision-8", "images, eight at a time", find_tables(usual, graph="vision", batch=8), "times"),
        ("text", "texts", find_tables(usual, graph="text"), "times"),
        ("dense", "dense features", find_tables(usual, graph="dense"), "times"),
        ("region", "regions of an image whose dense features are there", find_tables(usual, graph="region"), "times"),
        ("cost", "cost by patches, batch and threads", _alone(result.tables), "cost"),
    ]
    for key, title, tables, kind in groups:
        if tables:
            yield key, title, tables, kind


def _alone(tables: Sequence[Table]) -> list[Table]:
    """Vision tables that were measured without peers."""
    return [table for table in find_tables(tables, graph="vision") if len(table.rows) <= 2]


def _targets(result: Result) -> Iterator[str]:
    columns = ("what", "target", "measured", "fastest turns", "bound", "reached")
    yield _TARGETS.substitute(table="\n".join(table(columns, outcomes(result))))


def _pipeline(name: str, result: Result) -> Iterator[str]:
    assert result.pipeline is not None
    pipeline = result.pipeline
    total = sum(pipeline.stages.values())
    yield "### From files to vectors\n"
    yield f"![from files to vectors](results/{name}-files.svg)\n"
    rows = [
        (stage, milliseconds(seconds / pipeline.images), f"{seconds / total:.2%}")
        for stage, seconds in pipeline.stages.items()
    ]
    yield from table(("stage", "for each image", "share"), rows)
    whole = median(pipeline.whole)
    yield ""
    yield (
        f"{pipeline.images} JPEG files of 320×240 to 1,600×1,200 pixels, each in its own bucket: "
        f"{pipeline.images / whole:.2f} images a second, {pipeline.share} of what the model alone embeds.\n"
    )


def _starts(name: str, result: Result) -> Iterator[str]:
    yield "### Start of a process to its first vector\n"
    yield f"![start](results/{name}-start.svg)\n"
    rows = [
        (start.contender, "not run", start.problem, "")
        if start.problem
        else (
            start.contender,
            f"{start.median:.2f} s",
            f"{min(start.seconds):.2f}–{max(start.seconds):.2f} s",
            f"{start.peak / 1e6:,.0f} MB",
        )
        for start in result.starts
    ]
    yield from table(("one image of fg-clip2-pocket", "median", "all", "memory, at most"), rows)
    yield ""


def _sizes(result: Result) -> Iterator[str]:
    weights = {name: size for name, size in result.bundle.sizes.items() if name.endswith(".safetensors")}
    yield "### On disk\n"
    yield from table(("file", "size"), [(f"`{name}`", f"{size / 1e6:,.1f} MB") for name, size in weights.items()])
    yield ""


def _native(figures: Figures) -> Iterator[str]:
    machine, place = figures.machine, native_figures.RESULTS
    yield "## The C library\n"
    yield f"{machine['cpu']}, {machine['cores']} cores ({machine['flags']});"
    yield ", ".join(f"{package} {version}" for package, version in figures.versions.items()) + "."
    yield f"Full figures: [`{place.name}`]({place}). Measured by `make bench-native`.\n"
    yield from table(native_figures.COLUMNS, native_figures.rows(figures))
    yield ""
    yield _NATIVE


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown, line by line."""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


if __name__ == "__main__":
    import sys

    from . import search, serving, shards

    write(Path(sys.argv[1]))
    serving.write(Path(sys.argv[1]))
    search.write(Path(sys.argv[1]))
    shards.write(Path(sys.argv[1]))
