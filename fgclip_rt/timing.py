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

#: The graphs whose time is taken: what every image and every text goes through.
TIMED_GRAPHS = ("vision", "text")

#: How often each precision is timed, unless all of them together take longer than this many seconds for each.
ROUNDS = 9
_SECONDS_PER_PRECISION = 10.0

#: From this share of the baseline's time on, a precision counts as not faster: less may be noise.
NOT_FASTER = 0.95


class Timing(msgspec.Struct, frozen=True):
    """How long one graph of a bundle takes in one precision on this machine.

    Attributes:
        graph: which graph.
        case: what it ran on, such as ``256 patches``; one image or one text.
        precision: the precision that ran.
        milliseconds: median time of one run; None where the precision cannot run.
        runs: how many runs the median is of.
        baseline: the precision that it is compared with: fp32, or the bundle's first that runs.
        ratio: its time as a share of the baseline's; 1 for the baseline itself.
        backend: what ran it, and why.
        problem: why it cannot run; empty where it can.
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

    The precisions take turns in this process, so that what else the machine does falls on all of them alike. It is a
    quick look: other work on the machine still changes the figures. Random weights take as long as others.

    Args:
        bundle: folder made by ``fgclip-rt export``.
        device: as for :func:`fgclip_rt.load`.
        threads: as for :func:`fgclip_rt.load`.
        progress: called after each round, at most :data:`ROUNDS` times per graph.

    Returns:
        One per graph and precision, in the order of the bundle's precisions.

    Raises:
        FgclipError: as :func:`fgclip_rt.load`.
    """
    precisions = load(bundle, device, threads=threads).manifest.precisions
    timings: list[Timing] = []
    for graph in TIMED_GRAPHS:
        # Loaded anew, or the last graph's sessions would stay in memory; the files' digests have been compared above.
        models = (load(bundle, device, precision, threads, check_hashes=False) for precision in precisions)
        timings += _time_graph(graph, list(models), progress)
    return timings


def _time_graph(graph: str, models: list[Model], progress: Callable[[], None]) -> list[Timing]:
    """Time one graph of the same bundle in several precisions."""
    case, run = _example(graph, models[0])
    problems = {model.precision: _problem(partial(run, model)) for model in models}
    able = [model for model in models if not problems[model.precision]]
    # The untimed run brings back into the caches what the others' turns drove out, which a service would find there.
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
    """Why ``run``, which loads a graph, cannot be done on this device; empty where it can."""
    try:
        run()
    except DeviceError as error:
        return str(error)
    return ""


def _example(graph: str, model: Model) -> tuple[str, Callable[[Model], object]]:
    """What ``graph`` is timed on, in words, and a function that runs any precision of ``model`` on it."""
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
