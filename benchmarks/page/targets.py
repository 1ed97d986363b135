"""The project's targets on two cores, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from ..results import Ratio, Result, Table, find_tables, ratio

_OURS, _INT8 = "fgclip-rt fp32", "fgclip-rt int8"

Reached: TypeAlias = Literal["yes", "no", "within the spread", "not measured"]


class Outcome(NamedTuple):
    """One target and what was measured.

    Attributes:
        what: the figure, in words.
        target: the target, in words.
        measured: the measured figure, in words; ``not measured`` if the run lacks it.
        fastest: the same figure by the fastest turns; empty if there are no turns.
        bound: the figure if the bundle's matrix products ran at this machine's rate and all else took no time; empty if
            that is no bound.
        reached: whether the target was reached; ``within the spread`` if medians, quartiles and fastest turns disagree.
    """

    what: str
    target: str
    measured: str
    fastest: str
    bound: str
    reached: Reached


def outcomes(result: Result) -> Iterator[Outcome]:
    """Every target, on the results of a base model."""
    yield _time(result, "vision", 256, _OURS, "pytorch", 0.75)
    yield _time(result, "vision", 256, _OURS, "openvino", 0.85)
    yield _share(result, "vision", 256, 0.93)
    yield _time(result, "vision", 1024, _OURS, "pytorch", 0.86)
    yield _time(result, "vision", 256, _INT8, "pytorch", 0.52)
    yield _time(result, "text", 64, _OURS, "pytorch", 0.72)
    yield _time(result, "dense", 4096, _OURS, "pytorch", 0.95)
    yield _memory(result, "dense", 4096, "beyond the loaded session", 500, lambda peak, loaded: peak - loaded)
    yield _memory(result, "dense", 16_384, "at most", 6000, lambda peak, _: peak)
    yield _memory(result, "text", 64, "at most", 700, lambda peak, _: peak)
    pipeline = result.pipeline
    yield Outcome(
        "JPEG files to vectors, images a second, of the model alone",
        "≥ 0.95",
        "not measured" if pipeline is None else str(pipeline.share),
        "" if pipeline is None else _number(pipeline.share.fastest),
        "",
        "not measured" if pipeline is None else _agreed(pipeline.share, lambda share: share >= 0.95),
    )
    starts = {start.contender: start for start in result.starts if start.seconds}
    ours = starts.get("fgclip-rt embed")
    yield Outcome(
        "`fgclip-rt embed` of one image on the pocket bundle, whole process",
        "≤ 0.7 s",
        "not measured" if ours is None else f"{ours.median:.2f} s",
        "" if ours is None else f"{min(ours.seconds):.2f} s",
        "",
        "not measured" if ours is None else _plainly(ours.median <= 0.7),
    )


def _table(result: Result, graph: str, length: int) -> Table | None:
    """The table of one graph and length, in batches of one, on the most threads; None if there is none."""
    tables = find_tables(result.tables, graph=graph, length=length, batch=1)
    return max(tables, key=lambda table: table.threads, default=None)


def _time(result: Result, graph: str, length: int, ours: str, other: str, target: float) -> Outcome:
    what = f"{ours.removeprefix('fgclip-rt ')} time, {graph} {length:,}, of {other}'s"
    table = _table(result, graph, length)
    row, peer = (None, None) if table is None else (table.row(ours), table.row(other))
    if table is None or row is None or peer is None:
        return Outcome(what, f"≤ {target}", "not measured", "", "", "not measured")
    measured = ratio(row, peer)
    # Products of 8-bit numbers have another rate.
    bound = _number(table.share(peer).value) if ours == _OURS else ""
    reached = _agreed(measured, lambda value: value <= target)
    return Outcome(what, f"≤ {target}", str(measured), _number(measured.fastest), bound, reached)


def _share(result: Result, graph: str, length: int, target: float) -> Outcome:
    what = f"fp32 {graph} {length:,}, of this machine's rate of matrix products"
    table = _table(result, graph, length)
    row = None if table is None else table.row(_OURS)
    if table is None or row is None:
        return Outcome(what, f"≥ {target}", "not measured", "", "1", "not measured")
    share = table.share(row)
    reached = _agreed(share, lambda value: value >= target)
    return Outcome(what, f"≥ {target}", str(share), _number(share.fastest), "1", reached)


def _memory(
    result: Result, graph: str, length: int, kind: str, target: float, figure: Callable[[float, float], float]
) -> Outcome:
    what = f"fp32 {graph} {length:,}, resident memory {kind}"
    table = _table(result, graph, length)
    row = None if table is None else table.row(_OURS)
    if row is None or not row.peak:
        return Outcome(what, f"≤ {target:,.0f} MB", "not measured", "", "", "not measured")
    measured = figure(row.peak, row.loaded) / 1e6
    return Outcome(what, f"≤ {target:,.0f} MB", f"{measured:,.0f} MB", "", "", _plainly(measured <= target))


def _agreed(measured: Ratio, holds: Callable[[float], bool]) -> Reached:
    """Whether a ratio reaches a target; ``within the spread`` if its median, quartiles and fastest turns disagree."""
    answers = {holds(value) for value in (measured.value, measured.low, measured.high, measured.fastest)}
    return _plainly(answers.pop()) if len(answers) == 1 else "within the spread"


def _number(value: float) -> str:
    return f"{value:.2f}"


def _plainly(reached: bool) -> Reached:
    return "yes" if reached else "no"
