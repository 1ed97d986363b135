"""What is computed, by whom, and how a process that computes is talked to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from fgclip_rt.arrays import Array
from fgclip_rt.manifest import Strict

#: Computes once. The result begins with the vector of the first image, text, patch or box.
Run: TypeAlias = Callable[[], Array]

Graph: TypeAlias = Literal["vision", "dense", "text", "region"]
Device: TypeAlias = Literal["cpu", "cuda"]


class Clocked:
    """A run with a clock of its own, since the host's would count what the device does besides."""

    def __init__(self, run: Run, seconds: Callable[[int], float]) -> None:
        """Join them.

        Args:
            run: computes once, and brings the result to the host.
            seconds: computes so many times, and returns the mean seconds of a run.
        """
        self._run = run
        self.seconds = seconds

    def __call__(self) -> Array:
        return self._run()


class Case(Strict, frozen=True):
    """Inputs of one shape.

    Attributes:
        graph: what computes them.
        length: patches of each image, or tokens of each text.
        batch: number of images or texts; for ``region``, of boxes in one image.
        end_to_end: whether it begins with images in memory and ends with vectors there; for ``vision``.
    """

    graph: Graph
    length: int
    batch: int = 1
    end_to_end: bool = False

    def __str__(self) -> str:
        unit = "tokens" if self.graph == "text" else "patches"
        many = f", {self.batch} boxes" if self.graph == "region" else f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.graph}, {self.length:,} {unit}{many}{', end to end' if self.end_to_end else ''}"


class CheckpointName(Strict, frozen=True):
    """What ``fgclip-rt export`` is told of a checkpoint.

    Attributes:
        model: a model's name, a Hub id, a folder or a file of weights.
        weights: a file, and likewise the others, as :class:`fgclip_rt.export.LocalFiles` explains them.
    """

    model: str
    weights: str | None = None
    config: str | None = None
    tokenizer: str | None = None


class Contender(Strict, frozen=True):
    """One way to compute.

    Attributes:
        name: what it is called in the results.
        kind: a key of :data:`fgclip_rt.benchmarks.worker.RUNNERS`.
        bundle: its folder, whose weights all contenders have.
        threads: CPU threads.
        device: what computes.
        precision: of the bundle, for those that run it.
        library: whose engines run it, for those that run engines.
        checkpoint: where PyTorch finds the bundle's weights; None makes the random ones again.
        plain: an ONNX file for those that run one.
        problem: why it cannot run, where that is known before.
    """

    name: str
    kind: str
    bundle: str
    threads: int
    device: Device = "cpu"
    precision: str = "fp32"
    library: str | None = None
    checkpoint: CheckpointName | None = None
    plain: str | None = None
    problem: str = ""


class Runner(Protocol):
    """A contender that is ready, in its process."""

    def prepare(self, case: Case) -> Run:
        """Make inputs for ``case`` and what computes them.

        Raises:
            UnableError: this contender has nothing for it.
        """


class UnableError(Exception):
    """A contender cannot compute a case; the message says why, and belongs into the results."""


class Prepare(Strict, frozen=True, tag=True):
    """Get ready for a case and compute it once."""

    case: Case


class Again(Strict, frozen=True, tag=True):
    """Compute it again: ``runs`` times before the clock starts, if asked to warm up, and ``runs`` times by it."""

    runs: int
    warm_up: bool


class Prepared(Strict, frozen=True, tag=True):
    """Ready.

    Attributes:
        seconds: that the first run took.
        vector: the first that came out, by which contenders are compared.
        loaded: resident bytes before the first run; zero if the system does not say, or if a GPU computes.
    """

    seconds: float
    vector: list[float]
    loaded: int


class Ran(Strict, frozen=True, tag=True):
    """Computed.

    Attributes:
        seconds: that a run took, the mean of all.
        peak: largest number of resident bytes since the case was prepared; zero like ``loaded``.
    """

    seconds: float
    peak: int


class Problem(Strict, frozen=True, tag=True):
    """Why it cannot."""

    reason: str


Request: TypeAlias = Prepare | Again
Answer: TypeAlias = Prepared | Ran | Problem
