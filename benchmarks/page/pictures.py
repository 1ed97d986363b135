"""Pictures of results, one for each table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ..results import Pipeline, Start, Table, ratio

mpl.use("svg")
mpl.rcParams |= {
    "svg.hashsalt": "fgclip-rt",  # the same picture from the same figures
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

#: Ours in one hue, the others in greys and a second hue.
_COLOURS = {
    "fgclip-rt fp32": "#1b6ca8",
    "fgclip-rt fp16": "#5fa3d3",
    "fgclip-rt int8": "#a9d0ee",
    "pytorch": "#3f3f3f",
    "pytorch compiled": "#7a7a7a",
    "transformers": "#b0b0b0",
    "onnxruntime": "#c96f2e",
    "openvino": "#e5ad7f",
}


def times(tables: Sequence[Table], title: str, path: Path) -> None:
    """Time of each contender as a share of PyTorch's, for the cases that PyTorch ran."""
    tables = [table for table in tables if table.row("pytorch")]
    names = [name for name in _COLOURS if any(table.row(name) for table in tables)]
    figure, axes = plt.subplots(figsize=(8, 3.2))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        bars = [(index, table, row) for index, table in enumerate(tables) if (row := table.row(name)) is not None]
        axes.bar(
            [index + (place - (len(names) - 1) / 2) * width for index, _, _ in bars],
            [ratio(row, pytorch).value for _, table, row in bars if (pytorch := table.row("pytorch"))],
            width,
            label=name,
            color=_COLOURS[name],
        )
    axes.axhline(1, color="#3f3f3f", linewidth=0.8)
    axes.set_xticks(range(len(tables)), [_label(table) for table in tables])
    axes.set_ylabel("time, of PyTorch's")
    _finish(figure, title, path, columns=4)


def cost(tables: Sequence[Table], title: str, path: Path) -> None:
    """Milliseconds of fp32 for each image against its patches, by batch and threads."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    series: dict[str, list[tuple[int, float]]] = {}
    for table in tables:
        row = table.row("fgclip-rt fp32")
        if row is not None:
            threads = f"{table.threads} thread{'s' if table.threads > 1 else ''}"
            name = f"batch {table.case.batch}, {threads}"
            series.setdefault(name, []).append((table.case.length, 1000 * row.median / table.case.batch))
    for name, points in series.items():
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)
    lengths = sorted({table.case.length for table in tables})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("patches")
    axes.set_ylabel("ms for each image")
    _finish(figure, title, path, columns=4)


def stages(pipeline: Pipeline, title: str, path: Path) -> None:
    """Share of each stage in the time from files to vectors."""
    figure, axes = plt.subplots(figsize=(8, 1.6))
    total, left = sum(pipeline.stages.values()), 0.0
    for (name, seconds), colour in zip(
        pipeline.stages.items(), ("#c96f2e", "#e5ad7f", "#7a7a7a", "#1b6ca8"), strict=False
    ):
        axes.barh([""], [seconds / total], left=left, color=colour, label=f"{name} {seconds / total:.1%}")
        left += seconds / total
    axes.set_xlabel("share of the time, one stage after the other")
    _finish(figure, title, path, columns=4)


def starts(measured: Sequence[Start], title: str, path: Path) -> None:
    """Seconds from the start of a process to its end."""
    figure, axes = plt.subplots(figsize=(8, 1.6))
    shown = [start for start in reversed(measured) if start.seconds]
    axes.barh(
        [start.contender for start in shown],
        [start.median for start in shown],
        color=["#1b6ca8" if start.contender.startswith("fgclip-rt") else "#3f3f3f" for start in shown],
    )
    axes.set_xlabel("seconds")
    _finish(figure, title, path, columns=0)


def _label(table: Table) -> str:
    batch = f" × {table.case.batch}" if table.case.batch > 1 else ""
    return f"{table.case.graph} {table.case.length:,}{batch}"


def _finish(figure: Figure, title: str, path: Path, columns: int) -> None:
    (axes,) = figure.axes
    entries = len(axes.get_legend_handles_labels()[1]) if columns else 0
    axes.set_title(title, loc="left", pad=10 + 14 * math.ceil(entries / max(1, columns)), fontweight="bold")
    if columns:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
