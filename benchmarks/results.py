"""Measurements as they are written to a file, and the figures that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Literal, TypeVar

import msgspec

from fgclip_rt.errors import BenchmarkError
from fgclip_rt.manifest import Strict

from .products import OPERATIONS
from .task import Case

_T = TypeVar("_T")

FORMAT: Literal["fgclip-rt-bench"] = "fgclip-rt-bench"
FORMAT_VERSION: Literal[1] = 1


class Row(Strict, frozen=True):
    """One contender on one case.

    Attributes:
        contender: its name.
        seconds: mean seconds of a run in each turn; empty if it could not run.
        first: seconds of the first run, which compiles and warms up.
        cosine: cosine of its first vector with that of the first contender that ran; None if their lengths differ.
        loaded: resident bytes of its process before the first run, weights loaded; zero if unknown.
        peak: largest number of resident bytes while it ran; zero if unknown.
        problem: why it could not run; empty if it could.
    """

    contender: str
    seconds: tuple[float, ...] = ()
    first: float = 0.0
    cosine: float | None = None
    loaded: int = 0
    peak: int = 0
    problem: str = ""

    @property
    def median(self) -> float:
        """Seconds of the middle turn."""
        return median(self.seconds)


class Table(Strict, frozen=True):
    """All contenders on one case, measured in turns.

    Attributes:
        case: the case that was computed.
        threads: number of threads of each contender.
        rows: one for each contender; the others are compared with the first.
        products: seconds of the device's matrix product of :mod:`fgclip_rt.benchmarks.products`, in the same turns.
        operations: operations of the case's own matrix products; zero for regions.
        product_operations: operations of the device's matrix product.
    """

    case: Case
    threads: int
    rows: tuple[Row, ...]
    products: tuple[float, ...]
    operations: int
    product_operations: int = OPERATIONS

    def row(self, contender: str) -> Row | None:
        """The row of a contender; None if it did not run."""
        return next((row for row in self.rows if row.contender == contender and row.seconds), None)

    @property
    def rate(self) -> float:
        """Operations a second of this machine's matrix products, in the same turns."""
        return self.product_operations / median(self.products)

    def share(self, row: Row) -> Ratio:
        """The share of :attr:`rate` that a contender reaches, its other work included."""
        at_rate = tuple(seconds * self.operations / self.product_operations for seconds in self.products)
        return ratio(Row("at that rate", at_rate), row)


class Ratio(Strict, frozen=True):
    """Ratio of the times of two contenders.

    Attributes:
        value: the ratio of their medians.
        low: lower quartile of the turns' ratios.
        high: upper quartile of the turns' ratios.
        fastest: the ratio of their fastest turns, which the machine's other work disturbed least.
    """

    value: float
    low: float
    high: float
    fastest: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(row: Row, other: Row) -> Ratio:
    """Time of ``row`` as a share of the time of ``other``, turn by turn."""
    turns = [a / b for a, b in zip(row.seconds, other.seconds, strict=True)]
    low, _, high = quantiles(turns, n=4, method="inclusive") if len(turns) > 1 else turns * 3
    return Ratio(row.median / other.median, low, high, min(row.seconds) / min(other.seconds))


class Pipeline(Strict, frozen=True):
    """Times from image files to vectors.

    Attributes:
        images: number of files that were embedded.
        stages: seconds that decoding, resizing, copying and the model take one after the other, for all files.
        alone: seconds of the model alone for all files, by turn.
        whole: seconds from files to vectors, by turn.
        unreadable: files that were left out because they cannot be decoded, as ``fgclip_rt.spell_path`` spells them.
    """

    images: int
    stages: dict[str, float]
    alone: tuple[float, ...]
    whole: tuple[float, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def share(self) -> Ratio:
        """Images a second from files, as a share of the model's rate alone."""
        return ratio(Row("model", self.alone), Row("files", self.whole))


class Start(Strict, frozen=True):
    """Times of whole processes that make one vector each.

    Attributes:
        contender: its name.
        seconds: seconds from the start of the process to its end, by turn; empty if it could not run.
        peak: largest number of bytes that the process held.
        problem: why it could not run; empty if it could.
    """

    contender: str
    seconds: tuple[float, ...]
    peak: int
    problem: str = ""

    @property
    def median(self) -> float:
        """Seconds of the middle turn."""
        return median(self.seconds)


class BundleInfo(Strict, frozen=True):
    """The bundle that was measured; ``sizes`` are the bytes of its files, by name."""

    name: str
    weights: str
    manifest_sha256: str
    sizes: dict[str, int]


class Result(Strict, frozen=True):
    """Everything that one run measured.

    Attributes:
        command: the command line.
        machine: the properties of the machine that the figures depend on, by name.
        versions: versions of the packages, by name.
    """

    format: Literal["fgclip-rt-bench"]
    format_version: Literal[1]
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    bundle: BundleInfo
    tables: tuple[Table, ...]
    pipeline: Pipeline | None = None
    starts: tuple[Start, ...] = ()

    def to_json(self) -> bytes:
        """The file's bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def read_result(path: Path) -> Result:
    """Read a file of results.

    Raises:
        BenchmarkError: it cannot be read, or holds no results.
    """
    return decode(path, Result, "results of a benchmark")


def decode(path: Path, kind: type[_T], named: str) -> _T:
    """A document of figures, which an error calls ``named``.

    Raises:
        BenchmarkError: it cannot be read, or is of another kind.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read ({error.strerror}); check the path.") from None
    except msgspec.DecodeError as error:
        raise BenchmarkError(f"{path} holds no {named} ({error}); measure again.") from None


def find_tables(tables: Sequence[Table], **wanted: object) -> list[Table]:
    """The tables whose case has every wanted value, such as ``graph="text"``."""
    return [table for table in tables if all(getattr(table.case, name) == value for name, value in wanted.items())]
