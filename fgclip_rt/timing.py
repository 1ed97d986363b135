"""Times of a bundle's precisions on this machine: a quick look, in this process."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from PIL import Image

from .errors import DeviceError
from .graphs import ImageInputs, TextInputs
from .manifest import ImageSpec
from .model import Model, load
from .turns import take_turns, timed

#: The timed graphs: every image and every text goes through one of them.
TIMED_GRAPHS = ("vision", "text")

#: Number of rounds, and the seconds for each precision after which no further round begins.
ROUNDS = 9
_SECONDS_PER_PRECISION = 10.0

#: A precision counts as not faster from this share of the baseline's time on, because a smaller gain may be noise.
NOT_FASTER = 0.95


class Timing(msgspec.Struct, frozen=True):
    """Time of one graph of a bundle in one precision on this machine.

    Attributes:
        graph: name of the graph.
        case: size of its input, such as ``256 patches``; one image or one text.
        precision: the precision that ran.
        milliseconds: median time of one run; None if the precision cannot run.
        runs: number of runs that the median is of.
        baseline: the precision that it is compared with: fp32, or the bundle's first that runs.
        ratio: its time as a share of the baseline's, 1 for the baseline itself; None if the precision cannot run.
        backend: the backend that ran it, and the reason for that backend.
        problem: why it cannot run; empty if it can.
    """

    graph: str
    case: str
    precision: str
    milliseconds: float | None
    runs: int
    baseline: str
    ratio: float | None
    backend: str
    problem: str = ""


def time_precisions(
    bundle: Path, device: str = "auto", threads: int | None = None, progress: Callable[[], None] = lambda: None
) -> list[Timing]:
    """Time the graphs of :data:`TIMED_GRAPHS` in every precision of a bundle, on one image and one short text.

    The precisions take turns in this process, so that other work of the machine falls on all of them alike. It still
    changes the figures. Random weights take as long as others.

    Args:
        bundle: folder made by ``fgclip-rt export``.
        device: as for :func:`fgclip_rt.load`.
        threads: as for :func:`fgclip_rt.load`.
        progress: called after each round, at most :data:`ROUNDS` times per graph.

    Returns:
        One timing per graph and precision, in the order of the bundle's precisions.

    Raises:
        FgclipError: as for :func:`fgclip_rt.load`.
    """
    precisions = load(bundle, device, threads=threads).manifest.precisions
    timings: list[Timing] = []
    for graph in TIMED_GRAPHS:
        # Loaded anew, because the last graph's sessions would stay in memory. The digests were compared above.
        models = (load(bundle, device, precision, threads, check_hashes=False) for precision in precisions)
        timings += _time_graph(graph, list(models), progress)
    return timings


def _time_graph(graph: str, models: list[Model], progress: Callable[[], None]) -> list[Timing]:
    """Time one graph of the same bundle in several precisions."""
    case, run = _example(graph, models[0])
    problems = {model.precision: _problem(partial(run, model)) for model in models}
    able = [model for model in models if not problems[model.precision]]
    # The untimed run refills the caches after the others' turns, because a service would find them filled.
    turns = {model.precision: partial(timed, partial(run, model), warm_up=1) for model in able}
    seconds = take_turns(turns, ROUNDS, seconds=_SECONDS_PER_PRECISION * len(able), progress=progress)
    milliseconds = {precision: 1000 * median(values) for precision, values in seconds.items()}
    baseline = "fp32" if "fp32" in milliseconds else next(iter(milliseconds), models[0].precision)

    def timing(model: Model) -> Timing:
        time = milliseconds.get(model.precision)
        return Timing(
            graph=graph,
            case=case,
            precision=model.precision,
            milliseconds=time,
            runs=len(seconds.get(model.precision, ())),
            baseline=baseline,
            ratio=None if time is None else time / milliseconds[baseline],
            backend=str(model.backend),
            problem=problems[model.precision],
        )

    return [timing(model) for model in models]


def _problem(run: Callable[[], object]) -> str:
    """The reason why ``run``, which loads a graph, fails on this device; empty if it does not."""
    try:
        run()
    except DeviceError as error:
        return str(error)
    return ""


def _example(graph: str, model: Model) -> tuple[str, Callable[[Model], object]]:
    """The size of the input that ``graph`` is timed on, and a function that runs any precision of ``model`` on it."""
    if graph == "text":
        # Tokens are made anew in each run, which takes a few hundredths of a millisecond.
        return f"{model.tokenizer.walk_type('short').length} tokens", lambda model: model.graphs.text(
            TextInputs.of(model.tokenizer(["a cat"]), model.tokenizer.walk_type("short").index)
        ).result()
    bucket = _common_bucket(model.manifest.image)
    patches = model.preparation(_noise(math.isqrt(bucket) * model.manifest.image.patch_size), bucket)
    return f"{len(patches.pixels)} patches", lambda model: model.graphs.vision(ImageInputs.of([patches])).result()


def _common_bucket(spec: ImageSpec) -> int:
    return 256 if 256 in spec.buckets else spec.buckets[len(spec.buckets) // 2]


def _noise(side: int) -> Image.Image:
    """An RGB image of ``side`` × ``side`` pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
