"""Comparisons with the reference as tables, and precisions in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..manifest import Calibration, Lowering, ParityRow
from .output import numbers, say, say_table, words

#: Columns of each comparison. The headers are short, so that a line fits into 80 characters.
_FIGURES = (
    numbers("1-cos"),
    numbers("error"),
    numbers("logits"),
    numbers("flips"),
    numbers("result"),
)

#: Meaning of the headers, for a help text.
LEGEND = (
    "Columns: 1-cos, the smallest cosine's distance from one; error, the largest as a share of the largest value; "
    "logits, how far they shift; flips, vectors with another nearest text or image; within, with --all, the share of "
    "vectors that keep the limit."
)


def say_parity(rows: Sequence[ParityRow], title: str = "", *, every: bool = False) -> None:
    """Print comparisons with the reference: for each graph the worst figures, or every one."""
    if every:
        columns = [words("graph"), words("case"), numbers("within")]
        lines = [(row.graph, row.case, floored(row.within), *_figures(row)) for row in rows]
    else:
        columns = [words("graph"), numbers("cases")]
        graphs = dict.fromkeys(row.graph for row in rows)
        of = {graph: [row for row in rows if row.graph == graph] for graph in graphs}
        lines = [(graph, f"{len(own):,}", *_figures(_worst(own))) for graph, own in of.items()]
    say_table(title, [*columns, *_FIGURES], lines)
    if note := _by_float64(rows):
        say(note)


def _by_float64(rows: Sequence[ParityRow]) -> str:
    """The comparisons that float64 decided, in one sentence; empty if there are none."""
    decided = [row.from_exact for row in rows if row.from_exact is not None]
    if not decided:
        return ""
    worst = max(decided, key=lambda distances: distances.error)
    return (
        f"{len(decided)} of {len(rows)} comparisons miss the fixed limits and were judged by the reference in float64: "
        f"at worst these graphs are {worst.error:.1e} from it, and PyTorch in float32 is {worst.reference_error:.1e}."
    )


def _figures(row: ParityRow) -> tuple[str, ...]:
    return (
        _from_one(row.min_cosine),
        f"{row.max_error:.1e}",
        "-" if row.logit_shift is None else f"{row.logit_shift:.1e}",
        "-" if row.flips is None else f"{row.flips:,}",
        "ok" if row.passed else "FAILED",
    )


def _worst(rows: Sequence[ParityRow]) -> ParityRow:
    """Several comparisons of one graph as one: worst errors, sums of counts, and means over all vectors."""
    count = sum(row.count for row in rows)
    shifts = [row.logit_shift for row in rows if row.logit_shift is not None]
    flips = [row.flips for row in rows if row.flips is not None]
    return ParityRow(
        graph=rows[0].graph,
        case=f"{len(rows)} case{'s' if len(rows) > 1 else ''}",
        count=count,
        max_error=max(row.max_error for row in rows),
        max_difference=max(row.max_difference for row in rows),
        min_cosine=min(row.min_cosine for row in rows),
        mean_cosine=sum(row.mean_cosine * row.count for row in rows) / max(1, count),
        within=sum(row.within * row.count for row in rows) / max(1, count),
        logit_shift=max(shifts, default=None),
        flips=sum(flips) if flips else None,
        from_exact=None,
        passed=all(row.passed for row in rows),
    )


def floored(share: float) -> str:
    """A share in percent, rounded down, so that only all reads 100.0%."""
    return f"{math.floor(1000 * share) / 1000:.1%}"


def _from_one(cosine: float) -> str:
    """How far a cosine is from one, which rounding may put it above."""
    return f"{max(0.0, 1 - cosine):.1e}"


def describe_lowering(lowering: Lowering) -> str:
    """The changes that made a lower precision from the fp32 graphs."""
    parts = [f"linear layers {lowering.linear}, attention and token table {lowering.other}"]
    if moved := lowering.moved:
        names = ", ".join(f"{layer} to {kind}" for layer, kind in moved.items())
        parts.append(f"{len(moved)} layer{'s' if len(moved) > 1 else ''} moved back ({names})")
    if lowering.residual:
        spans = ", ".join(
            span.first if span.first == span.last else f"{span.first} to {span.last}" for span in lowering.residual
        )
        parts.append(f"residual stream float16 in {spans}")
    if lowering.smoothed:
        parts.append(f"{lowering.smoothed} smoothed")
    if lowering.calibration is not None:
        parts.append(_calibration(lowering.calibration))
    return "; ".join(parts)


def _calibration(used: Calibration) -> str:
    return (
        f"calibrated ({used.method}) on {used.images} images and {used.texts} texts, "
        f"{used.held_out_images} and {used.held_out_texts} held out"
    )
