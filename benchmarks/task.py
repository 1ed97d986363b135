"""Cases, contenders, and the messages to and from a contender's process."""

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
    """A run with a clock of its own, because the host's clock would count the device's other work."""

    def __init__(self, run: Run, seconds: Callable[[int], float]) -> None:
        """Join a run and its clock.

        Args:
            run: computes once, and brings the result to the host.
            seconds: computes a given number of times, and returns the mean seconds of a run.
        """
        self._run = run
        self.seconds = seconds

    def __call__(self) -> Array:
        return self._run()


class Case(Strict, frozen=True):
    """Inputs of one shape.

    Attributes:
        graph: the graph that computes them.
        length: number of patches of each image, or of tokens of each text.
        batch: number of images or texts; for ``region``, of boxes in one image.
        end_to_end: whether a run goes from images in memory to vectors in memory; only for ``vision``.
    """

    graph: Graph
    length: int
    batch: int = 1
    end_to_end: bool = False

    def __str__(self) -> str:
        unit = "tokens" if self.graph == "text" else "patches"
        batch = f", {self.batch} boxes" if self.graph == "region" else f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.graph}, {self.length:,} {unit}{batch}{', end to end' if self.end_to_end else ''}"


class CheckpointName(Strict, frozen=True):
    """A checkpoint, as the options of ``fgclip-rt export`` name it.

    Attributes:
        model: a model's name, a Hub id, a folder or a file of weights.
        weights: path of a file, as :class:`fgclip_rt.export.LocalFiles` describes it; None if there is none.
        config: likewise.
        tokenizer: likewise.
        processor: likewise.
    """

    model: str
    weights: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    processor: str | None = None


class Contender(Strict, frozen=True):
    """One way to compute.

    Attributes:
        name: its name in the results.
        kind: a key of :data:`fgclip_rt.benchmarks.worker.RUNNERS`.
        bundle: folder of the bundle, whose weights all contenders have.
        threads: number of CPU threads.
        device: the device that computes.
        precision: one of the bundle's, for contenders that run the bundle.
        library: the library of the engines; None if the contender runs none.
        checkpoint: the checkpoint of the bundle's weights, for PyTorch; None if they are random or shipped.
        plain: the ONNX file of the plain export; None if the contender runs none.
        problem: why it cannot run, if that is known before it starts; empty otherwise.
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
        """Make inputs for ``case``, and the run that computes them.

        Raises:
            UnableError: this contender cannot compute the case.
        """


class UnableError(Exception):
    """A contender cannot compute a case; the message says why, and goes into the results."""


class Prepare(Strict, frozen=True, tag=True):
    """Request to get ready for a case and to compute it once."""

    case: Case


class Again(Strict, frozen=True, tag=True):
    """Request to compute the case ``runs`` times by the clock; with ``warm_up``, after as many untimed runs."""

    runs: int
    warm_up: bool


class Prepared(Strict, frozen=True, tag=True):
    """Answer to :class:`Prepare`.

    Attributes:
        seconds: seconds of the first run.
        vector: the first vector of the result, by which contenders are compared.
        loaded: resident bytes before the first run; zero if the system does not say, or if a GPU computes.
    """

    seconds: float
    vector: list[float]
    loaded: int


class Ran(Strict, frozen=True, tag=True):
    """Answer to :class:`Again`.

    Attributes:
        seconds: mean seconds of a run.
        peak: largest number of resident bytes since the case was prepared; zero in the same cases as ``loaded``.
    """

    seconds: float
    peak: int


class Problem(Strict, frozen=True, tag=True):
    """Answer to either request: the reason why the contender cannot compute."""

    reason: str


Request: TypeAlias = Prepare | Again
Answer: TypeAlias = Prepared | Ran | Problem
