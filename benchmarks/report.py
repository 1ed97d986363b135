"""Results in words: cells of tables, and verdicts on precisions and peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fgclip_rt.timing import NOT_FASTER

from .results import Ratio, Row, Table, ratio

#: Least cosine of a peer's vector with ours if the two count as equal.
_EQUAL = 0.99999

#: Least cosine for a peer that computes in float16.
_EQUAL_IN_HALF = 0.9995

_OURS = "fgclip-rt "

#: Headings of the cells that :func:`cells` gives.
COLUMNS = (
    "case",
    "contender",
    "median",
    "a second",
    "time of the first's",
    "of product rate",
    "memory, at most",
)


def cells(table: Table, *, with_threads: bool = False) -> Iterator[tuple[str, ...]]:
    """A table as rows of :data:`COLUMNS`; the spread beside a ratio is that of the middle half of the turns."""
    threads = f", {table.threads} thread{'s' if table.threads > 1 else ''}" if with_threads else ""
    first = next(row for row in table.rows if row.seconds)
    for index, row in enumerate(table.rows):
        name = f"{table.case}{threads}" if index == 0 else ""
        if row.problem:
            yield name, row.contender, "not run", "", "", "", ""
            continue
        yield (
            name,
            row.contender,
            milliseconds(row.median),
            rate(table.case.batch / row.median),
            "1" if row is first else str(ratio(row, first)),
            f"{table.share(row).value:.0%}" if table.operations else "-",
            f"{row.peak / 1e6:,.0f} MB" if row.peak else "-",
        )


def problems(tables: Sequence[Table]) -> Iterator[str]:
    """Contenders that did not run, and why; one line for each contender and reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for table in tables:
        for row in table.rows:
            if row.problem:
                cases.setdefault((row.contender, row.problem), []).append(str(table.case))
    for (contender, problem), names in cases.items():
        yield f"{contender} was not run ({'; '.join(names)}): {problem}"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds, to about three figures."""
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def rate(value: float) -> str:
    """A rate a second, to about three figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def verdicts(tables: Sequence[Table]) -> Iterator[str]:
    """Precisions of the bundle that are not faster than fp32 on this machine, with the cases."""
    slow: dict[str, list[tuple[Table, Ratio]]] = {}
    for table in tables:
        baseline = table.row("fgclip-rt fp32")
        for row in table.rows:
            # Regions have no weights and are the same in every precision.
            if baseline is None or row is baseline or not row.seconds or not table.operations:
                continue
            if row.contender.startswith(_OURS) and (measured := ratio(row, baseline)).value > NOT_FASTER:
                slow.setdefault(row.contender.removeprefix(_OURS), []).append((table, measured))
    for precision, ratios in slow.items():
        cases = "; ".join(f"{table.case}: {measured} of its time" for table, measured in ratios)
        yield f"{precision} is not faster than fp32 here ({cases})"


def limit(table: Table) -> str:
    """The rate of matrix products that was measured beside a table."""
    return f"{table.rate / 1e9:,.0f} GFLOP/s"


def unequal(tables: Sequence[Table]) -> Iterator[tuple[Table, Row]]:
    """Peers whose vectors differ from the bundle's, because they compute something else.

    Lower precisions of the bundle are not compared here, because the export holds them to their limits.
    """
    for table in tables:
        if table.row(f"{_OURS}fp32") is not table.rows[0]:
            continue
        for row in table.rows:
            peer = row.seconds and not row.contender.startswith(_OURS)
            least = _EQUAL_IN_HALF if "autocast" in row.contender else _EQUAL
            if peer and (row.cosine is None or row.cosine < least):
                yield table, row
