"""The C library beside this package: figures as they are written to a file, and as the page shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from fgclip_rt.manifest import Strict

from ..results import Ratio, Row, Start, decode, ratio

#: Where the results lie, below the folder of the page.
RESULTS = Path("results/native/native.json")

#: The longest start that is aimed at, in seconds.
_LONGEST_START = 0.15

COLUMNS = ("what", "C", "Python", "C, of Python's", "target", "reached")


class Pair(Strict, frozen=True):
    """One figure of both sides, turn by turn.

    Attributes:
        name: the figure, in words.
        unit: of the values: ``s`` or ``bytes``.
        target: the largest ratio of C to Python that is aimed at.
        native: values of the C library.
        python: values of the Python package, in the same turns.
    """

    name: str
    unit: Literal["s", "bytes"]
    target: float
    native: tuple[float, ...]
    python: tuple[float, ...]

    @property
    def ratio(self) -> Ratio:
        """The C library's value as a share of the Python package's."""
        return ratio(Row("native", self.native), Row("python", self.python))


class Figures(Strict, frozen=True):
    """Everything that one run measured.

    Attributes:
        machine: the properties of the machine that the figures depend on, by name.
        versions: versions of the packages and of the C library, by name.
        pairs: the figures of both sides.
        starts: whole processes, from their start to a first vector.
        library: bytes of the stripped library.
    """

    format: Literal["fgclip-rt-bench-native"]
    format_version: Literal[1]
    machine: dict[str, str]
    versions: dict[str, str]
    pairs: tuple[Pair, ...]
    starts: tuple[Start, ...]
    library: int


def read_figures(path: Path) -> Figures:
    """Read a file of figures.

    Raises:
        BenchmarkError: it cannot be read, or holds none.
    """
    return decode(path, Figures, "figures of the C library")


def rows(figures: Figures) -> Iterator[Sequence[str]]:
    """The rows of a table with :data:`COLUMNS`."""
    native, python = figures.starts
    share = ratio(Row(native.contender, native.seconds), Row(python.contender, python.seconds))
    yield (
        "start of a process to its first vector, fg-clip2-pocket",
        f"{native.median:.2f} s",
        f"{python.median:.2f} s",
        str(share),
        f"≤ {_LONGEST_START} s",
        _reached(native.median <= _LONGEST_START),
    )
    for pair in figures.pairs:
        show = _milliseconds if pair.unit == "s" else _megabytes
        yield (
            pair.name,
            show(median(pair.native)),
            show(median(pair.python)),
            str(pair.ratio),
            f"≤ {pair.target}",
            _reached(pair.ratio.value <= pair.target),
        )
    yield "the shared library, stripped", _megabytes(figures.library), "", "", "", ""


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _reached(reached: bool) -> str:
    return "yes" if reached else "no"
